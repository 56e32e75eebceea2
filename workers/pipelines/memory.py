"""Ways to render with less of the device's memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from workers.pipelines.loaded_model import LoadedModel


def set_vae_tiling(loaded: LoadedModel, task: str, *, on: bool) -> None:
    """Let the VAE work in slices and tiles, which needs far less memory and changes pixels a little."""
    vae = getattr(loaded.pipeline(task), "vae", None)
    for name in ("slicing", "tiling"):
        switch = getattr(vae, f"{'enable' if on else 'disable'}_{name}", None)
        if switch is not None:
            switch()
    if not on:
        loaded.prepare(task)  # a family may need its tiles


@contextmanager
def cpu_offload(loaded: LoadedModel, task: str, device: str) -> Iterator[None]:
    """Keep each component of a task's pipeline in main memory except while it computes.

    Slow, because weights are moved for every image; the pixels stay the same. No other run may use the model meanwhile.
    """
    pipeline = loaded.pipeline(task)
    pipeline.enable_model_cpu_offload(device=device)
    try:
        yield
    finally:
        pipeline.remove_all_hooks()
        loaded.move(device)
