"""The short form of `make chaos`: a whole farm is broken for some seconds, heals, and has managed every promise."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.__main__ import run


@pytest.mark.timeout(400)
def test_a_broken_farm_heals_and_keeps_its_promises(tmp_path: Path) -> None:
    # few jobs, and none that kills workers again and again: what takes long is left to the long form
    report = run(25.0, seed=3, workers=2, ahead=24, poison=0.0, directory=tmp_path / "farm")
    assert report["violations"] == []
    assert report["faults_total"] >= 3
    assert report["jobs"].get("succeeded", 0) > 0
