"""The commands of a person at a terminal, and other people's clients, against a whole farm with a real device."""

from __future__ import annotations

import hashlib
import io
import json
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from farm.client import Farm
from farm.objects import recipes
from tests.acceptance.conftest import RunningFarm, farm_command
from tests.compat.environment import run_client

STEPS = ("--steps", "4")


@pytest.fixture(scope="module")
def image(running_farm: RunningFarm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image that the farm rendered."""
    directory = tmp_path_factory.mktemp("image")
    done = running_farm(
        "render", "a red ball on a blue background", "-o", "out.png", "--seed", "7", *STEPS, cwd=directory
    )
    assert done.stdout.startswith("out.png  seed 7  128x128  ")
    assert "succeeded" in done.stderr
    return directory / "out.png"


def test_a_rendered_image_s_metadata_renders_it_again_bit_for_bit(
    running_farm: RunningFarm, image: Path, tmp_path: Path
) -> None:
    with Image.open(image) as opened:
        assert opened.size == (128, 128)
    done = running_farm("rerun", image, "-o", "again.png", cwd=tmp_path)
    assert "bit-identical" in done.stdout
    assert (tmp_path / "again.png").read_bytes() == image.read_bytes()


def test_an_image_that_was_changed_is_found_out(running_farm: RunningFarm, image: Path, tmp_path: Path) -> None:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("farm", recipes.read(io.BytesIO(image.read_bytes())) or "")
    with Image.open(image) as opened:
        opened.putpixel((0, 0), (1, 2, 3))
        opened.save(tmp_path / "changed.png", pnginfo=info)
    done = running_farm("rerun", "changed.png", "--json", cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert json.loads(done.stdout)["same"] == ["different"]


def test_a_job_is_rendered_again_by_its_id(running_farm: RunningFarm, tmp_path: Path) -> None:
    done = running_farm("render", "a green cube", "-n", "2", "-o", "cube.webp", "--json", *STEPS, cwd=tmp_path)
    job: dict[str, Any] = json.loads(done.stdout)
    files = [tmp_path / one["path"] for one in job["files"]]
    assert [file.name for file in files] == ["cube-0.webp", "cube-1.webp"]
    for file, told in zip(files, job["files"], strict=True):
        assert hashlib.sha256(file.read_bytes()).hexdigest() == told["sha256"]
    assert running_farm("rerun", job["id"], cwd=tmp_path).stdout.count("bit-identical") == 2
    alone = json.loads(running_farm("rerun", files[1], "--json", cwd=tmp_path).stdout)
    assert alone["same"] == ["identical"], "the second image of a job is a job of its own"


@pytest.mark.parametrize("task", ["image-to-image", "inpainting", "depth-to-image"])
def test_each_task_with_images_from_here(running_farm: RunningFarm, image: Path, tmp_path: Path, task: str) -> None:
    mask = Image.new("L", (128, 128))
    ImageDraw.Draw(mask).ellipse((16, 16, 48, 48), fill=255)
    mask.save(tmp_path / "mask.png")
    extra = {"inpainting": ("--mask", "mask.png"), "depth-to-image": ("--task", task)}.get(task, ())
    done = running_farm(
        "render", "a green cube on a blue background", "--image", image, *extra, "--strength", "0.9", "--json",
        *STEPS, cwd=tmp_path,
    )  # fmt: skip
    job = json.loads(done.stdout)
    assert job["task"] == task
    [file] = job["files"]
    assert running_farm("rerun", file["path"], cwd=tmp_path).stdout.count("bit-identical") == 1


def test_listing_and_showing(running_farm: RunningFarm, image: Path, tmp_path: Path) -> None:
    listed = json.loads(running_farm("ls", "--state", "succeeded", "--limit", "3", "--json", cwd=tmp_path).stdout)
    assert 1 <= len(listed) <= 3
    shown = running_farm("show", listed[0]["id"], cwd=tmp_path).stdout
    assert listed[0]["outputs"][0]["sha256"] in shown.replace("\n", "").replace(" ", "")
    assert json.loads(running_farm("show", listed[0]["id"], "--json", cwd=tmp_path).stdout)["id"] == listed[0]["id"]
    assert listed[0]["id"] in running_farm("ls", cwd=tmp_path).stdout
    assert "a red ball" in running_farm("models", cwd=tmp_path).stdout
    assert "online" in running_farm("workers", cwd=tmp_path).stdout


def test_cancel_and_retry(running_farm: RunningFarm, tmp_path: Path) -> None:
    job_id = running_farm(
        "render", "a white cone", "--no-wait", "--steps", "150", "-n", "16", "--priority", "bulk", cwd=tmp_path
    ).stdout.strip()
    running_farm("cancel", job_id, cwd=tmp_path)
    with Farm(running_farm.url, running_farm.api_key) as farm:
        assert farm.wait(job_id, timeout=60).state == "canceled"
    again = json.loads(running_farm("retry", job_id, "--json", cwd=tmp_path).stdout)
    assert [one["retry_of"] for one in again] == [job_id]
    running_farm("cancel", again[0]["id"], cwd=tmp_path)


def test_keys_are_made_and_revoked(running_farm: RunningFarm, tmp_path: Path) -> None:
    made = json.loads(running_farm("keys", "create", "reader", "--scope", "read", "--json", cwd=tmp_path).stdout)
    assert farm_command("ls", "--url", running_farm.url, "--api-key", made["key"], cwd=tmp_path).returncode == 0
    refused = farm_command("render", "x", "--url", running_farm.url, "--api-key", made["key"], cwd=tmp_path)
    assert refused.returncode == 2
    running_farm("keys", "revoke", made["id"], cwd=tmp_path)
    assert farm_command("ls", "--url", running_farm.url, "--api-key", made["key"], cwd=tmp_path).returncode == 2
    assert made["id"] in running_farm("keys", cwd=tmp_path).stdout


def test_the_farm_of_a_data_directory_is_found_without_a_key(running_farm: RunningFarm, tmp_path: Path) -> None:
    assert farm_command("workers", "--data-dir", running_farm.data_dir, cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--size", "7x64"], "width"),
        (["--steps", "0"], "num_inference_steps"),
        (["--model", "none"], "model"),
        (["--seed", "-1"], "seed"),
        (["--task", "inpainting"], "image"),
    ],
)
def test_a_mistake_is_one_sentence_that_names_the_field(
    running_farm: RunningFarm, tmp_path: Path, arguments: list[str], named: str
) -> None:
    done = running_farm("render", "x", *arguments, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith("farm: ")
    assert named in line


def test_an_unknown_job_is_exit_2(running_farm: RunningFarm, tmp_path: Path) -> None:
    for command in ("show", "cancel", "retry"):
        done = running_farm(command, f"job_{1:032x}", cwd=tmp_path, check=False)
        assert done.returncode == 2, command
        assert "Traceback" not in done.stderr


def test_a_wait_reports_the_steps(running_farm: RunningFarm) -> None:
    steps: list[int] = []
    with Farm(running_farm.url, running_farm.api_key) as farm:
        began = time.monotonic()
        rendered = farm.run(
            "a blue box",
            num_inference_steps=60,
            on_progress=lambda job: steps.append(job.progress.step if job.progress else 0),
            timeout=150,
        )
    assert rendered.job.succeeded
    assert steps == sorted(steps)
    assert len(set(steps)) > 1, f"no step was reported in {time.monotonic() - began:.1f} s"


def test_wrong_choice_names_what_is_allowed(running_farm: RunningFarm, tmp_path: Path) -> None:
    done = running_farm("render", "x", "--scheduler", "magic", cwd=tmp_path, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "magic" in done.stderr
    assert "ddim" in done.stderr


@pytest.mark.timeout(400)
def test_the_demo_renders_all_four_tasks_and_leaves_a_farm_that_ran_before(
    running_farm: RunningFarm, tmp_path: Path
) -> None:
    done = farm_command("demo", "--out", "shown", "--data-dir", running_farm.data_dir, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "12 jobs in" in done.stdout
    recipes_found = [
        recipes.read(io.BytesIO(file.read_bytes())) for file in sorted((tmp_path / "shown").glob("[01]*.png"))
    ]
    tasks = [json.loads(text)["parameters"]["task"] for text in recipes_found if text]
    counts = {task: tasks.count(task) for task in tasks}
    assert counts == {"text-to-image": 6, "image-to-image": 2, "inpainting": 2, "depth-to-image": 2}
    with Image.open(tmp_path / "shown" / "sheet.png") as sheet:
        assert sheet.width > 1000
    assert running_farm("workers", cwd=tmp_path).returncode == 0


def test_three_clients_get_the_same_bytes_for_the_same_recipe(running_farm: RunningFarm) -> None:
    told = run_client("one_image.py", FARM_URL=running_farm.url, FARM_KEY=running_farm.api_key)
    assert int(told) > 1_000
