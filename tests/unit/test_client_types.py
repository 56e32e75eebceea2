"""What an editor and mypy know of the client: parameters by name and type, and what comes back."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from farm.client import Artifact, Job, Output, Rendered
from tools import api_types

ROOT = Path(__file__).parents[2]

SAMPLE = """
from datetime import UTC, datetime
from pathlib import Path

from farm.client import AsyncFarm, Farm

farm = Farm("http://127.0.0.1:1", "key")
rendered = farm.run("a ball", seed=7, num_inference_steps=20, scheduler="ddim", image=Path("in.png"), timeout=60)
reveal_type(rendered.images[0].data)
reveal_type(rendered.images[0].save("ball.png"))
reveal_type(rendered.images[0].seed)
job = farm.submit("a ball", loras=[{"name": "ink", "scale": 0.5}], deadline=datetime.now(UTC))
reveal_type(job)
farm.submit_batch(Path("jobs.csv"), on_error="skip", guidance_scale=4)
reveal_type(next(farm.submit_many([{"prompt": "a ball"}], width=64).as_completed()))
for one in farm.list(state="failed", limit=3):
    reveal_type(one.state)
farm.add_endpoint("https://example.com", events=["batch.completed"])

farm.run("a ball", sed=7)  # wrong
farm.submit("a ball", seed="7")  # wrong
farm.submit("a ball", output_format="tiff")  # wrong
farm.submit_batch(Path("jobs.csv"), height="64")  # wrong
farm.cancel_jobs(stat="queued")  # wrong
farm.make_key("night", scopes=["everything"])  # wrong


async def more() -> None:
    async with AsyncFarm() as apart:
        reveal_type((await apart.run("a ball", width=64)).images[0].media_type)
        await apart.submit("a ball", wide=64)  # wrong
"""


def test_mypy_knows_each_parameter_and_each_result(tmp_path: Path) -> None:
    file = tmp_path / "sample.py"
    file.write_text(SAMPLE)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "--no-error-summary", str(file)],
        capture_output=True, text=True, timeout=170, check=False, cwd=ROOT,
        env={**os.environ, "MYPYPATH": str(ROOT)},
    )  # fmt: skip
    # mypy's cache may answer with the directory of an earlier run
    told = re.findall(r"(?m)^.*/sample\.py:(\d+): (.*)$", done.stdout)
    revealed = [found[1] for _, line in told if (found := re.search(r'Revealed type is "(.*)"', line))]
    assert revealed == ["bytes", "pathlib.Path", "int", "farm.client.models.Job", "farm.client.models.Result", "str", "str"]  # fmt: skip # noqa: E501
    refused = {int(number) for number, line in told if line.startswith("error:")}
    wrong = {number for number, line in enumerate(SAMPLE.splitlines(), 1) if line.endswith("# wrong")}
    assert refused == wrong, done.stdout


def test_the_types_are_those_of_the_api() -> None:
    assert api_types.TARGET.read_text() == api_types.generate(), "run `python -m tools.api_types`"


@pytest.fixture
def image() -> Artifact:
    output = Output(f"job_{7:032x}", 1, "http://x", "image/webp", 3, "00", 9, 64, 32, {})
    return Artifact(output, b"abc")


def test_an_image_is_saved_as_a_file_or_into_a_directory(image: Artifact, tmp_path: Path) -> None:
    assert image.save(tmp_path / "ball.webp").read_bytes() == b"abc"
    assert image.save(str(tmp_path)) == tmp_path / f"job_{7:032x}-1.webp"
    assert (image.media_type, image.seed, image.width, image.height) == ("image/webp", 9, 64, 32)


def test_only_images_are_images(image: Artifact) -> None:
    sound = Artifact(Output("job_1", 0, "http://x", "audio/flac", 3, "00", 9, None, None, {}), b"abc")
    job = Job.of({"id": "job_1", "state": "succeeded", "task": "text-to-image", "model": "starter"})
    rendered = Rendered(job, (sound, image))
    assert rendered.images == (image,)
    assert rendered.artifacts == (sound, image)
