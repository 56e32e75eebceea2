"""Write ``.env`` for docker-compose.yml: draw each secret that is missing and keep every value that is there.

    python3 infra/compose_env.py EXAMPLE .env [NAME=VALUE …]

A line ``NAME=`` of the example is a secret to draw, ``NAME=@host`` is this machine's name, and every other line is copied.
Values that are given replace what is there; one that is ``@secret`` is drawn where nothing is there. Needs the standard
library only.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import sys
from pathlib import Path

_LINE = re.compile(r"([A-Z][A-Z0-9_]*)=(.*)")


def merged(example: str, present: str, host: str) -> str:
    """The new text of ``.env``: what is present, and after it what the example has besides."""
    given = {match[1] for match in map(_LINE.fullmatch, present.splitlines()) if match}
    added, comments = [], []
    for line in example.splitlines():
        match = _LINE.fullmatch(line)
        if match is None:
            comments.append(line)
            continue
        if match[1] not in given:
            value = {"": secrets.token_hex(24), "@host": host}.get(match[2], match[2])
            added += [*comments, f"{match[1]}={value}"]
        comments = []
    return present + "".join(f"{line}\n" for line in added)


def changed(present: str, values: dict[str, str]) -> str:
    """The text of ``.env`` with these values."""
    lines, left = [], dict(values)
    for line in present.splitlines():
        match = _LINE.fullmatch(line)
        if match and match[1] in left:
            value = left.pop(match[1])
            lines.append(line if value == "@secret" else f"{match[1]}={value}")
        else:
            lines.append(line)
    lines += [f"{name}={secrets.token_hex(24) if value == '@secret' else value}" for name, value in left.items()]
    return "".join(f"{line}\n" for line in lines)


def host_name() -> str:
    """This machine's name, of the characters that a worker's name may have."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname()).strip("-.") or "farm"


def main() -> None:
    """Write the file, for its owner alone, in one step."""
    example, target = Path(sys.argv[1]), Path(sys.argv[2])
    before = target.read_text("utf-8") if target.exists() else ""
    if before and not before.endswith("\n"):
        before += "\n"
    given = dict(pair.split("=", 1) for pair in sys.argv[3:])
    text = changed(merged(example.read_text("utf-8"), before, host_name()), given)
    if text == before:
        print(f"{target} has all that is needed")
        return
    new = target.with_name(target.name + ".new")
    descriptor = os.open(new, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    new.replace(target)
    print(f"{target}: {'added what was missing' if before else 'drawn'}")


if __name__ == "__main__":
    main()
