"""The farms that `farm login` keeps: addresses and API keys, in a file that only its owner may read."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

DEFAULT: Final = "default"  #: the profile of commands that name none


def path() -> Path:
    """Where they are kept: ``FARM_PROFILES``, else in the user's configuration directory."""
    given = os.environ.get("FARM_PROFILES")
    base = os.environ.get("XDG_CONFIG_HOME")
    return Path(given) if given else (Path(base) if base else Path.home() / ".config") / "farm" / "profiles.json"


def load(name: str | None) -> tuple[str, str] | None:
    """The address and the key of a profile; None if there is no such one."""
    found = _all().get(name or DEFAULT)
    return None if found is None else (found["url"], found["api_key"])


def names() -> list[str]:
    """All profiles, by name."""
    return sorted(_all())


def save(name: str, url: str, api_key: str) -> Path:
    """Keep a profile; one of the same name is replaced. Returns the file."""
    return _write({**_all(), name: {"url": url, "api_key": api_key}})


def remove(name: str) -> bool:
    """Forget a profile; False if there is none of that name."""
    found = dict(_all())
    if found.pop(name, None) is None:
        return False
    _write(found)
    return True


def _all() -> Mapping[str, Mapping[str, str]]:
    try:
        found = json.loads(path().read_text())
        return {str(name): {"url": str(one["url"]), "api_key": str(one["api_key"])} for name, one in found.items()}
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return {}


def _write(profiles: Mapping[str, Mapping[str, str]]) -> Path:
    file = path()
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = file.with_suffix(".new")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
        json.dump(profiles, out, indent=1)
    temporary.replace(file)
    return file
