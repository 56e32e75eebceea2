"""A recipe travels inside its image, in every format."""

from __future__ import annotations

import io
import json

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from farm.domain.infotext import parameters_text
from farm.domain.recipe import recipe_json, request_from_recipe
from farm.domain.tasks import JobSpec, OutputFormat
from farm.objects import recipes
from workers.encoders import encode

MADE_WITH: dict[str, object] = {"model": "starter", "weights": "sha256:00", "dtype": "float32"}
FORMATS = pytest.mark.parametrize("kind", OutputFormat)


def spec(kind: OutputFormat, **changes: object) -> JobSpec:
    values: dict[str, object] = {
        "task": "text-to-image",
        "model": "starter",
        "prompt": "a red sphere",
        "negative_prompt": "",
        "num_inference_steps": 4,
        "guidance_scale": 4.0,
        "scheduler": "ddim",
        "seed": 7,
        "num_images_per_prompt": 3,
        "width": 64,
        "height": 32,
        "strength": None,
        "output_format": kind,
        "inputs": {},
    }
    return JobSpec.model_validate(values | changes)


def noise() -> Image.Image:
    return Image.merge("RGB", [Image.linear_gradient("L").resize((64, 32)).rotate(turn) for turn in (0, 90, 180)])


@FORMATS
@pytest.mark.parametrize(
    "prompt",
    [
        "a red sphere",
        "",
        "两个球 · 🦊 · Müller\nzweite Zeile",
        "🦊" * 10_000,  # the longest that is accepted, in the widest characters
    ],
    ids=["plain", "empty", "unicode", "longest"],
)
def test_the_recipe_comes_back_whole(kind: OutputFormat, prompt: str) -> None:
    wanted = spec(kind, prompt=prompt, negative_prompt=prompt)
    data = encode(noise(), wanted, 2, MADE_WITH)
    text = recipes.read(data)
    assert text == recipe_json(wanted, 2, MADE_WITH)
    again = request_from_recipe(text)
    assert again["prompt"] == prompt
    assert again["seed"] == 9
    assert again["num_images_per_prompt"] == 1


@FORMATS
def test_other_tools_find_the_parameters(kind: OutputFormat) -> None:
    wanted = spec(kind, prompt="两个球 🦊", negative_prompt="blurry")
    with Image.open(io.BytesIO(encode(noise(), wanted, 0, MADE_WITH))) as image:
        if kind is OutputFormat.PNG:
            found = image.info["parameters"]
        else:
            found = image.getexif().get_ifd(0x8769)[0x9286].removeprefix(b"UNICODE\0").decode("utf-16-be")
    assert found == parameters_text(wanted, 0)


@FORMATS
def test_the_file_is_what_it_says_and_opens(kind: OutputFormat) -> None:
    image = noise()
    decoded = Image.open(io.BytesIO(encode(image, spec(kind), 0, MADE_WITH)))
    assert decoded.get_format_mimetype() == kind.media_type
    assert decoded.size == (64, 32)
    if kind is not OutputFormat.JPEG:
        assert decoded.convert("RGB").tobytes() == image.tobytes()


@FORMATS
def test_the_same_recipe_gives_the_same_bytes(kind: OutputFormat) -> None:
    assert encode(noise(), spec(kind), 1, MADE_WITH) == encode(noise(), spec(kind), 1, dict(MADE_WITH))


def test_nothing_belongs_to_one_job_or_moment() -> None:
    text = recipes.read(encode(noise(), spec(OutputFormat.PNG), 0, MADE_WITH))
    assert text is not None
    assert set(json.loads(text)) == {"version", "parameters", "made_with"}


@pytest.mark.parametrize("data", [b"", b"no image", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe1\x00"])
def test_what_is_no_image_has_no_recipe(data: bytes) -> None:
    assert recipes.read(data) is None


@FORMATS
def test_a_strangers_image_has_no_recipe(kind: OutputFormat) -> None:
    target = io.BytesIO()
    noise().save(target, kind.value)
    assert recipes.read(target.getvalue()) is None


@FORMATS
def test_a_file_that_is_cut_short_or_damaged_anywhere_is_read_without_an_error(kind: OutputFormat) -> None:
    data = encode(noise(), spec(kind), 0, MADE_WITH)
    whole = recipes.read(data)
    assert whole
    for end in range(0, len(data), 7):
        assert (recipes.read(data[:end]) or "") in whole
    for at in range(0, min(len(data), 1500), 3):
        recipes.read(data[:at] + b"\xff\xff\xff\xff" + data[at + 4 :])


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("international", [False, True])
def test_the_recipe_outlives_a_tool_that_writes_the_text_of_a_png_another_way(
    zipped: bool, international: bool
) -> None:
    text = recipes.read(encode(noise(), spec(OutputFormat.PNG), 0, MADE_WITH))
    assert text is not None
    info = PngInfo()
    if international:
        info.add_itxt("farm", text, "en", "farm", zip=zipped)
    else:
        info.add_text("farm", text, zip=zipped)
    target = io.BytesIO()
    noise().save(target, "PNG", pnginfo=info)
    assert recipes.read(target.getvalue()) == text
