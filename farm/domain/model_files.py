"""The files of a model in the farm's bucket: a manifest, and the parts that it names by their content."""

from __future__ import annotations

import hashlib
import re
from pathlib import PurePosixPath
from typing import Annotated, Final, Self

from pydantic import AfterValidator, Field, model_validator

from farm.fields import FrozenValue
from farm.weights import SAFETENSORS, UNSAFE

SCHEME: Final = "farm://"  #: a source in the farm's bucket: the scheme, and the SHA-256 of the manifest
MAX_PART_BYTES: Final = 2**30
MAX_FILES: Final = 2_000
MAX_PARTS: Final = 10_000
_SHA256: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)


def _checked_path(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or "\\" in path or "\x00" in path or ".." in parts:
        raise ValueError("must be relative, with / between its parts and without ..")
    if str(PurePosixPath(path)) != path:
        raise ValueError("must be written without . and double slashes")
    if PurePosixPath(path).suffix.lower() in UNSAFE:
        raise ValueError("is of a format that can contain code; only safetensors weights are taken")
    return path


class FilePart(FrozenValue):
    """A piece of a file."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="Of its content, hex.")
    size: int = Field(gt=0, le=MAX_PART_BYTES, strict=True, description="Bytes.")


class ManifestFile(FrozenValue):
    """A file of a model."""

    path: Annotated[str, AfterValidator(_checked_path)] = Field(
        min_length=1, max_length=500, description="Relative to the model's folder, with `/` between its parts."
    )
    parts: tuple[FilePart, ...] = Field(description="Its content, in order; none: it is empty.")

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(part.size for part in self.parts)


class Manifest(FrozenValue):
    """All files of a model: a folder in diffusers' layout, or one ``.safetensors`` checkpoint."""

    files: tuple[ManifestFile, ...] = Field(min_length=1, max_length=MAX_FILES, description="Every file of the model.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        paths = [file.path for file in self.files]
        if len(set(paths)) < len(paths):
            raise ValueError("a path stands twice in files")
        folders = {str(parent) for path in paths for parent in PurePosixPath(path).parents}
        if both := folders.intersection(paths):
            raise ValueError(f"{min(both)} is both a file and a folder")
        if sum(len(file.parts) for file in self.files) > MAX_PARTS:
            raise ValueError(f"at most {MAX_PARTS} parts are taken: cut the files into larger ones")
        return self

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def parts(self) -> dict[str, FilePart]:
        """The different parts by their SHA-256."""
        return {part.sha256: part for file in self.files for part in file.parts}

    @property
    def single_file(self) -> str | None:
        """The path of the checkpoint, where the model is one file."""
        return self.files[0].path if len(self.files) == 1 and self.files[0].path.endswith(SAFETENSORS) else None

    def encode(self) -> bytes:
        """The same text for the same files, whatever their order; its SHA-256 names the model's content."""
        ordered = Manifest(files=tuple(sorted(self.files, key=lambda file: file.path)))
        return ordered.model_dump_json().encode()

    @property
    def source(self) -> str:
        """What an entry names as its source."""
        return SCHEME + hashlib.sha256(self.encode()).hexdigest()


def manifest_of(source: str) -> str | None:
    """The SHA-256 of the manifest that a source names; None if it is another kind of source."""
    name = source.removeprefix(SCHEME)
    return name if source.startswith(SCHEME) and _SHA256.fullmatch(name) else None
