"""How outputs show themselves in a notebook: images, players, and many as a contact sheet."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from typing import Final, Protocol

MAX_BYTES: Final = 32 * 2**20  #: of one file that a notebook holds; larger ones are named only
MAX_SHEET: Final = 200  #: outputs of a contact sheet


class ShownFile(Protocol):
    """An output with its bytes."""

    @property
    def data(self) -> bytes:
        """The encoded file."""

    @property
    def media_type(self) -> str:
        """What the file is: ``image/png``."""

    @property
    def caption(self) -> str:
        """Which output it is, in a few words."""


class ShownJob(Protocol):
    """A job with its outputs."""

    @property
    def artifacts(self) -> Sequence[ShownFile]:
        """Its outputs."""


def file_html(file: ShownFile, side: int | None = None) -> str:
    """An output as HTML that needs nothing else.

    Args:
        file: the output.
        side: pixels of its longer side on the page; None: its own size.
    """
    caption = html.escape(file.caption)
    if len(file.data) > MAX_BYTES:
        size = f"{len(file.data) / 2**20:.0f} MiB"
        return f"<p>{caption}: {html.escape(file.media_type)} of {size}; save it to look at it.</p>"
    source = f"data:{html.escape(file.media_type)};base64,{base64.b64encode(file.data).decode()}"
    kind = file.media_type.partition("/")[0]
    limit = "" if side is None else f' style="max-width:{side}px;max-height:{side}px"'
    if kind == "video":
        return f'<video controls loop title="{caption}" src="{source}"{limit}></video>'
    if kind == "audio":
        return f'<audio controls title="{caption}" src="{source}"></audio>'
    return f'<img alt="{caption}" title="{caption}" src="{source}"{limit}>'


def job_html(files: Iterable[ShownFile], prompt: str) -> str:
    """A job's outputs as HTML, with its prompt."""
    shown = "".join(file_html(one, 512) for one in files)
    return f'<figure style="margin:0"><div>{shown}</div><figcaption>{html.escape(prompt)}</figcaption></figure>'


class ContactSheet:
    """Outputs of many jobs as one sheet, which a notebook shows.

    Args:
        jobs: what was rendered, such as what `Farm.run` returns; at most `MAX_SHEET` outputs are shown.
        side: pixels of an output's longer side.
    """

    def __init__(self, jobs: Iterable[ShownJob], side: int = 192) -> None:
        self.files = [file for job in jobs for file in job.artifacts]
        self.side = side

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        shown = "".join(f"<div>{file_html(one, self.side)}</div>" for one in self.files[:MAX_SHEET])
        more = len(self.files) - MAX_SHEET
        rest = f"<p>and {more:,} more</p>" if more > 0 else ""
        return f'<div style="display:flex;flex-wrap:wrap;gap:6px">{shown}</div>{rest}'
