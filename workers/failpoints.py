"""Failpoints: named places at which a test can make a worker's process, or its engine's, crash.

``FARM_CRASH_AT`` lists them, separated by commas; ``point=text`` crashes only for jobs whose prompt contains the text,
which makes a job that crashes every worker. Without the variable, nothing here has an effect.
"""

from __future__ import annotations

import os
from typing import Final

#: Places in the engine's process: the worker stays.
ENGINE_POINTS: Final = (
    "loading_model",
    "engine_mid_denoise",  #: at least one step is done
)
#: Places in the worker's process: the engine ends with it.
WORKER_POINTS: Final = (
    "after_receive",  #: a message arrived, the job is not claimed yet
    "after_claim",  #: the job runs, its inputs are not fetched yet
    "mid_denoise",  #: at least one step is done
    "after_encode",  #: a file is encoded, nothing is stored yet
    "mid_upload",  #: one output of several is stored
    "before_commit",  #: all outputs are stored
    "after_commit",  #: the job succeeded, the process does not know it yet
)
POINTS: Final = ENGINE_POINTS + WORKER_POINTS
EXIT_CRASHED: Final = 113

_enabled: Final = {
    part.strip().partition("=")[0]: part.strip().partition("=")[2]
    for part in os.environ.get("FARM_CRASH_AT", "").split(",")
    if part.strip()
}
if unknown := set(_enabled) - set(POINTS):
    raise SystemExit(f"FARM_CRASH_AT names {', '.join(sorted(unknown))}; the points are {', '.join(POINTS)}")


def at(point: str, prompt: str = "") -> None:
    """Crash here, as by SIGKILL, if the failpoint is enabled."""
    if _enabled and point in _enabled and _enabled[point] in prompt:
        os._exit(EXIT_CRASHED)
