"""The simulator: the same seed tells the same story, and the story is that the policy is fair."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tools.dispatch_simulator import Scenario, Simulation, main

SMALL = Scenario(workers=20, jobs=20_000, seconds=200, studios=3, models=3, loss_hours=0.5, round_seconds=0.2)


def test_the_same_seed_gives_the_same_run_and_fair_shares() -> None:
    first, again = Simulation(SMALL).run(), Simulation(SMALL).run()
    assert first["results"] == again["results"]
    results = first["results"]
    assert results["largest_share_error"] <= 0.02
    assert results["workers_lost"] > 0
    assert results["rendering"] + results["loading"] > 0.95
    assert results["tenants"]["lone"]["jobs"] > 0


def test_a_hundred_million_jobs_are_no_more_memory_than_their_heads() -> None:
    simulation = Simulation(Scenario(workers=10, jobs=10**8, seconds=20))
    simulation.run()
    assert sum(len(stream.known) for stream in simulation.streams) < 10_000


def test_the_program_writes_a_report_and_a_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--workers", "4", "--jobs", "1000", "--seconds", "60", "--seed", "7", "--out", str(tmp_path / "out")])
    report = json.loads((tmp_path / "out" / "simulation.json").read_text())
    assert report["scenario"]["seed"] == 7
    with Image.open(tmp_path / "out" / "simulation.png") as image:
        assert image.size == (960, 640)
    assert "4 workers, 1,000 jobs waiting" in capsys.readouterr().out
