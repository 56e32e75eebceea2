"""What each image installs, written as files of requirements, so that a layer changes only when its own packages do.

Runs while the images are built:

    python requirements.py pyproject.toml constraints.txt FOLDER

writes ``torch.txt``, one file for each entry of `IMAGES`, and ``constraints.txt`` without the development tools, whose
new versions change no image. A line has the tested version (``celery[redis]==5.7.0``); a package that
``constraints.txt`` does not name keeps its range. Needs the standard library only.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

#: The extras of each image. A worker's torch is a layer of its own, because it is many times larger than all the rest.
IMAGES: Final[Mapping[str, tuple[str, ...]]] = {
    "control": ("server", "otel"),
    "storage": ("storage",),
    "worker": ("worker", "gpu", "otel"),
}
#: torch and what it requires on every platform: a layer of its own, at the tested versions.
TORCH: Final = "torch filelock fsspec jinja2 markupsafe mpmath networkx sympy typing-extensions".split()

_OWN: Final = re.compile(r"diffusion-render-farm\[([\w,]+)\]")


def normal(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(constraints: str) -> dict[str, str]:
    """The tested version of each package."""
    found = (line.split("#")[0].split(";")[0].strip().partition("==") for line in constraints.splitlines())
    return {normal(name): version for name, is_pin, version in found if is_pin}


def requirements(project: Mapping[str, Any], extras: tuple[str, ...]) -> Iterator[str]:
    """The requirements of the package itself and of some of its extras, as ``pyproject.toml`` has them."""
    yield from project["dependencies"]
    for extra in extras:
        for line in project["optional-dependencies"][extra]:
            own = _OWN.fullmatch(line)
            if own is None:
                yield line
            else:
                yield from requirements({**project, "dependencies": []}, tuple(own[1].split(",")))


def pinned(line: str, versions: Mapping[str, str]) -> str:
    """A requirement at its tested version."""
    requirement, semicolon, marker = line.partition(";")
    match = re.match(r"([A-Za-z0-9._-]+)(\[[\w,-]+\])?", requirement.strip())
    assert match is not None, line
    version = versions.get(normal(match[1]))
    wanted = requirement.strip() if version is None else f"{match[0]}=={version}"
    return wanted + (f" {semicolon}{marker}" if semicolon else "")


def name_of(requirement: str) -> str:
    """The package that a requirement or a line of constraints names."""
    return normal(re.split(r"[^A-Za-z0-9._-]", requirement.strip(), maxsplit=1)[0])


def files(pyproject: Mapping[str, Any], constraints: str) -> dict[str, str]:
    """The content of each file, by its name."""
    project, versions = pyproject["project"], pins(constraints)
    used = {name_of(line) for extras in IMAGES.values() for line in requirements(project, extras)}
    tools = {name_of(line) for line in pyproject["dependency-groups"]["dev"]} - used
    found = {
        "torch.txt": "".join(f"{pinned(name, versions)}\n" for name in TORCH if normal(name) in versions),
        "constraints.txt": "".join(f"{name}=={versions[name]}\n" for name in sorted(versions) if name not in tools),
    }
    for image, extras in IMAGES.items():
        lines = {pinned(line, versions) for line in requirements(project, extras)}
        found[f"{image}.txt"] = "".join(f"{line}\n" for line in sorted(lines))
    return found


def main() -> None:
    """Write the files."""
    pyproject, constraints, folder = map(Path, sys.argv[1:4])
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files(tomllib.loads(pyproject.read_text("utf-8")), constraints.read_text("utf-8")).items():
        (folder / name).write_text(text, "utf-8")


if __name__ == "__main__":
    main()
