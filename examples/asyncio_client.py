"""Render several prompts at once: python asyncio_client.py "a red ball" "a green cube" """

import asyncio
import sys

from farm.client import AsyncFarm


async def main(prompts: list[str]) -> None:
    async with AsyncFarm() as farm:
        found = await asyncio.gather(*(farm.run(prompt, width=128, height=128) for prompt in prompts))
    for prompt, rendered in zip(prompts, found, strict=True):
        print(f"{prompt}: {rendered.images[0].save('.')}")


asyncio.run(main(sys.argv[1:]))
