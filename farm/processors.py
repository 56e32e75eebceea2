"""How many processors this process may use, as its affinity and its container's quota say.

`os.cpu_count` counts the machine's. A container with a quota of half a processor on a machine of 64 would start 64
threads that wait for each other.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

CGROUPS: Final = Path("/sys/fs/cgroup")


def available(cgroups: Path = CGROUPS) -> int:
    """Processors, at least 1; a quota of 2.5 counts as 2.

    Args:
        cgroups: Where the control groups are mounted, version 1 or 2.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(cgroups)
    return max(1, affinity if quota is None else min(affinity, int(quota)))


def for_workers(workers: int, cgroups: Path = CGROUPS) -> int:
    """Threads for each of some workers that render on the processors of a machine, beside the farm's servers.

    One processor is left to the servers: on two processors, two threads that wait for each other and for them render
    a quarter to a third fewer images than one.
    """
    return max(1, (available(cgroups) - 1) // max(1, workers))


def _quota(cgroups: Path) -> float | None:
    """Processors that the quota allows; None without one."""
    try:
        quota, period = (cgroups / "cpu.max").read_text().split()[:2]
    except (OSError, ValueError):
        try:
            quota = (cgroups / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (cgroups / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    if not (quota.isdigit() and period.isdigit()) or int(period) == 0:  # "max" and -1: no limit
        return None
    return int(quota) / int(period)
