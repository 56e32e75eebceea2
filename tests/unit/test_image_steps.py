"""The tasks that need no model: what they make of an image, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from farm.domain.job_spec import InputFile, JobSpec
from farm.domain.model import IMAGE_STEPS
from farm.domain.requests import REQUESTS
from farm.domain.resolve import resolve
from farm.errors import BadInput, UnsuitableInput
from workers import image_steps


def picture(width: int = 8, height: int = 4) -> Image.Image:
    """An image in which each pixel has a colour of its own."""
    image = Image.new("RGB", (width, height))
    image.putdata([(16 * x, 16 * y, 255 - 16 * x) for y in range(height) for x in range(width)])
    return image


def spec(task: str, sizes: dict[str, tuple[int, int]], **parameters: Any) -> JobSpec:
    """The spec of a request with inputs of these sizes. Raises `BadInput`."""
    files = {
        role: (
            InputFile(
                sha256="0" * 64,
                key="k",
                media_type="image/png",
                size=1,
                metadata={"width": size[0], "height": size[1]},
            ),
        )
        for role, size in sizes.items()
    }
    request = REQUESTS[task].model_validate({"task": task} | dict.fromkeys(files, "sha256:" + "0" * 64) | parameters)
    return resolve(request, IMAGE_STEPS, files)


def run(task: str, images: dict[str, Image.Image], **parameters: Any) -> Image.Image:
    made = spec(task, {role: image.size for role, image in images.items()}, **parameters)
    (artifact,) = image_steps.run(made, {role: (image,) for role, image in images.items()}).artifacts
    assert isinstance(artifact, Image.Image)
    assert made.task_spec.output_size is not None
    assert artifact.size == made.task_spec.output_size(made.common, images["image"].size)
    return artifact


@pytest.mark.parametrize(
    ("given", "size"),
    [
        ({"width": 4}, (4, 2)),
        ({"height": 8}, (16, 8)),
        ({"width": 4, "height": 4}, (4, 4)),
        ({"width": 4, "height": 4, "fit": "contain"}, (4, 2)),
        ({"width": 3, "height": 5, "fit": "stretch"}, (3, 5)),
    ],
)
def test_resize_gives_the_size_that_was_asked_for(given: dict[str, Any], size: tuple[int, int]) -> None:
    assert run("resize", {"image": picture()}, **given).size == size


def test_resize_covers_with_the_middle_of_the_image() -> None:
    image = picture()
    assert run("resize", {"image": image}, width=4, height=4, resample="nearest").tobytes() == (
        image.crop((2, 0, 6, 4)).tobytes()
    )


def test_crop_cuts_the_part_out_or_the_middle() -> None:
    image = picture()
    made = run("crop", {"image": image}, left=1, top=2, width=3, height=2)
    assert made.tobytes() == image.crop((1, 2, 4, 4)).tobytes()
    assert run("crop", {"image": image}, width=2, height=2).tobytes() == image.crop((3, 1, 5, 3)).tobytes()


def test_composite_lays_one_image_on_another() -> None:
    lower, upper = picture(), Image.new("RGB", (2, 2), "white")
    made = run("composite", {"image": lower, "overlay_image": upper}, left=7, top=-1)
    assert made.getpixel((7, 0)) == (255, 255, 255)
    assert made.getpixel((6, 0)) == lower.getpixel((6, 0))
    half = run("composite", {"image": lower, "overlay_image": upper}, opacity=0.0)
    assert half.tobytes() == lower.tobytes()
    mask = Image.new("L", (2, 2), 0)
    mask.putpixel((1, 1), 255)
    masked = run("composite", {"image": lower, "overlay_image": upper, "mask_image": mask})
    assert masked.getpixel((1, 1)) == (255, 255, 255)
    assert masked.getpixel((0, 0)) == lower.getpixel((0, 0))


def test_convert_makes_grey_images_and_masks() -> None:
    image = picture()
    assert run("convert", {"image": image}).tobytes() == image.tobytes()
    grey = run("convert", {"image": image}, colours="grey")
    assert grey.tobytes() == image.convert("L").tobytes()
    mask = run("convert", {"image": image}, threshold=100)
    assert list(mask.tobytes()) == [255 * (value >= 100) for value in grey.tobytes()]
    dark = run("convert", {"image": image}, threshold=100, invert=True)
    assert [255 - value for value in dark.tobytes()] == list(mask.tobytes())


@pytest.mark.parametrize(
    ("task", "given", "message"),
    [
        ("resize", {}, "give width or height, or both"),
        ("resize", {"height": 4096}, "gives 8192x4096 pixels"),
        ("crop", {"left": 6, "width": 3}, "left 6 and width 3 leave the image, whose width is 8"),
        ("convert", {"scheduler": "ddim"}, "is for pipelines; convert needs none"),
        ("convert", {"parameters": {"eta": 1}}, "is for pipelines; convert needs none"),
        ("convert", {"num_outputs": 2}, "gives at most 1 per job"),
    ],
)
def test_what_can_be_known_is_refused_at_submission(task: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        spec(task, {"image": (8, 4)}, **given)


def test_what_only_the_input_shows_fails_the_job_for_good() -> None:
    made = spec("crop", {"image": (8, 4)}, left=6, width=2)
    with pytest.raises(UnsuitableInput, match="left 6 and width 2 leave the image") as raised:
        image_steps.run(made, {"image": (picture(7, 4),)})
    assert not raised.value.retryable


def test_defaults_are_part_of_the_spec() -> None:
    assert spec("resize", {"image": (8, 4)}, width=4).common == {"width": 4, "fit": "cover", "resample": "lanczos"}
