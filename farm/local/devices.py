"""Which devices this machine has, found without loading torch."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from farm.errors import SetupError


def visible(environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The accelerators that a process with this environment may use: ``cuda:<i>`` or ``mps``; none on a plain machine.

    ``CUDA_VISIBLE_DEVICES`` hides devices as it does from CUDA; the numbers are the ones that remain.
    """
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        return ("mps",)
    count = _nvidia_count()
    chosen = environment.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None and count:
        count = min(count, _chosen(chosen))
    return tuple(f"cuda:{index}" for index in range(count))


def for_workers(devices: tuple[str, ...], workers: int | None) -> tuple[str, ...]:
    """The device of each worker: every accelerator, or the CPU where there is none; ``workers`` asks for a number.

    Raises SetupError when more are asked for than there are accelerators: one device has one worker.
    """
    if workers is None:
        return devices or ("cpu0",)
    if not devices:
        return tuple(f"cpu{index}" for index in range(workers))
    if workers > len(devices):
        raise SetupError(
            f"--workers {workers}: this machine has {len(devices)} device{'s'[: len(devices) != 1]} "
            f"({', '.join(devices)}) "
            "and a device has one worker; ask for fewer, or leave --workers out"
        )
    return devices[:workers]


def _chosen(value: str) -> int:
    count = 0
    for part in value.split(","):
        # CUDA stops at the first entry that names no device: "0,-1,1" shows one.
        if not part.strip() or part.strip().startswith("-"):
            break
        count += 1
    return count


def _nvidia_count() -> int:
    program = shutil.which("nvidia-smi")
    if program is not None:
        try:
            found = subprocess.run(
                [program, "-L"], capture_output=True, text=True, timeout=10, check=False, stdin=subprocess.DEVNULL
            )
        except (OSError, subprocess.TimeoutExpired):
            pass
        else:
            if found.returncode == 0:
                return sum(line.startswith("GPU ") for line in found.stdout.splitlines())
    # Without the tool: the driver's own list, or the device files that a container was given.
    driver = list(Path("/proc/driver/nvidia/gpus").glob("*"))
    devices = [path for path in Path("/dev").glob("nvidia[0-9]*") if path.name.removeprefix("nvidia").isdigit()]
    return min(len(driver), len(devices)) if driver and devices else len(devices)
