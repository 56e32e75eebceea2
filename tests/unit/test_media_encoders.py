"""A recipe travels inside its file, in every format."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from PIL import Image, ImageSequence
from PIL.PngImagePlugin import PngInfo

from farm.domain.infotext import parameters_text
from farm.domain.job_spec import JobSpec
from farm.domain.media import output_format, output_formats
from farm.domain.recipe import recipe_json, request_from_recipe
from farm.objects import recipes
from farm.pipelines.spec import Media
from tests.job_specs import job_spec
from workers.media import audio, video
from workers.media import encoder as encoders
from workers.media.artifacts import Clip, Sound

MADE_WITH: dict[str, object] = {"model": "starter", "weights": "sha256:00", "dtype": "float32"}
FORMATS = pytest.mark.parametrize("kind", [one.name for one in output_formats(Media.IMAGE)])


def spec(kind: str, **changes: object) -> JobSpec:
    values: dict[str, object] = {
        "task": "text-to-image",
        "model": "starter",
        "prompt": "a red sphere",
        "negative_prompt": "",
        "num_inference_steps": 4,
        "guidance_scale": 4.0,
        "scheduler": "ddim",
        "seed": 7,
        "num_outputs": 3,
        "width": 64,
        "height": 32,
        "strength": None,
        "output_format": kind,
        "inputs": {},
    }
    return job_spec(values | changes)


def encode(image: Image.Image, spec: JobSpec, index: int, made_with: dict[str, object]) -> bytes:
    file = encoders.encode(image, spec, index, made_with)
    assert dict(file.metadata) == {"width": image.width, "height": image.height}
    assert file.media_type == spec.format.media_type
    return file.body


def read(data: bytes) -> str | None:
    return recipes.read(io.BytesIO(data))


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
def test_the_recipe_comes_back_whole(kind: str, prompt: str) -> None:
    wanted = spec(kind, prompt=prompt, negative_prompt=prompt)
    data = encode(noise(), wanted, 2, MADE_WITH)
    text = read(data)
    assert text == recipe_json(wanted, 2, MADE_WITH)
    again = request_from_recipe(text)
    assert again["prompt"] == prompt
    assert again["seed"] == 9
    assert again["num_outputs"] == 1


@FORMATS
def test_other_tools_find_the_parameters(kind: str) -> None:
    wanted = spec(kind, prompt="两个球 🦊", negative_prompt="blurry")
    with Image.open(io.BytesIO(encode(noise(), wanted, 0, MADE_WITH))) as image:
        if kind == "png":
            found = image.info["parameters"]
        else:
            found = image.getexif().get_ifd(0x8769)[0x9286].removeprefix(b"UNICODE\0").decode("utf-16-be")
    assert found == parameters_text(wanted, 0)


@FORMATS
def test_the_file_is_what_it_says_and_opens(kind: str) -> None:
    image = noise()
    decoded = Image.open(io.BytesIO(encode(image, spec(kind), 0, MADE_WITH)))
    assert decoded.get_format_mimetype() == output_format(Media.IMAGE, kind).media_type
    assert decoded.size == (64, 32)
    if kind != "jpeg":
        assert decoded.convert("RGB").tobytes() == image.tobytes()


@FORMATS
def test_the_same_recipe_gives_the_same_bytes(kind: str) -> None:
    assert encode(noise(), spec(kind), 1, MADE_WITH) == encode(noise(), spec(kind), 1, dict(MADE_WITH))


def test_nothing_belongs_to_one_job_or_moment() -> None:
    text = read(encode(noise(), spec("png"), 0, MADE_WITH))
    assert text is not None
    assert set(json.loads(text)) == {"version", "parameters", "made_with"}


@pytest.mark.parametrize("data", [b"", b"no image", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe1\x00"])
def test_what_is_no_image_has_no_recipe(data: bytes) -> None:
    assert read(data) is None


@FORMATS
def test_a_strangers_image_has_no_recipe(kind: str) -> None:
    target = io.BytesIO()
    noise().save(target, kind)
    assert read(target.getvalue()) is None


@FORMATS
def test_a_file_that_is_cut_short_or_damaged_anywhere_is_read_without_an_error(kind: str) -> None:
    data = encode(noise(), spec(kind), 0, MADE_WITH)
    whole = read(data)
    assert whole
    for end in range(0, len(data), 7):
        assert (read(data[:end]) or "") in whole
    for at in range(0, min(len(data), 1500), 3):
        read(data[:at] + b"\xff\xff\xff\xff" + data[at + 4 :])


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("international", [False, True])
def test_the_recipe_outlives_a_tool_that_writes_the_text_of_a_png_another_way(
    zipped: bool, international: bool
) -> None:
    text = read(encode(noise(), spec("png"), 0, MADE_WITH))
    assert text is not None
    info = PngInfo()
    if international:
        info.add_itxt("farm", text, "en", "farm", zip=zipped)
    else:
        info.add_text("farm", text, zip=zipped)
    target = io.BytesIO()
    noise().save(target, "PNG", pnginfo=info)
    assert read(target.getvalue()) == text


# ------------------------------------------------------------------------------------------------- videos and audio

VIDEOS = pytest.mark.parametrize("form", [one.name for one in output_formats(Media.VIDEO)])
SOUNDS = pytest.mark.parametrize("form", [one.name for one in output_formats(Media.AUDIO)])
RECIPE = json.dumps({"version": 1, "parameters": {"prompt": "a fox \N{FOX FACE}"}, "made_with": {}})
LONG_RECIPE = json.dumps({"version": 1, "parameters": {"prompt": "x" * 300_000}, "made_with": {}})


def clip(count: int = 10, fps: float = 12, size: tuple[int, int] = (64, 48), sound: Sound | None = None) -> Clip:
    """A square that moves to the right over a gradient."""
    width, height = size
    frames = np.zeros((count, height, width, 3), np.uint8)
    frames[..., 0] = np.linspace(40, 200, width, dtype=np.uint8)
    frames[..., 1] = np.linspace(20, 220, height, dtype=np.uint8)[:, None]
    for number, frame in enumerate(frames):
        frame[8:24, 2 + number * 2 : 18 + number * 2] = (250, 30, 60)
    return Clip(frames, fps, sound)


def tone(seconds: float = 0.5, rate: int = 16_000, channels: int = 1) -> Sound:
    """440 Hz on the first channel, an octave higher on each other one."""
    time = np.arange(int(seconds * rate)) / rate
    waves = [0.5 * np.sin(2 * np.pi * 440 * 2**channel * time) for channel in range(channels)]
    return Sound(np.stack(waves, axis=1).astype(np.float32), rate)


def decoded(body: bytes) -> tuple[list[np.ndarray], Fraction | None]:
    with av.open(io.BytesIO(body), "r") as container:
        rate = container.streams.video[0].average_rate
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)], rate


@pytest.mark.parametrize("form", ["mp4", "webm"])
@pytest.mark.parametrize("size", [(64, 48), (63, 47)])
@pytest.mark.parametrize(
    ("fps", "rate"), [(12, Fraction(12)), (24000 / 1001, Fraction(24000, 1001)), (7.5, Fraction(15, 2))]
)
def test_a_clip_comes_back_with_its_frames_rate_and_colours(
    form: str, size: tuple[int, int], fps: float, rate: Fraction
) -> None:
    original = clip(fps=fps, size=size)
    body, metadata = video.encode(original, form, RECIPE)
    frames, found = decoded(body)
    assert found == rate
    assert np.stack(frames).shape == (10, size[1], size[0], 3)
    assert np.abs(np.stack(frames).astype(int) - original.frames).mean() < 6
    assert metadata == {
        "width": size[0],
        "height": size[1],
        "frames": 10,
        "fps": pytest.approx(float(rate), abs=1e-5),
        "seconds": pytest.approx(float(10 / rate), abs=1e-5),
    }


@pytest.mark.parametrize("form", ["webp", "gif"])
@pytest.mark.parametrize("fps", [12, 24, 30, 60])
def test_an_animation_comes_back_with_its_frames_and_length(form: str, fps: float) -> None:
    original = clip(fps=fps)
    body, metadata = video.encode(original, form, RECIPE)
    with Image.open(io.BytesIO(body)) as image:
        assert image.n_frames == metadata["frames"] == 10  # type: ignore[attr-defined]
        shown, frames = [], []
        for frame in ImageSequence.Iterator(image):
            frame.load()  # a WebP's frame has its time only then
            shown.append(frame.info["duration"])
            frames.append(np.asarray(frame.convert("RGB"), int))
    assert sum(shown) == pytest.approx(1000 * float(metadata["seconds"]))
    assert metadata["fps"] == pytest.approx(10_000 / sum(shown), abs=1e-5)
    if fps <= 50:  # browsers show a GIF at most that fast
        assert sum(shown) == pytest.approx(10_000 / fps, abs=6)
    assert np.abs(np.stack(frames) - original.frames).mean() < 6


@pytest.mark.parametrize("form", ["mp4", "webm"])
@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (44_100, 2), (30_000, 1)])
def test_a_clip_keeps_its_sound(form: str, rate: int, channels: int) -> None:
    body, metadata = video.encode(clip(sound=tone(10 / 12, rate, channels)), form, RECIPE)
    with av.open(io.BytesIO(body), "r") as container:
        stream = container.streams.audio[0]
        assert (stream.rate, stream.channels) == (metadata["sample_rate"], metadata["channels"])
        assert metadata["channels"] == channels
        samples = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    assert len(samples) / stream.rate == pytest.approx(10 / 12, abs=0.1)
    power = np.abs(np.fft.rfft(samples))
    assert np.argmax(power) * stream.rate / len(samples) == pytest.approx(440, abs=5)
    assert len(decoded(body)[0]) == 10


@SOUNDS
@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (44_100, 2)])
def test_a_sound_comes_back_with_its_samples(form: str, rate: int, channels: int) -> None:
    original = tone(0.5, rate, channels)
    body, metadata = audio.encode(original, form, RECIPE)
    samples, found = soundfile.read(io.BytesIO(body), dtype="float32", always_2d=True)
    assert found == rate
    assert samples.shape == original.samples.shape
    assert metadata == {"seconds": 0.5, "sample_rate": rate, "channels": channels}
    limit = {"wav": 2**-15, "flac": 2**-22, "ogg": 0.05}[form]
    assert np.abs(samples - original.samples).max() <= limit


@SOUNDS
def test_samples_beyond_the_scale_are_cut_and_do_not_wrap_around(form: str) -> None:
    loud = Sound(np.full((4_000, 1), 1.5, np.float32), 16_000)
    samples, _ = soundfile.read(io.BytesIO(audio.encode(loud, form, RECIPE)[0]), dtype="float32")
    assert samples[1_000:3_000].min() > 0.8


@VIDEOS
@pytest.mark.parametrize("recipe", [RECIPE, LONG_RECIPE], ids=["short", "long"])
def test_the_recipe_of_a_video_comes_back_whole(form: str, recipe: str) -> None:
    assert read(video.encode(clip(), form, recipe)[0]) == recipe


@SOUNDS
@pytest.mark.parametrize("recipe", [RECIPE, LONG_RECIPE], ids=["short", "long"])
def test_the_recipe_of_a_sound_comes_back_whole(form: str, recipe: str) -> None:
    body, _ = audio.encode(tone(), form, recipe)
    assert read(body) == recipe
    soundfile.read(io.BytesIO(body))


def test_other_tools_find_the_comment() -> None:
    for form in ("mp4", "webm"):
        with av.open(io.BytesIO(video.encode(clip(), form, RECIPE)[0]), "r") as container:
            tags = {name.lower(): text for name, text in container.metadata.items()}
            assert tags["comment"] == "farm:" + RECIPE
    for form in ("wav", "flac", "ogg"):
        with soundfile.SoundFile(io.BytesIO(audio.encode(tone(), form, RECIPE)[0])) as file:
            assert file.comment == "farm:" + RECIPE


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc fills memory as it is told")
@VIDEOS
def test_a_clips_bytes_do_not_depend_on_what_was_in_memory_before(form: str) -> None:
    program = f"""
