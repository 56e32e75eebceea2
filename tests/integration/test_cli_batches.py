"""``farm submit``, ``watch``, ``get`` and ``batches`` against a running API."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from farm.settings import Settings
from tests.api_server import Api, Hand, png, running


@pytest.fixture
def api(farm_env: dict[str, str]) -> Iterator[Api]:
    with running(Settings()) as one:
        yield one


def farm(
    api: Api, *words: str, stdin: bytes | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "farm.cli", *words],
        input=stdin,
        capture_output=True,
        timeout=60,
        cwd=cwd,
        env={"FARM_URL": api.url, "FARM_API_KEY": api.key, "PATH": "", "PYTHONPATH": str(Path(__file__).parents[2])},
    )


def test_a_table_goes_out_and_its_images_come_back_whole(api: Api, tmp_path: Path) -> None:
    table = tmp_path / "night.csv"
    table.write_text("custom_id,prompt,seed\n" + "".join(f"ball-{n},ball {n},{n}\n" for n in range(12)))
    size = ("--size", "64x64")
    tried = farm(api, "submit", str(table), "--dry-run", *size)
    assert tried.returncode == 0, tried.stderr
    assert tried.stdout.startswith(b"12 jobs, ")
    sent = farm(api, "submit", str(table), "--name", "night", "--key", "n1", *size)
    assert sent.returncode == 0, sent.stderr
    batch_id = sent.stdout.decode().strip()
    assert farm(api, "submit", str(table), "--name", "night", "--key", "n1", *size).stdout == sent.stdout
    stopping = threading.Event()
    rendering = threading.Thread(target=Hand(api).run_all, args=[stopping])
    rendering.start()
    try:
        watched = farm(api, "watch", batch_id)
    finally:
        stopping.set()
        rendering.join()
    assert watched.returncode == 1  # each third one failed
    assert b"completed: 8 succeeded, 4 failed, 0 canceled" in watched.stderr
    listed = json.loads(farm(api, "batches", "--json").stdout)
    assert [(one["id"], one["name"]) for one in listed] == [(batch_id, "night")]

    out = tmp_path / "out"
    got = farm(api, "get", batch_id, "-o", str(out))
    assert got.returncode == 1, got.stderr
    assert b"8 images" in got.stdout
    assert got.stderr.count(b"it was not to be") == 4
    names = sorted(path.name for path in out.iterdir())
    assert len(names) == 8
    assert names[0] == "000001-ball-0-0.png"
    whole = hashlib.sha256(png()).digest()
    assert {hashlib.sha256(path.read_bytes()).digest() for path in out.iterdir()} == {whole}
    # a second time only what is missing or damaged is fetched
    (out / names[0]).unlink()
    (out / names[1]).write_bytes(b"x" * len(png()))
    again = json.loads(farm(api, "get", batch_id, "-o", str(out), "--json").stdout)
    assert (again["downloaded"], again["already_here"]) == (2, 6)
    assert {hashlib.sha256(path.read_bytes()).digest() for path in out.iterdir()} == {whole}
    named = farm(api, "get", batch_id, "-o", str(tmp_path / "named"), "--name", "{custom_id}/{seed}{suffix}")
    assert b"8 images" in named.stdout
    assert (tmp_path / "named" / "ball-0" / "0.png").is_file()
    assert farm(api, "get", batch_id, "--name", "{colour}").returncode == 2


def test_invalid_lines_are_reported_and_skipped_only_on_request(api: Api) -> None:
    body = b'{"prompt": "a"}\n{"prompt": "b", "seed": -4}\n{"promt": "c"}\n'
    refused = farm(api, "submit", "-", "--format", "jsonl", stdin=body)
    assert refused.returncode == 2
    assert b"line 2: seed: " in refused.stderr
    assert b"line 3: promt: is not a field of this request" in refused.stderr
    assert b"nothing was submitted" in refused.stderr
    assert json.loads(farm(api, "batches", "--json").stdout) == []
    taken = farm(api, "submit", "-", "--format", "jsonl", "--skip-invalid", "--json", stdin=body)
    assert taken.returncode == 0, taken.stderr
    assert json.loads(taken.stdout)["skipped"] == 2
    batch_id = json.loads(taken.stdout)["id"]
    assert farm(api, "pause", batch_id).stdout.decode() == f"{batch_id}  paused, 1 jobs wait\n"
    assert farm(api, "resume", batch_id, "--priority", "normal").returncode == 0
    assert farm(api, "cancel", batch_id).stdout.decode() == f"{batch_id}  canceled\n"
    again = farm(api, "retry", batch_id)
    assert again.stdout.decode().endswith(f"  retries {batch_id}\n"), again.stderr
    assert b"1 jobs and 0 images" in farm(api, "delete", batch_id, "--dry-run").stdout
    assert farm(api, "delete", batch_id, "--yes").returncode == 0
    assert farm(api, "watch", batch_id).returncode == 2
    assert farm(api, "submit", "-").returncode == 2
    assert b"there is no file" in farm(api, "submit", "no-such.csv").stderr


def test_a_sweep_is_one_job_for_each_combination(api: Api) -> None:
    words = ("submit", "--sweep", "guidance_scale=1,2.5", "--sweep", "seed=1..3", "--sweep", "size=64x64,128x64")
    sent = farm(api, *words, "--prompt", "a red ball", "--repeats", "2", "--json")
    assert sent.returncode == 0, sent.stderr
    batch = json.loads(sent.stdout)
    assert batch["request_counts"]["total"] == 2 * 3 * 2 * 2
    with api.client() as client:
        jobs = client.get(f"/v1/batches/{batch['id']}/jobs", params={"limit": 200}).json()["data"]
    made = {tuple(job["parameters"][name] for name in ("guidance_scale", "seed", "width", "height")) for job in jobs}
    assert {one[0] for one in made} == {1, 2.5}
    assert {one[2:] for one in made} == {(64, 64), (128, 64)}
    assert {one[1] for one in made} == {1, 2, 3, 4}  # each of two repeats has the next seed
    tried = farm(api, *words, "--prompt", "a red ball", "--dry-run")
    assert tried.stdout.startswith(b"12 jobs, ")
    for wrong, said in (
        (("submit",), b"give either a file of jobs, or --sweep"),
        (("submit", "-", "--sweep", "seed=1"), b"give either a file of jobs, or --sweep"),
        (("submit", "--sweep", "sed=1"), b"is not a parameter of jobs"),
        (("submit", "--sweep", "seed=9..1"), b"must go up"),
    ):
        refused = farm(api, *wrong)
        assert refused.returncode == 2
        assert said in refused.stderr
    some = farm(api, "submit", "--sweep", "seed=1,-2", "--prompt", "a red ball", "--skip-invalid", "--json")
    assert json.loads(some.stdout)["request_counts"]["total"] == json.loads(some.stdout)["skipped"] == 1
    unusable = farm(api, "submit", "--sweep", "guidance_scale=high", "--prompt", "a red ball")
    assert unusable.returncode == 2
    assert b"guidance_scale" in unusable.stderr
