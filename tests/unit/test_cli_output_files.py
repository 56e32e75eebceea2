"""What a command makes of its words: tasks, sizes, formats and file names."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from farm import api_types
from farm.cli import output_files
from farm.cli.comparison import difference
from farm.cli.render import read_output, size_of
from farm.client.requests import infer_task
from farm.domain import recipe
from farm.domain.job_spec import InputFile
from farm.errors import BadInput
from tests.job_specs import job_spec


@pytest.mark.parametrize(
    ("roles", "task"),
    [
        ([], "text-to-image"),
        (["image"], "image-to-image"),
        (["image", "mask_image"], "inpainting"),
        (["image", "depth_map"], "depth-to-image"),
        (["control_image"], "text-to-image"),
        (["image", "last_image"], "image-to-video"),
        (["video"], "video-to-video"),
        (["audio"], "audio-to-audio"),
    ],
)
def test_the_files_given_mean_a_task(roles: list[str], task: str) -> None:
    assert infer_task(roles) == task


@pytest.mark.parametrize("roles", [["mask_image"], ["depth_map"], ["image", "mask_image", "depth_map"]])
def test_files_that_mean_no_task_are_refused(roles: list[str]) -> None:
    with pytest.raises(BadInput, match="takes image and"):
        infer_task(roles)


@pytest.mark.parametrize(("text", "size"), [("64x32", (64, 32)), ("512X512", (512, 512)), (None, (None, None))])
def test_a_size_is_width_and_height(text: str | None, size: tuple[int | None, int | None]) -> None:
    assert size_of(text) == size


@pytest.mark.parametrize("text", ["64", "64x", "x64", "64x64x64", "-8x8", "a", "٣x٣"])
def test_a_size_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="512x512"):
        size_of(text)


@pytest.mark.parametrize(
    ("output", "given", "found"),
    [
        ("a.png", None, "png"),
        ("a.JPG", None, "jpeg"),
        ("a.webp", "webp", "webp"),
        ("a", "jpeg", "jpeg"),
        (None, None, None),
    ],
)
def test_the_ending_says_the_format(
    output: str | None, given: api_types.OutputFormat | None, found: str | None
) -> None:
    assert output_files.format_of(None if output is None else Path(output), given) == found


@pytest.mark.parametrize(("output", "given"), [("a.bmp", None), ("a.png", "jpeg")])
def test_an_ending_that_contradicts_is_refused(output: str, given: api_types.OutputFormat | None) -> None:
    with pytest.raises(BadInput):
        output_files.format_of(Path(output), given)


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("a red ball on a blue background", "a-red-ball-on-a-blue-background"),
        ("  ../../etc/passwd ", "etc-passwd"),
        ("!!!", "image"),
        ("", "image"),
        ("Ein grüner Würfel", "ein-grüner-würfel"),
    ],
)
def test_a_made_up_name_says_the_prompt_and_stays_here(prompt: str, name: str) -> None:
    assert output_files.slug(prompt) == name


@pytest.mark.parametrize("prompt", ["word " * 500, "w" * 500, "絵" * 500])
def test_a_made_up_name_fits_into_a_file_system(prompt: str) -> None:
    assert 0 < len(output_files.slug(prompt).encode()) <= 100


def test_several_outputs_are_numbered() -> None:
    assert output_files.numbered(Path("d/out.png"), 1) == [Path("d/out.png")]
    assert output_files.numbered(Path("d/out.png"), 2) == [Path("d/out-0.png"), Path("d/out-1.png")]


def test_a_taken_name_is_refused_before_anything_is_rendered(tmp_path: Path) -> None:
    taken = tmp_path / "out.png"
    taken.touch()
    with pytest.raises(BadInput, match="--force"):
        output_files.refuse_taken([taken], force=False)
    output_files.refuse_taken([taken], force=True)
    with pytest.raises(BadInput, match="does not exist"):
        output_files.refuse_taken([tmp_path / "nowhere" / "out.png"], force=True)
    assert output_files.free(taken) == tmp_path / "out-2.png"


def png(colour: tuple[int, int, int], **texts: str) -> bytes:
    info = PngInfo()
    for name, text in texts.items():
        info.add_text(name, text)
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def test_the_recipe_of_an_image_is_its_request(tmp_path: Path) -> None:
    spec = job_spec({
        "task": "image-to-image", "model": "starter", "prompt": "a cube", "negative_prompt": "",
        "num_inference_steps": 5,
        "guidance_scale": 4.0, "scheduler": "ddim", "seed": 9, "num_outputs": 3, "width": 64, "height": 64,
        "strength": 0.5, "output_format": "png",
        "inputs": {"image": InputFile(sha256="ab" * 32, key="k", media_type="image/png", size=99)},
    })  # fmt: skip
    data = png((0, 0, 0), farm=recipe.recipe_json(spec, 2, {"numerics": "cpu-0123456789ab"}))
    (tmp_path / "x.png").write_bytes(data)
    file = read_output(tmp_path / "x.png")
    read, request = file.data, file.request
    assert file.numerics == "cpu-0123456789ab"
    assert read == data
    assert request["seed"] == 11, "the seed of this image, not of the job"
    assert request["num_outputs"] == 1
    assert request["image"] == f"sha256:{'ab' * 32}"


@pytest.mark.parametrize("data", [b"", b"no image", png((0, 0, 0)), png((0, 0, 0), farm="{}")])
def test_an_image_without_a_recipe_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(data)
    with pytest.raises(BadInput):
        read_output(tmp_path / "x.png")


def test_the_largest_difference_between_two_outputs_is_said() -> None:
    first = Image.new("RGB", (10, 10), (100, 100, 100))
    second = first.copy()
    second.putpixel((3, 3), (100, 103, 99))
    files = []
    for image in (first, second):
        files.append(io.BytesIO())
        image.save(files[-1], "PNG")
    one, other = (file.getvalue() for file in files)
    assert difference(one, other) == "largest difference 3/255, in 0.67 % of the values"
    assert difference(one, png((0, 0, 0))) == "the sizes differ"


def test_the_largest_difference_between_two_sounds_is_said() -> None:
    numpy, soundfile = pytest.importorskip("numpy"), pytest.importorskip("soundfile")
    files = []
    for value in (0.0, 0.25):
        samples = numpy.zeros(100, "float32")
        samples[50] = value
        files.append(io.BytesIO())
        soundfile.write(files[-1], samples, 8_000, "FLOAT", format="WAV")
    one, other = (file.getvalue() for file in files)
    assert difference(one, other) == "largest difference 0.25 of the range of values"


def test_two_downloads_into_one_directory_do_not_disturb_each_other(tmp_path: Path) -> None:
    path, data = tmp_path / "x.png", b"x" * 100_000
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: output_files.save(path, data), range(400)))
    assert [one.name for one in tmp_path.iterdir()] == ["x.png"]
    assert path.read_bytes() == data
