"""What a device has learnt about sharing forwards, kept between processes: trying it out takes seconds.

One small file for each lesson under the data directory, named by a hash of everything that it depends on: the device,
torch, its threads, the weights, the module and the shapes of its arguments. A file that cannot be read is learnt again.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import structlog

log = structlog.stdlib.get_logger()

VERSION = 1  #: goes up when what is tried, or how, changes


@dataclass(frozen=True)
class Lesson:
    """Of one module at one size."""

    most: int  #: rows of a forward that pay
    #: By the rows of a call: the least and most rows of forwards with equal bits.
    spans: dict[int, tuple[int, int]] = field(default_factory=dict)


class Lessons:
    """The lessons of one device."""

    def __init__(self, folder: Path | None, about: str = "") -> None:
        """``folder``: None keeps nothing; ``about``: what all lessons of this process depend on."""
        self._folder = folder
        self._about = about

    def recall(self, name: str) -> Lesson | None:
        """What was learnt under that name."""
        if self._folder is None:
            return None
        try:
            read = json.loads(self._path(name).read_text("utf-8"))
            spans = {int(rows): (int(least), int(most)) for rows, (least, most) in read["spans"].items()}
            return Lesson(int(read["most"]), spans)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def keep(self, name: str, lesson: Lesson) -> None:
        """Remember a lesson. A disk that does not take it costs the next process some seconds and nothing else."""
        if self._folder is None:
            return
        path = self._path(name)
        body = {"name": name, "about": self._about, "most": lesson.most, "spans": lesson.spans}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = path.with_suffix(f".{os.getpid()}")
            draft.write_text(json.dumps(body), "utf-8")
            draft.replace(path)
        except OSError as error:
            log.warning("a lesson is not kept", action="lesson_lost", path=str(path), error=str(error))

    def _path(self, name: str) -> Path:
        assert self._folder is not None
        digest = hashlib.sha256(f"{VERSION}\0{self._about}\0{name}".encode()).hexdigest()
        return self._folder / f"{digest[:32]}.json"
