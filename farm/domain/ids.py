"""Names of things: a kind, an underscore and a time-ordered UUID (version 7, RFC 9562) as 32 hex digits.

The kind makes an id readable in a log (``job_0199…``); the time order keeps new rows at the end of every index.
"""

from __future__ import annotations

import functools
import re
import secrets
import time
from typing import Final
from uuid import UUID

JOB: Final = "job"
BATCH: Final = "bat"
TENANT: Final = "ten"
KEY: Final = "key"
FILE: Final = "file"
ENDPOINT: Final = "end"
DELIVERY: Final = "msg"
JOIN_TOKEN: Final = "jtk"  # noqa: S105 - the kind of an id

PATTERN: Final = r"^{kind}_[0-9a-f]{{32}}$"


def new(kind: str) -> str:
    """A fresh id of that kind."""
    stamp = time.time_ns() // 1_000_000
    value = stamp << 80 | 0x7 << 76 | secrets.randbits(12) << 64 | 0b10 << 62 | secrets.randbits(62)
    return f"{kind}_{value:032x}"


def uuids(count: int) -> list[UUID]:
    """Fresh UUIDs as `new` makes them, many for the price of one question to the system's source of randomness."""
    head = time.time_ns() // 1_000_000 << 80 | 0x7 << 76 | 0b10 << 62
    noise = secrets.token_bytes(10 * count)
    parts = (int.from_bytes(noise[at : at + 10]) for at in range(0, 10 * count, 10))
    return [UUID(int=head | part >> 68 << 64 | part & (1 << 62) - 1) for part in parts]


class IdSeries:
    """Ids of one kind that ascend in the order of their numbers, however many fall into one millisecond."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        value = int(new(kind).removeprefix(f"{kind}_"), 16)
        #: the first 17 hex digits of all of them: time, version, 12 random bits and the variant
        self.prefix = f"{value >> 64:016x}8"
        self._noise = ""

    def number(self, number: int) -> str:
        """The id of that number, 0 to 2³²-1, with 28 random bits of its own."""
        return f"{self.kind}_{self.hex(number)}"

    def hex(self, number: int) -> str:
        """The hex digits of that id, which are its UUID."""
        if not self._noise:
            self._noise = secrets.token_hex(4 * 256)  # one question to the system for 256 ids
        noise, self._noise = self._noise[:7], self._noise[8:]
        return f"{self.prefix}{number:08x}{noise}"


def pattern(kind: str) -> str:
    """The regular expression that an id of that kind matches."""
    return PATTERN.format(kind=kind)


def is_id(kind: str, text: str) -> bool:
    """Whether the text could name a thing of that kind."""
    return _compiled(kind).fullmatch(text) is not None


@functools.cache
def _compiled(kind: str) -> re.Pattern[str]:
    return re.compile(pattern(kind)[1:-1])


def to_uuid(kind: str, text: str) -> UUID:
    """The UUID inside an id; ``ValueError`` if it is of another kind or malformed."""
    if not is_id(kind, text):
        raise ValueError(f"{text!r} is no {kind} id")
    return UUID(hex=text[len(kind) + 1 :])


def from_uuid(kind: str, value: UUID) -> str:
    """The id that shows a UUID."""
    return f"{kind}_{value.hex}"
