"""A1111's infotext, as the farm writes and reads it."""

from __future__ import annotations

import io

import pytest
from PIL import Image, PngImagePlugin

from farm.domain.infotext import parameters_text, request_from_text
from farm.objects import infotexts
from tests.job_specs import job_spec

WRITTEN = """a photo of a cat, (detailed:1.2)
on two lines
Negative prompt: blurry, "bad"
hands
Steps: 28, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 6.5, Seed: 1234567890, Size: 832x1216, \
Model: some, Denoising strength: 0.4, Lora hashes: "ink: 123, b: 4", Version: v1.9"""


def test_what_a1111_writes_is_read() -> None:
    assert request_from_text(WRITTEN.replace("\\\n", "")) == {
        "prompt": "a photo of a cat, (detailed:1.2)\non two lines",
        "negative_prompt": 'blurry, "bad"\nhands',
        "num_inference_steps": 28,
        "guidance_scale": 6.5,
        "seed": 1234567890,
        "strength": 0.4,
        "width": 832,
        "height": 1216,
        "scheduler": "dpm-solver",
        "scheduler_options": {"use_karras_sigmas": True},
    }


@pytest.mark.parametrize("text", ["only a prompt", "a: b, c", "", "Negative prompt: x"])
def test_a_text_without_settings_is_a_prompt(text: str) -> None:
    found = request_from_text(text)
    assert set(found) <= {"prompt", "negative_prompt"}
    assert " ".join(found.values()).strip() in text.replace("Negative prompt: ", "")


def test_what_the_farm_writes_it_reads() -> None:
    spec = job_spec(
        {
            "task": "text-to-image", "model": "starter", "prompt": "a red ball", "negative_prompt": "blue",
            "num_inference_steps": 20, "guidance_scale": 4.5, "scheduler": "ddim", "seed": 7, "num_outputs": 2,
            "width": 128, "height": 64, "strength": None, "output_format": "png", "inputs": {},
        }
    )  # fmt: skip
    assert request_from_text(parameters_text(spec, 1)) == {
        "prompt": "a red ball", "negative_prompt": "blue", "num_inference_steps": 20, "guidance_scale": 4.5, "seed": 8,
        "width": 128, "height": 64, "scheduler": "ddim",
    }  # fmt: skip


def test_it_is_found_in_each_kind_of_image() -> None:
    image = Image.new("RGB", (8, 8))
    text = PngImagePlugin.PngInfo()
    text.add_text("parameters", "a ball")
    out = io.BytesIO()
    image.save(out, "PNG", pnginfo=text)
    assert infotexts.read(out.getvalue()) == "a ball"
    for form in ("JPEG", "WEBP"):
        exif = Image.Exif()
        exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + "a bäll".encode("utf-16-be")
        out = io.BytesIO()
        image.save(out, form, exif=exif)
        assert infotexts.read(out.getvalue()) == "a bäll"
        out = io.BytesIO()
        image.save(out, form)
        assert infotexts.read(out.getvalue()) is None
    for data in (b"", b"\x89PNG\r\n\x1a\n", out.getvalue()[:40]):
        assert infotexts.read(data) is None
