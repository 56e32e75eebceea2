"""Where the registry of models comes from: ``FARM_MODELS_FILE``, or the one that ships with the farm."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from farm.domain.model import Registry, parse
from farm.errors import SetupError


def load(models_file: Path | None) -> Registry:
    """The registry in that file, or the built-in one; `SetupError` if it cannot be read."""
    if models_file is None:
        return parse(resources.files("farm").joinpath("models.toml").read_text("utf-8"), "the built-in models.toml")
    try:
        text = models_file.read_text("utf-8")
    except OSError as error:
        raise SetupError(f"the models file {models_file} cannot be read: {error.strerror}") from error
    return parse(text, str(models_file))
