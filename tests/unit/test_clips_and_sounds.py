"""Input clips and sounds: what is refused, what is recorded, and what a pipeline gets to see."""

from __future__ import annotations

import contextlib
import io
import os
import re
import struct
import wave
import zlib
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from farm.domain.job_spec import InputFile
from farm.domain.media import FORMATS, MediaMetadata, input_formats, media_of, output_formats
from farm.errors import InputRefused
from farm.objects import clips, containers, images, sounds
from farm.objects.inspection import inspect
from farm.objects.limits import Limits
from farm.objects.probe import probe
from farm.pipelines.spec import Media
from farm.settings import Settings
from tests.unit.test_media_encoders import clip, tone
from workers.media import audio, video
from workers.media.artifacts import Clip, Sound
from workers.media.decoder import decode

SETTINGS = Settings()
LIMITS = Limits.of(SETTINGS)


def of_video(form: str, **options: Any) -> bytes:
    return video.encode(clip(**options), form, "{}")[0]


def of_audio(form: str, **options: Any) -> bytes:
    if form == "mp3":
        out = io.BytesIO()
        sound = tone(**options)
        soundfile.write(out, sound.samples, sound.sample_rate, format="MP3")
        return out.getvalue()
    return audio.encode(tone(**options), form, "{}")[0]


def quicktime(**options: Any) -> bytes:
    data = of_video("mp4", **options)
    return data[:8] + b"qt  " + data[12:]


def a_file(media: Media, form: str) -> bytes:
    if media is Media.AUDIO:
        return of_audio(form)
    if media is Media.VIDEO:
        return quicktime() if form == "mov" else of_video(form)
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (250, 250, 250)).save(out, form)
    return out.getvalue()


def refusal(data: bytes, settings: Settings = SETTINGS) -> str:
    with pytest.raises(InputRefused) as refused:
        inspect(data, settings, field="video")
    (problem,) = refused.value.problems
    assert problem.field == "video"
    return problem.message


def stored(data: bytes) -> InputFile:
    info = inspect(data, SETTINGS, field="video")
    return InputFile(sha256=info.sha256, key="k", media_type=info.media_type, size=info.size, metadata=info.metadata)


# -- accepted --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("media", "name"), [(one.media, one.name) for one in FORMATS if one.is_input])
def test_every_input_format_is_recognised_by_its_content(media: Media, name: str) -> None:
    info = inspect(a_file(media, name), SETTINGS, field="x")
    form = next(one for one in input_formats(media) if one.name == name)
    assert info.media_type == form.media_type
    assert media_of(info.media_type, info.metadata) is media
    assert containers.recognise(a_file(media, name)) is form


@pytest.mark.parametrize("media", [Media.IMAGE, Media.VIDEO, Media.AUDIO])
def test_every_output_can_be_an_input(media: Media) -> None:
    assert {one.name for one in output_formats(media)} <= {one.name for one in input_formats(media)}


@pytest.mark.parametrize("form", ["mp4", "webm", "gif", "webp", "mov"])
def test_a_clip_s_size_and_length_are_recorded(form: str) -> None:
    data = quicktime(fps=10) if form == "mov" else of_video(form, fps=10)
    wanted = {"width": 64, "height": 48, "frames": 10, "fps": 10.0, "seconds": 1.0}
    assert inspect(data, SETTINGS, field="x").metadata == wanted


@pytest.mark.parametrize("form", ["wav", "flac", "ogg", "mp3"])
def test_a_sound_s_rate_and_length_are_recorded(form: str) -> None:
    found = inspect(of_audio(form, seconds=1, rate=16_000, channels=2), SETTINGS, field="x").metadata
    assert (found["sample_rate"], found["channels"]) == (16_000, 2)
    assert found["seconds"] == pytest.approx(1, abs=0.15 if form == "mp3" else 1e-6)  # its frames have a fixed length


@pytest.mark.parametrize("form", ["mp4", "webm", "gif", "webp"])
def test_a_worker_gets_the_frames_and_the_rate(form: str) -> None:
    original = clip(fps=10)
    data = video.encode(original, form, "{}")[0]
    found = decode("video", stored(data), data, SETTINGS)
    assert isinstance(found, Clip)
    assert found.fps == pytest.approx(10)
    assert [(one.mode, one.size) for one in found.frames if isinstance(one, Image.Image)] == [("RGB", (64, 48))] * 10
    difference = np.stack([np.asarray(frame, int) for frame in found.frames]) - np.asarray(original.frames, int)
    assert np.abs(difference).mean() < 6


