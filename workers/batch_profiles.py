"""Keeps what was measured about a device's forwards between processes: measuring takes seconds.

One small file for each profile, named by a hash of everything that it depends on: the device, torch, its threads, the
weights, the module and the shapes of its arguments. A file that cannot be read is measured again.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import structlog

log = structlog.stdlib.get_logger()

VERSION = 3  #: increases when what is measured, or how, changes


@dataclass(frozen=True)
class BatchProfile:
    """How many rows the forwards of one module get at one size."""

    max_rows: int  #: of a forward: more are not efficient
    #: For exact sharing: the numbers of calls that may share a forward, and the modules that run in chunks then.
    calls: tuple[int, ...] = ()
    modules: tuple[str, ...] = ()


class BatchProfiles:
    """The profiles of one device."""

    def __init__(self, directory: Path | None, environment: str = "") -> None:
        """``directory``: None keeps nothing; ``environment``: what all profiles of this process depend on."""
        self._directory = directory
        self._environment = environment

    def load(self, name: str) -> BatchProfile | None:
        """The profile of that name, if one is kept."""
        if self._directory is None:
            return None
        try:
            read = json.loads(self._path(name).read_text("utf-8"))
            return BatchProfile(
                int(read["max_rows"]), tuple(int(count) for count in read["calls"]), tuple(map(str, read["modules"]))
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def save(self, name: str, profile: BatchProfile) -> None:
        """Keep a profile. If the disk does not take it, the next process measures again."""
        if self._directory is None:
            return
        path = self._path(name)
        content = {
            "name": name,
            "environment": self._environment,
            "max_rows": profile.max_rows,
            "calls": profile.calls,
            "modules": profile.modules,
        }
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = path.with_suffix(f".{os.getpid()}")
            draft.write_text(json.dumps(content), "utf-8")
            draft.replace(path)
        except OSError as error:
            log.warning("cannot keep a batch profile", action="profile_unsaved", path=str(path), error=str(error))

    def _path(self, name: str) -> Path:
        assert self._directory is not None
        digest = hashlib.sha256(f"{VERSION}\0{self._environment}\0{name}".encode()).hexdigest()
        return self._directory / f"{digest[:32]}.json"
