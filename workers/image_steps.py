"""The tasks that need no model: resize, crop, composite, convert. Pillow on the processor, beside the device.

The same inputs and parameters give the same pixels on every worker with the same version of Pillow.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import PIL
from PIL import Image, ImageChops

from farm.domain.job_spec import JobSpec
from farm.errors import UnsuitableInput
from farm.tasks.crop import box
from farm.tasks.resize import output_size
from workers.media.artifacts import Artifact
from workers.render_request import RenderResult

#: Steps that are computed at once: Pillow releases the interpreter's lock, and rendering needs a core of its own.
_AT_ONCE: Final = threading.BoundedSemaphore(max(1, (os.cpu_count() or 2) - 1))
_RESAMPLING: Final = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "box": Image.Resampling.BOX,
    "nearest": Image.Resampling.NEAREST,
}
Images = Mapping[str, Sequence[Artifact]]


def run(spec: JobSpec, inputs: Images) -> RenderResult:
    """The output of a job whose task needs no model.

    Raises:
        UnsuitableInput: the input does not fit the parameters.
    """
    images = {role: _image(files[0]) for role, files in inputs.items() if files}
    with _AT_ONCE:
        try:
            made = STEPS[spec.task](_parameters(spec), images)
        except ValueError as error:
            raise UnsuitableInput(str(error)) from error
    return RenderResult([made], {"pillow": PIL.__version__})


def _parameters(spec: JobSpec) -> dict[str, Any]:
    """The parameters with the task's defaults."""
    return spec.task_spec.params.model_validate(spec.common).model_dump()


def _image(artifact: Artifact) -> Image.Image:
    assert isinstance(artifact, Image.Image)  # the tasks take nothing else
    return artifact


def _resize(common: Mapping[str, Any], images: Mapping[str, Image.Image]) -> Image.Image:
    image = images["image"]
    size = output_size(common, image.size)
    resample = _RESAMPLING[common["resample"]]
    if common["fit"] != "cover" or common["width"] is None or common["height"] is None:
        return image.resize(size, resample)
    # the largest part in the middle with the wanted aspect, in exact fractions of a pixel
    scale = min(image.width / size[0], image.height / size[1])
    width, height = size[0] * scale, size[1] * scale
    left, top = (image.width - width) / 2, (image.height - height) / 2
    return image.resize(size, resample, box=(left, top, left + width, top + height))


def _crop(common: Mapping[str, Any], images: Mapping[str, Image.Image]) -> Image.Image:
    image = images["image"]
    return image.crop(box(common, image.size))


def _composite(common: Mapping[str, Any], images: Mapping[str, Image.Image]) -> Image.Image:
    lower, upper = images["image"].copy(), images["overlay_image"]
    mask = images.get("mask_image", Image.new("L", upper.size, 255))
    if mask.size != upper.size:
        raise ValueError(f"mask_image is {mask.width}x{mask.height}, overlay_image {upper.width}x{upper.height} pixels")
    opacity = round(255 * common["opacity"])
    mask = ImageChops.multiply(mask, Image.new("L", mask.size, opacity))
    lower.paste(upper, (common["left"] or 0, common["top"] or 0), mask)
    return lower


def _convert(common: Mapping[str, Any], images: Mapping[str, Image.Image]) -> Image.Image:
    image = images["image"]
    if common["colours"] == "grey" or common["threshold"] is not None:
        image = image.convert("L")
    if common["threshold"] is not None:
        threshold = common["threshold"]
        image = image.point([255 * (value >= threshold) for value in range(256)])
    return ImageChops.invert(image) if common["invert"] else image


STEPS: Final[Mapping[str, Callable[[Mapping[str, Any], Mapping[str, Image.Image]], Image.Image]]] = {
    "resize": _resize,
    "crop": _crop,
    "composite": _composite,
    "convert": _convert,
}