@pytest.mark.parametrize("form", ["wav", "flac", "ogg"])
def test_a_worker_gets_the_samples_and_the_rate(form: str) -> None:
    data = of_audio(form, channels=2)
    found = decode("audio", stored(data), data, SETTINGS)
    assert isinstance(found, Sound)
    assert found.sample_rate == 16_000
    assert found.samples.dtype == np.float32
    assert np.abs(found.samples - tone(channels=2).samples).max() < 0.05


@pytest.mark.parametrize(("matrix", "clockwise"), [((0, 1, -1, 0), 90), ((-1, 0, 0, -1), 180), ((0, -1, 1, 0), 270)])
def test_a_clip_of_a_phone_held_upright_is_turned(matrix: tuple[int, ...], clockwise: int) -> None:
    data = bytearray(of_video("mp4"))
    at = data.index(b"tkhd") + 4 + 40
    for place, value in zip((0, 1, 3, 4), matrix, strict=True):
        data[at + 4 * place : at + 4 * place + 4] = struct.pack(">i", value * 65536)
    file = stored(bytes(data))
    size = (64, 48) if clockwise == 180 else (48, 64)
    assert (file.width, file.height) == size
    found = decode("video", file, bytes(data), SETTINGS)
    assert isinstance(found, Clip)
    straight = Image.fromarray(np.asarray(clip().frames)[0]).rotate(-clockwise, expand=True)
    assert found.size == size
    assert np.abs(np.asarray(found.frames[0], int) - np.asarray(straight, int)).mean() < 6


# -- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["mp4", "webm", "gif", "webp"])
def test_a_clip_beyond_a_limit_is_refused(form: str) -> None:
    data = of_video(form, fps=10)
    assert re.search(r"(more than|at most) 5\b", refusal(data, Settings(max_input_frames=5)))
    assert "0.5" in refusal(data, Settings(max_input_seconds=0.5))
    assert "64×48 = 3,072 pixels" in refusal(data, Settings(max_input_pixels=3071))
    assert "more than 9,216 pixels" in refusal(data, Settings(max_input_clip_pixels=3 * 64 * 48))
    assert "bytes" in refusal(data, Settings(max_input_bytes=len(data) - 1))
    exact = Settings(
        max_input_frames=10,
        max_input_seconds=1,
        max_input_pixels=64 * 48,
        max_input_clip_pixels=10 * 64 * 48,
        max_input_bytes=len(data),
    )
    assert inspect(data, exact, field="x").metadata["frames"] == 10


@pytest.mark.parametrize("form", ["wav", "flac", "ogg", "mp3"])
def test_a_sound_beyond_a_limit_is_refused(form: str) -> None:
    data = of_audio(form, seconds=1, channels=2)
    assert "more than 0.5 seconds" in refusal(data, Settings(max_input_seconds=0.5))
    assert "more than 20,000 samples over its 2 channels" in refusal(data, Settings(max_input_samples=20_000))


@pytest.mark.parametrize(
    ("media", "name"), [(one.media, one.name) for one in FORMATS if one.is_input and one.media is not Media.IMAGE]
)
def test_a_file_that_is_cut_off_or_damaged_is_taken_or_refused(media: Media, name: str) -> None:
    data = a_file(media, name)
    form = next(one for one in input_formats(media) if one.name == name)
    measure = sounds.measure if media is Media.AUDIO else clips.measure
    generator = np.random.default_rng(7)
    for _ in range(30):
        broken = bytearray(data[: generator.integers(20, len(data))])
        for at in generator.integers(0, len(broken), 4):
            broken[at] = generator.integers(256)
        with contextlib.suppress(InputRefused):
            assert set(measure(bytes(broken), form, LIMITS, "x")) >= {"seconds"}


def test_an_mp4_that_is_cut_off_is_refused() -> None:
    data = of_video("mp4")
    assert "cut off" in refusal(data[:-100])


