"""``farm login`` keeps an address and a key, safely, and commands use them. Outputs show themselves in a notebook."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from farm.cli import profiles
from farm.client import Artifact, ContactSheet, Job, Output, Rendered
from tests.unit.scripted_server import Answer, Asked, serving

ROOT = Path(__file__).parents[2]


def farm(home: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {"HOME": str(home), "PATH": "", "PYTHONPATH": str(ROOT), "BROWSER": "true"}
    return subprocess.run(
        [sys.executable, "-m", "farm.cli", *words],
        capture_output=True, text=True, timeout=60, check=False, cwd=home, env=kept | environment,
    )  # fmt: skip


def answer(asked: Asked, _: int) -> Answer:
    if asked.headers.get("authorization") != "Bearer farm_good":
        return Answer(401, {"title": "Unauthorized", "status": 401, "detail": "the API key is not known"})
    return Answer(200, {"data": [], "next": None})


def test_a_login_is_checked_kept_for_its_owner_alone_and_used(tmp_path: Path) -> None:
    with serving(answer) as server:
        refused = farm(tmp_path, "login", server.url, "--api-key", "farm_bad")
        assert refused.returncode != 0
        assert "not known" in refused.stderr
        assert not list(tmp_path.rglob("profiles.json"))
        done = farm(tmp_path, "login", server.url, "--api-key", "farm_good")
        assert done.returncode == 0, done.stderr
        assert "farm_good" not in done.stdout + done.stderr
        (file,) = tmp_path.rglob("profiles.json")
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert farm(tmp_path, "ls", "--json").stdout.strip() == "[]"
        assert farm(tmp_path, "open").stdout.strip() == f"{server.url}/farm"
        assert farm(tmp_path, "login", server.url, "--api-key", "farm_good", "--profile", "night").returncode == 0
        assert farm(tmp_path, "ls", "--json", FARM_PROFILE="night").stdout.strip() == "[]"
        unknown = " ".join(farm(tmp_path, "ls", FARM_PROFILE="day").stderr.split())
        assert "there is no profile 'day'; there are: default, night" in unknown
        assert farm(tmp_path, "logout").returncode == 0
        assert "no farm is running here" in " ".join(farm(tmp_path, "ls").stderr.split())


@pytest.mark.parametrize("text", ["", "[]", '{"default": 3}', '{"default": {"url": "x"}}', "\x00"])
def test_a_damaged_file_is_no_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    file = tmp_path / "profiles.json"
    file.write_text(text)
    monkeypatch.setenv("FARM_PROFILES", str(file))
    assert profiles.load(None) is None
    profiles.save("one", "http://127.0.0.1:1", "key")
    assert profiles.load("one") == ("http://127.0.0.1:1", "key")


def artifact(media_type: str, data: bytes = b"<script>") -> Artifact:
    return Artifact(Output("job_1", 0, "http://x", media_type, len(data), "", 7, 8, 8, {}), data)


def test_a_notebook_shows_each_kind_of_output_and_runs_none_of_it() -> None:
    for media_type, element in (("image/png", "<img"), ("video/mp4", "<video"), ("audio/flac", "<audio")):
        shown = artifact(media_type)._repr_html_()
        assert shown.startswith(element)
        assert "base64,PHNjcmlwdD4=" in shown
        assert "<script>" not in shown
    assert "save it" in artifact("video/mp4", bytes(33 * 2**20))._repr_html_()
    job = Job.of({"id": "job_1", "state": "succeeded", "task": "text-to-image", "model": "m", "parameters": {}})
    sheet = ContactSheet([Rendered(job, (artifact("image/png"),))] * 203)._repr_html_()
    assert sheet.count("<img") == 200
    assert "and 3 more" in sheet
    assert 'src="x"' not in artifact('image/png" src="x')._repr_html_()
