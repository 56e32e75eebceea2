"""What a stored file says of its content."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

#: ``width`` and ``height`` in pixels, as seen; other kinds of media add their own: ``seconds``, ``frames``,
#: ``sample_rate``. A file has only those that its kind has.
MediaMetadata: TypeAlias = Mapping[str, int | float | str]


def pixels(metadata: MediaMetadata, side: str) -> int | None:
    """The ``width`` or ``height`` in pixels; None for a file that has none."""
    value = metadata.get(side)
    return value if isinstance(value, int) else None
