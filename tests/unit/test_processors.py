"""How many processors a process may use, and how many threads the workers of one machine get."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from farm import processors


@pytest.fixture(autouse=True)
def eight_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


@pytest.mark.parametrize(
    ("quota", "count"),
    [("max 100000", 8), ("50000 100000", 1), ("250000 100000", 2), ("1600000 100000", 8), ("rubbish", 8), ("1 0", 8)],
)
def test_the_quota_of_a_container_limits_the_processors(tmp_path: Path, quota: str, count: int) -> None:
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert processors.available(tmp_path) == count


@pytest.mark.parametrize(("quota", "count"), [("-1", 8), ("300000", 3)])
def test_the_quota_of_control_groups_of_version_1_counts_too(tmp_path: Path, quota: str, count: int) -> None:
    root = tmp_path / "cpu"
    root.mkdir()
    (root / "cpu.cfs_quota_us").write_text(quota)
    (root / "cpu.cfs_period_us").write_text("100000")
    assert processors.available(tmp_path) == count


def test_without_a_quota_the_affinity_decides(tmp_path: Path) -> None:
    assert processors.available(tmp_path) == 8


@pytest.mark.parametrize(("workers", "threads"), [(1, 7), (2, 3), (3, 2), (8, 1), (20, 1)])
def test_workers_leave_one_processor_to_the_servers(tmp_path: Path, workers: int, threads: int) -> None:
    assert processors.for_workers(workers, tmp_path) == threads


def test_a_machine_with_one_processor_gets_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert processors.for_workers(1, tmp_path) == 1
