"""The script that people write instead of a farm: one Celery task per job, a stock pipeline, a PNG file, boto3."""

from __future__ import annotations

import io
import json
import os
import time
from typing import Any

import boto3
import torch
from celery import Celery

from workers.torchvision_operators import declare_missing_operators

declare_missing_operators()  # where torchvision lacks its library, diffusers cannot be imported without this

from diffusers import DDIMScheduler, DPMSolverMultistepScheduler  # noqa: E402

from workers.starter.load import load  # noqa: E402

torch.set_num_threads(int(os.environ.get("SCRIPT_THREADS", "1")))
app = Celery("script", broker=os.environ.get("SCRIPT_BROKER"), backend=os.environ.get("SCRIPT_BROKER"))
app.conf.worker_prefetch_multiplier = 1
app.conf.task_default_queue = os.environ.get("SCRIPT_QUEUE", "script")
SCHEDULERS = {"ddim": DDIMScheduler, "dpm-solver": DPMSolverMultistepScheduler}
_loaded: dict[str, Any] = {}


def storage() -> tuple[Any, str]:
    """An S3 client, and the bucket."""
    if "s3" not in _loaded:
        s3 = json.loads(os.environ["SCRIPT_S3"])
        keys = {"aws_access_key_id": s3["access_key"], "aws_secret_access_key": s3["secret_key"]}
        _loaded["s3"] = (
            boto3.client("s3", endpoint_url=s3["endpoint_url"], region_name="us-east-1", **keys),
            s3["bucket"],
        )
    client, bucket = _loaded["s3"]
    return client, bucket


def pipeline() -> Any:
    """The stock pipeline of the built-in model."""
    if "pipeline" not in _loaded:
        _loaded["pipeline"] = load()["text-to-image"]
        _loaded["pipeline"].set_progress_bar_config(disable=True)
    return _loaded["pipeline"]


def call(jobs: list[dict[str, Any]]) -> list[Any]:
    """The images of jobs that differ in prompt and seed only, by one call of the pipeline."""
    pipe, first = pipeline(), jobs[0]
    pipe.scheduler = SCHEDULERS[first["scheduler"]].from_config(pipe.scheduler.config)
    images: list[Any] = pipe(
        prompt=[job["prompt"] for job in jobs],
        num_inference_steps=first["num_inference_steps"],
        guidance_scale=first["guidance_scale"],
        width=first["width"],
        height=first["height"],
        generator=[torch.Generator("cpu").manual_seed(job["seed"]) for job in jobs],
    ).images
    return images


def store(job: dict[str, Any], image: Any) -> None:
    """Upload an image as PNG."""
    file = io.BytesIO()
    image.save(file, "PNG")
    client, bucket = storage()
    key = f"script/{job['seed']}.png"
    client.put_object(Bucket=bucket, Key=key, Body=file.getvalue(), ContentType="image/png")


@app.task(name="script.render")
def render(job: dict[str, Any]) -> float:
    """Render and upload one job; returns the time of its end."""
    store(job, call([job])[0])
    return time.time()
