"""A process that looks into one clip or sound, so that a hostile one can neither crash nor fill the process that asks.

It has no secrets in its environment, and limits on its memory and its processor time that it cannot raise again.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from dataclasses import asdict
from typing import Any, Final

from farm.domain.media import FORMATS, MediaFormat, MediaMetadata
from farm.errors import FieldProblem, InputRefused
from farm.objects.limits import Limits
from farm.pipelines.spec import Media

MEMORY: Final = 768 * 2**20  #: bytes that the process may allocate
CPU_SECONDS: Final = 60
WALL_SECONDS: Final = 120.0  #: on a busy machine
_COMMAND: Final = "from farm.objects.probe import main; main()"
_KEPT: Final = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR")  #: of the environment


def probe(data: bytes, form: MediaFormat, limits: Limits, field: str) -> MediaMetadata:
    """What a clip or sound holds.

    Raises:
        InputRefused: it does not decode, or not within the limits.
    """
    environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
    environment["PYTHONPATH"] = os.pathsep.join(one for one in sys.path if one)
    wanted = {"name": form.name, "media": form.media, "field": field, "limits": asdict(limits)}
    try:
        done = subprocess.run(  # noqa: S603  our own interpreter and a constant
            [sys.executable, "-c", _COMMAND, json.dumps(wanted)],
            input=data,
            capture_output=True,
            env=environment,
            timeout=WALL_SECONDS,
            check=False,
        )
        answer = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, ValueError) as error:
        message = f"the file does not decode within {CPU_SECONDS} seconds and {MEMORY >> 20} MiB"
        raise InputRefused(FieldProblem(field, "a costly file", message)) from error
    if "refused" in answer:
        raise InputRefused(*(FieldProblem(*one) for one in answer["refused"]))
    found: MediaMetadata = answer["metadata"]
    return found


def main() -> None:
    """The process: the file on its standard input, the answer as JSON on its standard output."""
    os.nice(5)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    wanted = json.loads(sys.argv[1])
    form = next(one for one in FORMATS if (one.name, one.media) == (wanted["name"], wanted["media"]))
    answer: dict[str, Any]
    try:
        answer = {"metadata": _measure(sys.stdin.buffer.read(), form, Limits(**wanted["limits"]), wanted["field"])}
    except InputRefused as refused:
        answer = {"refused": [(one.field, str(one.value), one.message) for one in refused.problems]}
    sys.stdout.write(json.dumps(answer))
    sys.stdout.flush()
    os._exit(0)  # a decoder that was damaged is not asked to clean up


def _measure(data: bytes, form: MediaFormat, limits: Limits, field: str) -> MediaMetadata:
    if form.media is Media.AUDIO:
        from farm.objects import sounds  # noqa: PLC0415  loads libsndfile, which a clip does not need

        return sounds.measure(data, form, limits, field)
    from farm.objects import clips  # noqa: PLC0415

    return clips.measure(data, form, limits, field)
