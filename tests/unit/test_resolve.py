"""From a request to a spec: every gap closed, every limit said in one sentence."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter

from farm import model_registry
from farm.domain.resolve import RANDOM_SEED_LIMIT, choose_model, resolve
from farm.domain.tasks import AnyJobRequest, InputFile, JobSpec
from farm.errors import BadInput

REGISTRY = model_registry.load(None)
REQUEST: TypeAdapter[Any] = TypeAdapter(AnyJobRequest)


def image(width: int = 128, height: int = 128) -> InputFile:
    size = {"width": width, "height": height}
    return InputFile(sha256="0" * 64, key="k", media_type="image/png", size=99, metadata=size)


def black_mask() -> InputFile:
    return image().model_copy(update={"metadata": {"width": 128, "height": 128, "empty_mask": 1}})


def resolved(given: dict[str, Any], images: dict[str, InputFile] | None = None) -> JobSpec:
    request = REQUEST.validate_python({"prompt": "a red ball"} | given)
    return resolve(request, choose_model(request, REGISTRY), images or {})


def refused(given: dict[str, Any], images: dict[str, InputFile] | None = None) -> list[str]:
    with pytest.raises(BadInput) as caught:
        resolved(given, images)
    return [problem.field for problem in caught.value.problems]


def test_every_gap_is_closed_and_a_seed_is_drawn() -> None:
    specs = [resolved({"task": "text-to-image"}) for _ in range(5)]
    assert len({spec.seed for spec in specs}) == 5
    assert all(spec.seed < RANDOM_SEED_LIMIT for spec in specs)
    defaults = REGISTRY.models[0].defaults
    assert (specs[0].width, specs[0].height, specs[0].num_inference_steps) == (
        defaults.width,
        defaults.height,
        defaults.num_inference_steps,
    )


def test_the_size_of_a_image_decides_within_the_models_limits() -> None:
    spec = resolved({"task": "image-to-image", "image": "sha256:x"}, {"image": image(1000, 500)})
    limits = REGISTRY.models[0].limits
    assert spec.width <= limits.max_side
    assert spec.width * spec.height <= limits.max_pixels
    assert spec.width / spec.height == pytest.approx(2, rel=0.1)
    assert spec.width % 8 == spec.height % 8 == 0


@pytest.mark.parametrize(
    ("given", "images", "fields"),
    [
        ({"task": "text-to-image", "model": "nope"}, {}, ["model"]),
        ({"task": "text-to-image", "width": 4096}, {}, ["width"]),
        ({"task": "text-to-image", "scheduler": "pndm", "num_inference_steps": 3}, {}, ["num_inference_steps"]),
        (
            {"task": "image-to-image", "image": "x", "strength": 0.01, "num_inference_steps": 10},
            {"image": image()},
            ["strength"],
        ),
        (
            {"task": "inpainting", "image": "x", "mask_image": "y"},
            {"image": image(), "mask_image": black_mask()},
            ["mask_image"],
        ),
        (
            {"task": "inpainting", "image": "x", "mask_image": "y"},
            {"image": image(), "mask_image": image(64, 64)},
            ["mask_image"],
        ),
    ],
)
def test_what_cannot_be_rendered_is_named(
    given: dict[str, Any], images: dict[str, InputFile], fields: list[str]
) -> None:
    assert refused(given, images) == fields
