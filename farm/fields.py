"""Types of the values that requests carry, and the base of values that never change."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

MAX_SEED: Final = 2**63 - 1  #: what a signed 64-bit column and a torch generator both take
MAX_STEPS: Final = 1_000  #: what schedulers are trained with
MAX_OUTPUTS: Final = 16
MAX_LORAS: Final = 8
MAX_FILES: Final = 8  #: of one role
MAX_SIDE: Final = 4096  #: pixels; a model's own limit is usually lower
SIDE_MULTIPLE: Final = 8  #: the VAE's reduction: latents have whole sizes
MAX_FRAMES: Final = 4096
MAX_SECONDS: Final = 3_600  #: of a sound
MAX_ENTRIES: Final = 100  #: of an object of parameters
_MAX_DEPTH: Final = 8  #: of a JSON value


class FrozenValue(BaseModel):
    """Base of values that are validated once and never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def storable(text: str) -> str:
    """Return text that PostgreSQL can store: without NUL and lone surrogates. Raises `ValueError`."""
    if "\x00" in text:
        raise ValueError("must not contain NUL characters")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("must not contain lone surrogates: send valid Unicode text") from None
    return text


def storable_json(value: Any) -> Any:
    """Return a JSON value that PostgreSQL can store. Raises `ValueError`."""
    _check_json(value, 0)
    return value


def _check_json(value: object, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise ValueError("is nested too deeply")
    if isinstance(value, str):
        storable(value)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError("must not contain NaN or infinity")
    elif isinstance(value, dict):
        for key, one in value.items():
            storable(key)
            _check_json(one, depth + 1)
    elif isinstance(value, list | tuple):
        for one in value:
            _check_json(one, depth + 1)


_MOMENT: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}.*", re.ASCII)


def _written_out(text: object) -> object:
    """Refuse what pydantic would take for seconds since 1970."""
    if not isinstance(text, str) or not _MOMENT.fullmatch(text):
        raise ValueError("must be a date and time with an offset: 2026-01-31T12:00:00Z")
    return text


Moment = Annotated[AwareDatetime, BeforeValidator(_written_out)]
Storable = AfterValidator(storable)
# The pattern says in the schema what the validator enforces, so that clients can check before sending.
NoNul = Field(json_schema_extra={"pattern": r"^[^\u0000]*$"})
Prompt = Annotated[str, StringConstraints(max_length=10_000), Storable, NoNul]
CustomId = Annotated[str, StringConstraints(min_length=1, max_length=200), Storable, NoNul]
MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=64), Storable, NoNul]
MetadataValue = Annotated[str, StringConstraints(max_length=1_000), Storable, NoNul]
Metadata = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=50)]
ParameterName = Annotated[str, StringConstraints(min_length=1, max_length=100), Storable]
#: JSON values by name, checked against the catalogue's class.
JsonObject = Annotated[dict[ParameterName, Any], Field(max_length=MAX_ENTRIES), AfterValidator(storable_json)]
Side = Annotated[int, Field(strict=True, ge=SIDE_MULTIPLE, le=MAX_SIDE, multiple_of=SIDE_MULTIPLE)]
Pixels = Annotated[int, Field(strict=True, ge=1, le=MAX_SIDE)]
Offset = Annotated[int, Field(strict=True, ge=-MAX_SIDE, le=MAX_SIDE)]
Steps = Annotated[int, Field(strict=True, ge=1, le=MAX_STEPS)]
#: How weights in prompts are read.
Weighting = Literal["none", "a1111"]
Guidance = Annotated[float, Field(strict=True, ge=0, le=100, allow_inf_nan=False)]
Strength = Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)]
Scale = Annotated[float, Field(strict=True, ge=0, le=10, allow_inf_nan=False)]
Kind = Annotated[int, Field(strict=True, ge=0, le=100)]
#: One value, or one for each of several files.
Strengths = Scale | Annotated[tuple[Scale, ...], Field(min_length=1, max_length=MAX_FILES)]
Parts = Strength | Annotated[tuple[Strength, ...], Field(min_length=1, max_length=MAX_FILES)]
Kinds = Kind | Annotated[tuple[Kind, ...], Field(min_length=1, max_length=MAX_FILES)]
Frames = Annotated[int, Field(strict=True, ge=1, le=MAX_FRAMES)]
FrameRate = Annotated[int, Field(strict=True, ge=1, le=240)]
Seconds = Annotated[float, Field(strict=True, gt=0, le=MAX_SECONDS, allow_inf_nan=False)]
Seed = Annotated[int, Field(strict=True, ge=0, le=MAX_SEED)]
Count = Annotated[int, Field(strict=True, ge=1, le=MAX_OUTPUTS)]


class CellText(str):
    """The text of a CSV cell whose type only the model's pipeline knows."""

    __slots__ = ()
