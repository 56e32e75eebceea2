"""A small job for each task of a model, with inputs made up here, and the comparison of what two of them rendered."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from PIL import Image

from farm.domain.job_spec import InputFile, JobSpec
from farm.domain.model import Model
from farm.domain.model_schema import task_schema
from farm.domain.requests import REQUESTS
from farm.domain.resolve import resolve
from farm.errors import BadInput
from farm.pipelines.spec import Media
from farm.tasks import TASKS
from workers.media.artifacts import Artifact, Clip, Sound

SIDE: Final = 128  #: pixels, where the model's limits and multiples allow it
STEPS: Final = 2
FPS: Final = 8
SAMPLE_RATE: Final = 16_000
PROMPT: Final = "a red ball on a blue table"
_GREY: Final = frozenset({"mask_image", "depth_map"})


class NotTried(Exception):
    """No job can be made up for the task; the text says why."""


@dataclass(frozen=True)
class SampleJob:
    """A job that nobody submitted."""

    spec: JobSpec
    inputs: Mapping[str, Sequence[Artifact]]

    def with_seed(self, seed: int) -> SampleJob:
        """The same with another seed."""
        return replace(self, spec=self.spec.model_copy(update={"seed": seed}))


def sample_job(model: Model, task: str) -> SampleJob:
    """A job of the least work for a task.

    Raises:
        NotTried: the task needs a file or a parameter that cannot be made up.
    """
    schema = task_schema(model, task)
    takes: dict[str, Any] = schema["properties"]
    needed = set(schema.get("required", ()))
    for name in ("parameters", "inputs"):
        if more := takes.get(name, {}).get("required"):
            raise NotTried(f"a job needs {name}: {', '.join(more)}")
    width, height = model.fit(SIDE, SIDE, model.side_multiple(model.pipeline_for(task)))
    given: dict[str, Any] = {"task": task, "model": model.id, "seed": 0, "exact": True}
    offered = {"prompt": PROMPT, "num_inference_steps": STEPS, "width": width, "height": height, "seconds": 1.0}
    given |= {name: value for name, value in offered.items() if name in takes}
    if "num_frames" in takes:
        multiple, offset = model.frame_step(model.pipeline_for(task)) or (1, 4)
        given["num_frames"] = multiple + offset
    inputs: dict[str, tuple[Artifact, ...]] = {}
    files: dict[str, tuple[InputFile, ...]] = {}
    for role, one in TASKS[task].inputs.items():
        if role in needed or (role in takes and one.min):
            artifact = _artifact(one.media, role, width, height, given.get("num_frames", 9))
            file = _file(role, artifact)
            inputs[role], files[role] = (artifact,), (file,)
            given[role] = file.reference
    try:
        spec = resolve(REQUESTS[task].model_validate(given), model, files)
    except (BadInput, ValueError) as error:
        raise NotTried(f"no small job fits the model: {' '.join(str(error).split())}"[:300]) from error
    return SampleJob(spec, inputs)


def same_outputs(first: Sequence[Artifact], second: Sequence[Artifact]) -> bool:
    """Whether both have the same values everywhere."""
    return len(first) == len(second) and all(
        all(np.array_equal(a, b) for a, b in zip(_values(one), _values(other), strict=True))
        for one, other in zip(first, second, strict=True)
    )


def _values(artifact: Artifact) -> tuple[Any, Any]:
    """Pixels and samples."""
    if isinstance(artifact, Sound):
        return np.zeros(0), artifact.samples
    if isinstance(artifact, Clip):
        frames = np.stack([np.asarray(frame) for frame in artifact.frames])
        return frames, np.zeros(0) if artifact.sound is None else artifact.sound.samples
    return np.asarray(artifact), np.zeros(0)


def _artifact(media: Media, role: str, width: int, height: int, frames: int) -> Artifact:
    if media is Media.AUDIO:
        time = np.arange(SAMPLE_RATE, dtype=np.float32) / SAMPLE_RATE
        return Sound(0.3 * np.sin(2 * np.pi * 440 * time)[:, None].astype(np.float32), SAMPLE_RATE)
    if media is Media.VIDEO:
        return Clip([_image(width, height, number) for number in range(frames)], FPS)
    image = _image(width, height, 0)
    return image.convert("L") if role in _GREY else image


def _image(width: int, height: int, shift: int) -> Image.Image:
    """Gradients, and a bright disc that moves from frame to frame."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    pixels = np.stack([255 * x / width, 255 * y / height, np.full_like(x, 96)], -1)
    centre = width / 3 + 2 * shift, height / 2
    pixels[(x - centre[0]) ** 2 + (y - centre[1]) ** 2 < (height / 4) ** 2] = (250, 240, 80)
    return Image.fromarray(pixels.astype(np.uint8))


def _file(role: str, artifact: Artifact) -> InputFile:
    """What a stored input of this content would be; nothing is stored."""
    sha256 = hashlib.sha256(role.encode()).hexdigest()
    if isinstance(artifact, Sound):
        return InputFile(sha256=sha256, key="", media_type="audio/wav", size=1, metadata={"seconds": artifact.seconds})
    if isinstance(artifact, Clip):
        width, height = artifact.size
        facts: dict[str, Any] = {"width": width, "height": height, "frames": len(artifact), "fps": artifact.fps}
        return InputFile(sha256=sha256, key="", media_type="video/mp4", size=1, metadata=facts)
    size = {"width": artifact.width, "height": artifact.height}
    return InputFile(sha256=sha256, key="", media_type="image/png", size=1, metadata=size)
