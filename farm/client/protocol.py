"""What a client can be asked to do, as values: whoever describes a conversation with the farm does no I/O of its own.

A conversation is a generator (`Flow`): it yields a step, and is sent what came of it. `Farm` takes the steps one after
the other, `AsyncFarm` awaits each of them; the description is the same.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, Generic, TypeAlias, TypeVar

T = TypeVar("T")

IDEMPOTENCY_KEY: Final = "Idempotency-Key"


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request to the API. What comes of it: what its answer means."""

    method: str
    path: str  #: or, of one that is `foreign`, a whole URL
    read: Callable[[Any], T]  #: what its answer's JSON means; of a foreign one: what `Fetched` means
    #: sending it twice does no more than sending it once, as it is or by its ``Idempotency-Key``
    repeatable: bool = True
    json: object = None
    params: tuple[tuple[str, str], ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    file: tuple[str, bytes] | None = None  #: name and content of the one file of a form
    content: Callable[[], Iterable[bytes]] | None = None  #: a body that is streamed, from its beginning at each call
    timeout: float | None = None  #: seconds to wait for the response, where it may take longer than usual
    foreign: bool = False  #: of another server, which gets no key
    answers: frozenset[int] = frozenset()  #: error statuses whose JSON is an answer all the same

    def __post_init__(self) -> None:
        """Name each POST that may be repeated, so that whoever stands before the farm may repeat it, too."""
        if self.method == "POST" and self.repeatable and not self.foreign and IDEMPOTENCY_KEY not in self.headers:
            named = {**self.headers, IDEMPOTENCY_KEY: f"farm-{uuid.uuid4().hex}"}
            object.__setattr__(self, "headers", named)


@dataclass(frozen=True)
class Fetched:
    """What another server answered."""

    status: int
    content: bytes


@dataclass(frozen=True)
class Sleep:
    """Wait."""

    seconds: float


class StreamFormat(Enum):
    """How a streamed answer is read."""

    EVENTS = "events"  #: server-sent events
    LINES = "lines"  #: JSON lines


@dataclass(frozen=True)
class Open:
    """Begin to read a streamed answer; one at a time is open."""

    call: Call[Any]
    form: StreamFormat
    silence: float | None = None  #: seconds without a byte after which the connection counts as dead


class Stream(Enum):
    """What to do with the answer that is open."""

    NEXT = "next"  #: what comes of it: the next event or line, None at the end
    CLOSE = "close"


@dataclass(frozen=True)
class Emit:
    """Hand a value to whoever iterates."""

    value: Any


Step: TypeAlias = Call[Any] | Sleep | Open | Stream | Emit
Flow: TypeAlias = Generator[Step, Any, T]


@dataclass(frozen=True)
class Streamed(Generic[T]):
    """A conversation that yields one value after the other."""

    steps: Callable[[], Flow[None]]
