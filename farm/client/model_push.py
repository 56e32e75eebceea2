"""Pushing a model's files into the farm's bucket."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Unpack

from farm.api_types import ModelFields
from farm.client import requests
from farm.client.errors import FarmClientError
from farm.client.models import Model
from farm.client.protocol import Call, Fetched, Flow
from farm.errors import BadInput
from farm.weights import PART_BYTES, SAFETENSORS, UNSAFE

_CHUNK: Final = 2**20
_EXPIRED: Final = frozenset({400, 401, 403})  #: what a storage answers to a URL that has expired


@dataclass(frozen=True)
class PushProgress:
    """How far a push is."""

    done: int  #: bytes that need not be sent any more
    total: int  #: bytes


@dataclass(frozen=True)
class _Piece:
    path: Path
    start: int
    size: int

    def chunks(self) -> Iterator[bytes]:
        """Its content."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            left = self.size
            while left and (chunk := file.read(min(_CHUNK, left))):
                left -= len(chunk)
                yield chunk


def push_model(
    path: str | os.PathLike[str],
    model_id: str | None = None,
    *,
    on_progress: Callable[[PushProgress], None] | None = None,
    **fields: Unpack[ModelFields],
) -> Flow[Model]:
    """Upload a model's files into the farm's bucket and add the model. Needs the scope ``admin``.

    What the bucket has already is not sent again, so a push that broke off goes on where it was.

    Args:
        path: a folder in diffusers' layout, or a ``.safetensors`` checkpoint.
        model_id: what jobs name; the name of the folder or file if absent.
        on_progress: is called at the beginning and after each part.
        **fields: as in `add_model`.

    Raises:
        BadInput: there is no such folder or file, or it has no safetensors weights.
        ApiError: the farm refuses the files or the entry.
    """
    root = Path(path)
    files = _files(root)
    pieces: dict[str, _Piece] = {}
    manifest = {"files": [{"path": name, "parts": list(_cut(file, pieces))} for name, file in files]}
    total = sum(piece.size for piece in pieces.values())
    while True:
        state: dict[str, Any] = yield requests.upload_model(manifest)
        left = int(state["missing_bytes"])
        if on_progress is not None:
            on_progress(PushProgress(total - left, total))
        if not state["missing"]:
            break
        for one in state["uploads"]:
            piece = pieces[one["sha256"]]
            answer: Fetched = yield _put(one, piece)
            if answer.status in _EXPIRED and left < int(state["missing_bytes"]):
                break  # the other URLs have expired, too
            if answer.status >= 300:
                what = answer.content[:300].decode(errors="replace")
                raise FarmClientError(f"the storage refused a part of {piece.path} with {answer.status}: {what}")
            left -= piece.size
            if on_progress is not None:
                on_progress(PushProgress(total - left, total))
    name = model_id or root.resolve().name.removesuffix(SAFETENSORS)
    added: Model = yield requests.add_model(name, state["source"], **fields)
    return added


def _put(one: dict[str, Any], piece: _Piece) -> Call[Fetched]:
    headers = {**one["headers"], "Content-Length": str(piece.size), "Content-Type": "application/octet-stream"}
    return Call("PUT", one["url"], lambda answer: answer, headers=headers, content=piece.chunks, foreign=True)


def _files(root: Path) -> list[tuple[str, Path]]:
    """The files to send, by their names in the model. Raises `BadInput`."""
    if root.is_file():
        if root.suffix != SAFETENSORS:
            raise BadInput.of("path", str(root), f"{root} is no {SAFETENSORS} file; other formats can contain code")
        return [(root.name, root)]
    if not root.is_dir():
        raise BadInput.of("path", str(root), f"there is no folder or file {root}")
    found: list[tuple[str, Path]] = []
    for folder, folders, names in os.walk(root, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]  # such as .git and .cache
        paths = (Path(folder, name) for name in names if not name.startswith("."))
        found += [(path.relative_to(root).as_posix(), path) for path in paths if path.suffix.lower() not in UNSAFE]
    if not any(name.endswith(SAFETENSORS) for name, _ in found):
        raise BadInput.of("path", str(root), f"{root} has no {SAFETENSORS} files; other formats can contain code")
    return sorted(found)


def _cut(file: Path, pieces: dict[str, _Piece]) -> Iterator[dict[str, Any]]:
    """The parts of a file, which are remembered by their SHA-256. Raises `BadInput`."""
    try:
        size = file.stat().st_size
        for start in range(0, size, PART_BYTES):
            piece = _Piece(file, start, min(PART_BYTES, size - start))
            digest = hashlib.sha256()
            for chunk in piece.chunks():
                digest.update(chunk)
            pieces.setdefault(digest.hexdigest(), piece)
            yield {"sha256": digest.hexdigest(), "size": piece.size}
    except OSError as error:
        raise BadInput.of("path", str(file), f"{file} cannot be read: {error.strerror}") from error
