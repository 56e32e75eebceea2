"""Render a prompt with many seeds and guidance scales: python sweep.py "a red ball" out/"""

import itertools
import sys
from pathlib import Path

from farm.client import Farm

prompt, directory = sys.argv[1], Path(sys.argv[2])
directory.mkdir(exist_ok=True)

jobs = [
    {"custom_id": f"seed-{seed}-guidance-{guidance}", "seed": seed, "guidance_scale": guidance}
    for seed, guidance in itertools.product(range(4), (2.0, 4.0))
]

with Farm() as farm:
    submitted = farm.submit_many(jobs, name="sweep", task="text-to-image", prompt=prompt, width=128, height=128)
    for result in submitted.as_completed():
        for output in result.outputs:
            file = directory / f"{result.custom_id}{output.suffix}"
            file.write_bytes(farm.download(output))
            print(file)
