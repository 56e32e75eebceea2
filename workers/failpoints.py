"""Named places at which a worker process can be told to die, so that a test can try each of them.

``FARM_CRASH_AT`` names them, with commas between; ``point=text`` dies only for jobs whose prompt holds the text, which
makes a job that kills its process. Without the variable nothing here does anything.
"""

from __future__ import annotations

import os
from typing import Final

POINTS: Final = (
    "after_receive",  #: a message arrived, nobody has asked for the job yet
    "after_claim",  #: the job runs, its inputs are not fetched yet
    "loading_model",
    "mid_denoise",  #: at least one step is done
    "after_encode",  #: a file is made, nothing is stored yet
    "mid_upload",  #: one output of several is stored
    "before_commit",  #: all outputs are stored
    "after_commit",  #: the job succeeded, and this process has not heard of it
)
EXIT_CRASHED: Final = 113

_wanted: Final = {
    part.strip().partition("=")[0]: part.strip().partition("=")[2]
    for part in os.environ.get("FARM_CRASH_AT", "").split(",")
    if part.strip()
}
if unknown := set(_wanted) - set(POINTS):
    raise SystemExit(f"FARM_CRASH_AT names {', '.join(sorted(unknown))}; the points are {', '.join(POINTS)}")


def at(point: str, prompt: str = "") -> None:
    """Die here, as a SIGKILL would have it, if that is what was asked for."""
    if _wanted and point in _wanted and _wanted[point] in prompt:
        os._exit(EXIT_CRASHED)
