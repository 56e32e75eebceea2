"""What the exceptions of torch and diffusers mean for a job."""

from __future__ import annotations

import importlib.util
import re
from typing import Final

from farm.errors import InvalidParameters, MissingPackage, RenderError
from farm.pipelines.catalogue import catalogue
from workers.device_errors import is_device_failure, is_out_of_memory

#: What Python raises for arguments that do not fit.
_MISTAKES: Final = (TypeError, ValueError, LookupError, AttributeError, NameError, ImportError, AssertionError)
#: What `diffusers.utils.import_utils` writes: "FooPipeline requires the bar library but it was not found …".
_REQUIRES: Final = re.compile(r"requires the (.+?) library but it was not found")


def first_line(error: BaseException) -> str:
    """The first line of an error, at most 300 characters."""
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 300 else text[:299] + "…"


def missing_package(error: BaseException) -> str | None:
    """The package whose absence is the error's reason; None for other errors."""
    if isinstance(error, NameError) and error.name and importlib.util.find_spec(error.name) is None:
        # diffusers imports some packages only where they are installed, and uses their names all the same
        return error.name if error.name in catalogue().package_names else None
    if not isinstance(error, ImportError):
        return None
    found = _REQUIRES.search(str(error))
    if found is not None:
        return found[1].strip()
    return (error.name or "").partition(".")[0] or None


def is_final(error: BaseException) -> bool:
    """Whether an error that a pipeline raised before its first step would be raised by every attempt."""
    if isinstance(error, RenderError) or is_out_of_memory(error) or is_device_failure(error):
        return False
    if isinstance(error, RuntimeError):  # shapes and types that do not fit
        return type(error) in (RuntimeError, NotImplementedError)
    return isinstance(error, _MISTAKES)


def before_first_step(pipeline: str, error: Exception) -> Exception:
    """What an error of a pipeline's call means if no step is done yet.

    Args:
        pipeline: The pipeline's class.
        error: What the call raised.

    Returns:
        The same error if another attempt may help; otherwise one that is final.
    """
    package = missing_package(error)
    if package is not None:
        return MissingPackage(f"{pipeline} needs the package {package}, which this worker lacks: pip install {package}")
    if is_final(error):
        return InvalidParameters(f"{pipeline} refuses the job: {type(error).__name__}: {first_line(error)}")
    return error
