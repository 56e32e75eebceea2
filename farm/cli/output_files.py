"""Where rendered images are saved, and their default names."""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path
from typing import Final, cast, get_args

from farm.api_types import OutputFormat
from farm.domain import media
from farm.errors import BadInput

#: A file name's ending: the output format that it asks for.
FORMATS: Final[dict[str, OutputFormat]] = {
    f".{extension}": cast("OutputFormat", one.name)
    for one in media.FORMATS
    if one.name in get_args(OutputFormat)
    for extension in one.extensions
}

_LONGEST: Final = 48  #: letters of the prompt in a made-up name


def format_of(output: Path | None, given: OutputFormat | None) -> OutputFormat | None:
    """The format to ask for: as given, else as the file's ending says. Raises `BadInput` if they contradict."""
    if output is None or is_directory(output) or not output.suffix:
        return given
    asked = FORMATS.get(output.suffix.lower())
    if asked is None:
        raise BadInput.of("output", str(output), f"{output.suffix} is not a known format: use {', '.join(FORMATS)}")
    if given is not None and given != asked:
        raise BadInput.of("format", given, f"contradicts {output}: leave one of them out")
    return asked


def suffix_of(wanted: str | None) -> str:
    """The file name's ending for an output format; None: of the default one."""
    one = next((one for one in media.FORMATS if one.name == wanted), media.FORMATS[0])
    return f".{one.extension}"


def is_directory(output: Path | None) -> bool:
    """Whether images go into it, under generated names."""
    return output is not None and output.is_dir()


def slug(prompt: str) -> str:
    """The prompt as the beginning of a file name: lower case, words joined by hyphens, never empty."""
    words = re.findall(r"\w+", prompt.lower())
    name = ""
    for word in words:
        longer = f"{name}-{word}" if name else word[:_LONGEST]
        if len(longer.encode()) > _LONGEST and name:
            break
        name = longer
    return name.encode()[: 2 * _LONGEST].decode(errors="ignore") or "image"


def numbered(path: Path, count: int) -> list[Path]:
    """One name for each image: the name itself, or ``name-0``, ``name-1`` and so on."""
    if count == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{index}{path.suffix}") for index in range(count)]


def refuse_taken(paths: list[Path], *, force: bool) -> None:
    """Raise `BadInput` for a name that is taken, or that can hold no file, before anything is rendered for it."""
    for path in paths:
        if not path.parent.is_dir():
            raise BadInput.of("output", str(path), f"the directory {path.parent} does not exist")
        if not os.access(path.parent, os.W_OK):
            raise BadInput.of("output", str(path), f"the directory {path.parent} may not be written to")
        if path.is_dir():
            raise BadInput.of("output", str(path), f"{path} is a directory")
        if path.exists() and not force:
            raise BadInput.of("output", str(path), f"{path} exists: choose another name or add --force")


def free(path: Path) -> Path:
    """The path, or the first of ``name-2``, ``name-3``… that is free: for generated names."""
    found, number = path, 2
    while found.exists():
        found, number = path.with_name(f"{path.stem}-{number}{path.suffix}"), number + 1
    return found


def save(path: Path, data: bytes) -> None:
    """Write the file atomically, beside others that do the same. A link of that name is replaced, never followed."""
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with open(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o666), "wb") as file:  # noqa: PTH123
            file.write(data)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise BadInput.of("output", str(path), f"{path} cannot be written: {error.strerror}") from error
