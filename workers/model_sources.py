"""Where models come from: folders and repositories. Without torch, which a worker's main process does not import."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import huggingface_hub

from farm.domain.model import Model
from farm.errors import ModelUnavailable

#: What a repository has beside weights.
_CONFIGS: Final = ["*.json", "*.txt", "*.model"]


def local_source(model: Model) -> Path | None:
    """The folder or file of a model on this machine; None if it is on the Hub. Raises `ModelUnavailable`."""
    path = Path(model.source)
    if path.is_dir() or path.is_file():
        return path
    if "://" in model.source:
        raise ModelUnavailable(f"model {model.id} has the source {model.source}, which this worker cannot fetch")
    if path.is_absolute() or model.source.startswith(".") or path.suffix == ".safetensors":
        what = "file" if path.suffix == ".safetensors" else "directory"
        raise ModelUnavailable(f"model {model.id}: there is no {what} {model.source}")
    return None


def describing_folder(model: Model) -> Path:
    """The folder whose index and configs describe a model: its own, or that of a checkpoint in one file.

    Raises:
        ModelUnavailable: There is none, or it cannot be downloaded.
    """
    path = local_source(model)
    if path is None:
        return _download(model.source, model.revision, f"model {model.id} cannot be downloaded from {model.source}")
    return path if path.is_dir() else config_folder(model, path)


def config_folder(model: Model, checkpoint: Path) -> Path:
    """The folder with the configs and tokenizers of a checkpoint in one file. Raises `ModelUnavailable`."""
    if model.config is not None and Path(model.config).is_dir():
        return Path(model.config)
    repository = model.config or _usual_repository(model, checkpoint)
    if repository.startswith(".") or Path(repository).is_absolute():
        raise ModelUnavailable(f"model {model.id}: there is no directory {repository}")
    return _download(
        repository,
        None,
        f"model {model.id} is one file: its configs and tokenizers would come from {repository}, which cannot be "
        "downloaded; state config, a folder or a model of the farm of the same family",
    )


def _download(repository: str, revision: str | None, otherwise: str) -> Path:
    """A repository's configs and tokenizers."""
    try:
        return Path(huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=_CONFIGS))
    except Exception as error:  # whatever the network and the Hub raise
        raise ModelUnavailable(otherwise) from error


def _usual_repository(model: Model, checkpoint: Path) -> str:
    """The repository whose configs diffusers takes for such a checkpoint."""
    from workers.torchvision_operators import declare_missing_operators  # noqa: PLC0415 - imports torch

    declare_missing_operators()
    from diffusers.loaders.single_file_utils import (  # noqa: PLC0415 - imports torch
        fetch_diffusers_config,
        load_single_file_checkpoint,
    )

    try:
        found = fetch_diffusers_config(load_single_file_checkpoint(str(checkpoint)))
    except Exception as error:  # of a file that is no checkpoint
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelUnavailable(f"model {model.id} cannot be read: {reason}") from error
    return str(found["pretrained_model_name_or_path"])