def test_an_index_of_more_samples_than_memory_is_refused_within_limits() -> None:
    """A few hundred bytes can announce four billion samples, for which libav would make room."""
    data = bytearray(of_video("mp4"))
    at = data.index(b"stsz") + 4
    data[at + 4 : at + 12] = struct.pack(">II", 1, 2**32 - 1)  # each of one byte
    assert refusal(bytes(data))


def test_a_codec_that_is_not_listed_is_refused() -> None:
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("mpeg1video", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24").reformat(format="yuv420p")
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert "the codec mpeg1video is not decoded" in refusal(out.getvalue())


def test_a_file_without_pictures_is_no_clip() -> None:
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16_000)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert "no video stream" in refusal(out.getvalue())


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"", "empty"),
        (b"<svg/>", "SVG"),
        (b"#EXTM3U\nfile:///etc/passwd", "playlist"),
        (b"\0\0\0\x1cftypavif\0\0\0\0", "AVIF"),
        (b"\0\0\0\x1cftypM4A \0\0\0\0", "M4A"),
        (b"\x1a\x45\xdf\xa3\x8b\x42\x82\x88matroska", "Matroska"),
        (b"RIFF\0\0\0\0AVI LIST", "AVI"),
        (b"FORM\0\0\0\0AIFF", "AIFF"),
        (b"GIF89a", "clip is damaged"),
        (b"OggS" + bytes(40), "sound is damaged"),
        (b"fLaC" + bytes(40), "sound is damaged"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "sound is damaged"),
        (b"\0\0\0\x18ftypisom\0\0\2\0isomiso2", "clip is damaged"),
        (b"\x1a\x45\xdf\xa3\x87\x42\x82\x84webm", "clip is damaged"),
    ],
)
def test_other_files_are_refused_by_name(data: bytes, name: str) -> None:
    assert name in refusal(data)


def test_samples_that_are_no_numbers_are_refused() -> None:
    out = io.BytesIO()
    soundfile.write(out, np.array([0.5, np.nan, 0.5] * 100, np.float32), 16_000, format="WAV", subtype="FLOAT")
    assert "not a number" in refusal(out.getvalue())


def test_a_sound_of_many_channels_is_refused() -> None:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(64)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(bytes(64 * 2 * 100))
    assert "64 channels" in refusal(out.getvalue())


def test_an_animation_is_no_still_image() -> None:
    with pytest.raises(InputRefused, match="is animated; send one still image"):
        images.inspect(of_video("webp"), SETTINGS)


# -- the process that looks into a file ------------------------------------------------------------------------------


def test_a_bomb_of_frames_ends_at_the_limit_of_memory() -> None:
    """A GIF of 13,000² pixels takes 644 MiB as RGBA; the budgets are lifted, the process's limit holds."""
    out = io.BytesIO()
    first, second = Image.new("P", (13_000, 13_000)), Image.new("P", (13_000, 13_000))
    second.putpixel((0, 0), 1)
    first.save(out, "GIF", save_all=True, append_images=[second])
    form = next(one for one in FORMATS if one.name == "gif")
    lifted = Limits(1e9, 10**9, 10**12, 10**15, 10**15)
    with pytest.raises(InputRefused, match="768 MiB"):
        probe(out.getvalue(), form, lifted, "x")


def test_the_process_that_looks_into_a_file_has_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARM_S3_SECRET_KEY", "secret")
    monkeypatch.setenv("PYTHONSTARTUP", "x")
    seen: dict[str, Any] = {}
    run = __import__("subprocess").run

    def spied(*arguments: Any, **options: Any) -> Any:
        seen.update(options["env"])
        return run(*arguments, **options)

    monkeypatch.setattr("farm.objects.probe.subprocess.run", spied)
    form = next(one for one in FORMATS if one.name == "wav")
    found: MediaMetadata = probe(of_audio("wav"), form, LIMITS, "x")
    assert found["sample_rate"] == 16_000
    assert set(seen) <= {"PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR", "PYTHONPATH"}
    assert os.environ["FARM_S3_SECRET_KEY"] == "secret"


def test_a_deflated_bomb_in_a_png_chunk_of_an_animation_is_no_clip() -> None:
    chunk = b"acTL" + struct.pack(">II", 2, 0)
    header = b"IHDR" + struct.pack(">IIBBBBB", 4, 4, 8, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(one) - 4) + one + struct.pack(">I", zlib.crc32(one)) for one in (header, chunk)
    )
    assert "animated" in refusal(data)
