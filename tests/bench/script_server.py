"""A LitServe server over the same stock pipeline: it collects requests and makes one call for equal settings."""

from __future__ import annotations

import os
from typing import Any

import litserve  # type: ignore[import-not-found,unused-ignore]
import torch

from tests.bench import script_worker

SETTINGS = ("num_inference_steps", "guidance_scale", "scheduler", "width", "height")


class Render(litserve.LitAPI):  # type: ignore[misc,unused-ignore]
    """One call of the pipeline for the requests of a batch that have equal settings."""

    def setup(self, device: str) -> None:
        """Load the model."""
        del device
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        script_worker.pipeline()

    def predict(self, x: Any) -> Any:
        """Render one request, or a batch of them."""
        jobs = x if isinstance(x, list) else [x]
        groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        for job in jobs:
            groups.setdefault(tuple(job[name] for name in SETTINGS), []).append(job)
        for group in groups.values():
            for job, image in zip(group, script_worker.call(group), strict=True):
                script_worker.store(job, image)
        ended = [{"seed": job["seed"]} for job in jobs]
        return ended if isinstance(x, list) else ended[0]

    def batch(self, inputs: list[Any]) -> list[Any]:
        """Requests stay a list of dictionaries."""
        return inputs

    def unbatch(self, output: list[Any]) -> list[Any]:
        """An answer for each."""
        return output


if __name__ == "__main__":
    api = Render(max_batch_size=8, batch_timeout=0.05)
    litserve.LitServer(api, accelerator="cpu", timeout=False).run(
        host="127.0.0.1",
        port=int(os.environ["SCRIPT_PORT"]),
        generate_client_file=False,
        log_level="warning",
        api_server_worker_type="thread",
    )
