"""The files of models and LoRAs: where they are, what identifies them, and how they are brought to this host."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Final

import diffusers
import huggingface_hub

from farm.domain.model import LoraFile, Model
from farm.errors import ModelUnavailable
from workers.model_sources import local_source
from workers.pipelines.failures import first_line

BUILTIN: Final = "builtin:"

#: How much of a weights file is hashed at its start, middle and end: all of a small file, and of a large one enough to
#: distinguish two trainings without reading the file twice.
_SAMPLE_BYTES: Final = 8 * 2**20


def locate(model: Model) -> Path:
    """The folder or the single file of a model, downloaded if the model is on the Hub. Raises `ModelUnavailable`."""
    path = local_source(model)
    if path is not None:
        return path
    return Path(
        diffusers.DiffusionPipeline.download(
            model.source,
            revision=model.revision,
            variant=model.variant,
            use_safetensors=True,
            trust_remote_code=False,
        )
    )


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a folder, or the single file itself."""
    if path.is_file():
        return [path]
    found = (Path(folder, name) for folder, _, names in os.walk(path, followlinks=True) for name in names)
    return sorted(file for file in found if file.suffix == ".safetensors")


def fetch(model: Model) -> int:
    """Download a model's files and read them into the page cache, so that loading does not wait for them.

    Uses neither torch nor the device, so any thread may call it. Returns the bytes read. Raises what the Hub raises.
    """
    if model.source.startswith(BUILTIN):
        return 0
    read = 0
    for path in weight_files(locate(model)):
        with path.open("rb", buffering=0) as file:
            while part := file.read(_SAMPLE_BYTES):
                read += len(part)
    return read


def fingerprint(path: Path) -> str:
    """What identifies a model's weights: a SHA-256 over each safetensors file's name, size and content.

    Of a file above 24 MiB only the first (with its header), middle and last 8 MiB are read.
    """
    digest = hashlib.sha256()
    root = path.parent if path.is_file() else path
    for file_path in weight_files(path):
        size = file_path.stat().st_size
        name = file_path.relative_to(root).as_posix() if root is path else "model.safetensors"
        digest.update(f"{name}\0{size}\0".encode())
        with file_path.open("rb") as file:
            starts = (0, size // 2, size - _SAMPLE_BYTES) if size > 3 * _SAMPLE_BYTES else (0,)
            for start in starts:
                file.seek(start)
                digest.update(file.read(_SAMPLE_BYTES if len(starts) > 1 else size))
    return f"sha256:{digest.hexdigest()}"


def lora_file(model: Model, entry: LoraFile) -> Path:
    """The safetensors file of a LoRA, downloaded if it is on the Hub. Raises `ModelUnavailable`."""
    path = Path(entry.source)
    if not (path.is_absolute() or entry.source.startswith(".") or path.suffix == ".safetensors"):
        if entry.weight_name is None or not entry.weight_name.endswith(".safetensors"):
            raise ModelUnavailable(
                f"LoRA {entry.name} of model {model.id} is on the Hub: weight_name must name a .safetensors file"
            )
        try:
            return Path(huggingface_hub.hf_hub_download(entry.source, entry.weight_name, revision=entry.revision))
        except Exception as error:  # whatever the network and the Hub raise
            raise ModelUnavailable(
                f"cannot download LoRA {entry.name} from {entry.source}: {first_line(error)}"
            ) from error
    if path.is_dir() and entry.weight_name is not None:
        path /= entry.weight_name
    if path.suffix != ".safetensors":
        raise ModelUnavailable(
            f"LoRA {entry.name} of model {model.id} is {path.name}; only .safetensors is allowed, other formats can "
            "contain code"
        )
    if not path.is_file():
        raise ModelUnavailable(f"LoRA {entry.name} of model {model.id}: there is no such file {path}")
    return path


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's content."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
