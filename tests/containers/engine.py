"""Docker's command line, as the acceptance uses it."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[2]
ENGINE: Final = (20, 10, 10)  #: the oldest one whose containers run what a Debian of today has
COMPOSE: Final = (2, 24, 0)  #: the oldest one that knows optional files of variables


class NoEngine(Exception):
    """The acceptance cannot run on this machine, and why."""


class CommandFailed(Exception):
    """A command of the engine failed."""

    def __init__(self, command: Sequence[str], said: str) -> None:
        super().__init__(f"`{' '.join(command)}` failed: {said.strip()[-1500:]}")


@dataclass(frozen=True)
class Done:
    """What a command printed."""

    out: str
    error: str
    code: int


@dataclass(frozen=True)
class Layer:
    """One line of an image's history."""

    created: str
    by: str
    size: int


@dataclass
class Engine:
    """One compose project. ``variables`` stand for an ``.env``."""

    project: str
    files: Sequence[Path]
    variables: Mapping[str, str]
    program: str = "docker"
    directory: Path = ROOT
    without: frozenset[str] = field(default_factory=frozenset)  #: services that are left out

    def require(self) -> str:
        """What runs here, in words. Raises `NoEngine`."""
        try:
            server = self.docker("version", "--format", "{{.Server.Version}}", seconds=20).out.strip()
            compose = self.docker("compose", "version", "--short", seconds=20).out.strip()
        except FileNotFoundError:
            raise NoEngine(f"there is no container engine here: {self.program} is not installed") from None
        except (CommandFailed, subprocess.TimeoutExpired) as error:
            raise NoEngine(f"there is no container engine here: {error}") from None
        for name, found, oldest in (("Docker Engine", server, ENGINE), ("Compose", compose, COMPOSE)):
            if version(found) < oldest:
                raise NoEngine(f"{name} is {found}; {'.'.join(map(str, oldest))} or newer is needed")
        return f"Docker Engine {server}, Compose {compose}"

    def docker(
        self, *arguments: str, seconds: float = 120, check: bool = True, text: str | None = None, show: bool = False
    ) -> Done:
        """Run one command. Raises `CommandFailed`, or ``subprocess.TimeoutExpired``.

        Args:
            arguments: of ``docker``.
            seconds: the most that it may take.
            check: whether another exit code than 0 is an error.
            text: its standard input.
            show: whether what it says goes to this process's standard error, too, for commands that take minutes.
        """
        command = [self.program, *arguments]
        done = subprocess.run(
            command,
            env={**os.environ, "DOCKER_BUILDKIT": "1", **self.variables},
            cwd=self.directory,
            input=text,
            stdin=subprocess.DEVNULL if text is None else None,
            stdout=subprocess.PIPE,
            stderr=None if show else subprocess.PIPE,
            text=True,
            timeout=seconds,
            check=False,
        )
        if check and done.returncode != 0:
            raise CommandFailed(command, (done.stderr or "") + done.stdout)
        return Done(done.stdout, done.stderr or "", done.returncode)

    def compose(
        self, *arguments: str, seconds: float = 120, check: bool = True, text: str | None = None, show: bool = False
    ) -> Done:
        """Run one command of compose on this project."""
        files = [part for file in self.files for part in ("--file", str(file))]
        return self.docker(
            "compose", "--project-name", self.project, *files, *arguments,
            seconds=seconds, check=check, text=text, show=show,
        )  # fmt: skip

    def services(self) -> list[str]:
        """The services of the files, without those that are left out."""
        names = self.compose("config", "--services").out.split()
        return sorted(name for name in names if name not in self.without)

    def containers(self, service: str) -> list[str]:
        """The ids of a service's containers, also of those that have ended."""
        return sorted(self.compose("ps", "--all", "--quiet", service).out.split())

    def inspect(self, *containers: str) -> list[dict[str, Any]]:
        """What the engine knows of containers."""
        found: list[dict[str, Any]] = json.loads(self.docker("inspect", *containers).out)
        return found

    def execute(self, service: str, *command: str, seconds: float = 120, check: bool = True) -> Done:
        """Run a command in the first container of a service."""
        return self.compose("exec", "--no-TTY", service, *command, seconds=seconds, check=check)

    def history(self, image: str) -> list[Layer]:
        """The layers of an image, the newest first."""
        lines = self.docker(
            "history", "--no-trunc", "--human=false", "--format", "{{.CreatedAt}}\t{{.Size}}\t{{.CreatedBy}}", image
        ).out.splitlines()
        parts = (line.split("\t", 2) for line in lines)
        return [Layer(created, by, int(size)) for created, size, by in parts]

    def size(self, image: str) -> int:
        """The bytes of an image, all of its layers."""
        return int(self.docker("image", "inspect", "--format", "{{.Size}}", image).out)

    def volumes(self) -> set[str]:
        """The names of all volumes on this machine."""
        return set(self.docker("volume", "ls", "--quiet").out.split())


def version(text: str) -> tuple[int, ...]:
    """The first three numbers of a version: ``20.10.24+dfsg1`` is (20, 10, 24)."""
    return tuple(int(number) for number in re.findall(r"\d+", text)[:3])


def new_bytes(before: Sequence[Layer], after: Sequence[Layer]) -> int:
    """The bytes of those layers of an image that an older build of it does not have."""
    known = {(layer.created, layer.by) for layer in before}
    return sum(layer.size for layer in after if (layer.created, layer.by) not in known)
