"""What commands print of other people's texts: prompts, names and errors may hold control sequences of a terminal."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from typing import IO, TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from rich.console import Console

#: C0 and C1 controls but tab and line feed, and the marks that turn the order of what is read.
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def plain(text: str) -> str:
    """The text with each control character shown as a replacement character, so that a terminal obeys none."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def say(*parts: object, sep: str = " ", file: IO[str] | None = None, flush: bool = False) -> None:
    """`print`, without control characters."""
    print(plain(sep.join(map(str, parts))), file=sys.stdout if file is None else file, flush=flush)


def open_console(*, stderr: bool = False, width: int | None = None, soft_wrap: bool = False) -> Console:
    """A console of rich that prints no control character which is not its own."""
    from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderableType, RenderHook, RenderResult
    from rich.segment import Segment

    class Neutral:
        def __init__(self, inner: RenderableType) -> None:
            self.inner = inner

        def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
            for segment in console.render(self.inner, options):
                yield segment if segment.control else Segment(plain(segment.text), segment.style)

    class Hook(RenderHook):
        def process_renderables(self, renderables: Iterable[ConsoleRenderable]) -> list[Any]:
            return [Neutral(one) for one in renderables]

    made = Console(highlight=False, stderr=stderr, width=width, soft_wrap=soft_wrap)
    made.push_render_hook(Hook())
    return made