import hashlib
from tests.unit.test_media_encoders import RECIPE, clip, tone
from workers.media import video
sound = tone(10 / 12) if {form!r} in ("mp4", "webm") else None
print(hashlib.sha256(video.encode(clip(sound=sound), {form!r}, RECIPE)[0]).hexdigest())"""
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"MALLOC_PERTURB_": fill},
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[2],
        ).stdout
        for fill in ("0", "85", "170")
    }
    assert len(found) == 1


@VIDEOS
def test_the_same_clip_gives_the_same_bytes(form: str) -> None:
    sound = tone(10 / 12) if form in ("mp4", "webm") else None
    first, second = (video.encode(clip(sound=sound), form, RECIPE)[0] for _ in range(2))
    assert first == second


@SOUNDS
def test_the_same_sound_gives_the_same_bytes(form: str) -> None:
    first, second = (audio.encode(tone(3), form, RECIPE)[0] for _ in range(2))
    assert first == second


def test_an_index_is_in_front_of_the_frames() -> None:
    body, _ = video.encode(clip(), "mp4", RECIPE)
    assert body.index(b"moov") < body.index(b"mdat"), "players start before the file is there"


@pytest.mark.parametrize("mode", ["RGBA", "L", "I;16"])
@FORMATS
def test_an_image_of_any_mode_is_encoded(kind: str, mode: str) -> None:
    image = (
        noise().convert("L").point(lambda value: value * 257, "I").convert("I;16")
        if mode == "I;16"
        else noise().convert(mode)
    )
    body = encode(image, spec(kind), 0, MADE_WITH)
    again = Image.open(io.BytesIO(body))
    assert again.size == image.size
    if kind == "png":
        assert again.tobytes() == image.tobytes()


def every_file() -> list[tuple[str, bytes]]:
    videos = [(one.name, video.encode(clip(4), one.name, RECIPE)[0]) for one in output_formats(Media.VIDEO)]
    return videos + [(one.name, audio.encode(tone(0.1), one.name, RECIPE)[0]) for one in output_formats(Media.AUDIO)]


def test_a_damaged_clip_or_sound_is_read_without_an_error() -> None:
    for name, data in every_file():
        for end in range(0, len(data), max(1, len(data) // 150)):
            assert (read(data[:end]) or "") in RECIPE, name
        for at in range(0, min(len(data), 1200), 5):
            for value in (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff"):
                read(data[:at] + value + data[at + 4 :])


@pytest.mark.parametrize(
    "data",
    [
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I4s", 2**31, b"tEXt"),
        b"\x89PNG\r\n\x1a\n" + (struct.pack(">I4s", 0, b"aaAa") + bytes(4)) * 100_000,
        b"RIFF\0\0\0\0WAVE" + b"LIST" + struct.pack("<I", 2**32 - 1) + b"INFO" + bytes(2_000_000),
        b"GIF89a" + bytes(7) + b"!\xfe" + b"\xff" * 3_000_000,
        b"\0\0\0\x08ftyp" * 200_000,
        b"\x1a\x45\xdf\xa3\x80" + b"\x18\x53\x80\x67\x01\xff\xff\xff\xff\xff\xff\xff" + b"\xec\x80" * 1_000_000,
        b"fLaC" + b"\x01\0\0\0" * 500_000,
        (b"OggS" + bytes(22) + b"\xff" + b"\xff" * 255 + bytes(255 * 255)) * 60,
    ],
    ids=["png-length", "png-chunks", "wav", "gif", "mp4", "webm", "flac", "ogg"],
)
def test_a_hostile_file_is_given_up_soon(data: bytes) -> None:
    class Counted(io.BytesIO):
        total = 0

        def read(self, size: int | None = -1, /) -> bytes:
            found = super().read(size)
            Counted.total += len(found)
            return found

    Counted.total = 0
    assert recipes.read(Counted(data)) is None
    assert Counted.total < 8 * 2**20
