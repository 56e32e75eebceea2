"""All outputs of a batch as one download (zip, tar) or on one page, read from the storage while they are sent."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeVar

from farm.domain.batch import Batch
from farm.domain.states import JobState
from farm.objects import keys
from farm.services import archive, contact_sheet
from farm.services.archive import Member
from farm.services.contact_sheet import SheetCell, SheetFormat
from farm.services.context import ServiceContext
from farm.store.batches import LAST_SEQ, ArchiveEntry

PAGE: Final = 500  #: outputs read in one transaction
PREFETCHED: Final = 4  #: files fetched while one is sent
NAME_BYTES: Final = 72  #: of a job's own name in an archive; a whole name has to fit into a tar's header

T = TypeVar("T")
R = TypeVar("R")


class ArchiveFormat(StrEnum):
    """The formats of an archive."""

    ZIP = "zip"
    TAR = "tar"


@dataclass(frozen=True)
class JobRange:
    """The jobs of a batch whose outputs an archive holds."""

    first: int = 1  #: place in the batch, from 1
    last: int = LAST_SEQ

    @property
    def whole(self) -> bool:
        """Whether these are all jobs."""
        return (self.first, self.last) == (1, LAST_SEQ)

    @property
    def bounds(self) -> tuple[int, int]:
        """The first and the last place."""
        return self.first, self.last


def stream(context: ServiceContext, batch_id: str, form: ArchiveFormat, jobs: JobRange) -> Iterator[bytes]:
    """An archive of the outputs that are there now."""
    write = archive.write_zip if form is ArchiveFormat.ZIP else archive.write_tar
    return write(_members(context, batch_id, (jobs.first, -1), jobs.last))


def tar_bytes(context: ServiceContext, batch_id: str, jobs: JobRange) -> int:
    """The size of the tar of a finished batch, without its end marker: its bytes never change."""
    with context.store.begin() as unit:
        unit.batches.allow_long_statements()
        return unit.batches.archive_bytes(batch_id, archive.BLOCK, jobs.bounds)


def stream_tar_part(
    context: ServiceContext, batch_id: str, jobs: JobRange, start: int, length: int, size: int
) -> Iterator[bytes]:
    """``length`` bytes of the tar of a finished batch from byte ``start`` on; outputs before it are not read.

    Args:
        context: the process's connections.
        batch_id: a finished batch.
        jobs: the jobs whose outputs the tar holds.
        start: the first byte.
        length: how many bytes.
        size: what `tar_bytes` returned.
    """
    after, skipped = (jobs.first, -1), 0
    if start:
        with context.store.begin() as unit:
            unit.batches.allow_long_statements()
            place = unit.batches.archive_position(batch_id, archive.BLOCK, start, jobs.bounds)
        if place is None:
            yield from archive.cut([archive.TAR_END], start - size, length)
            return
        after, skipped = (place.seq, place.index - 1), place.start
    members = _members(context, batch_id, after, jobs.last)
    yield from archive.cut(archive.write_tar(members), start - skipped, length)


def file_name(entry: ArchiveEntry) -> str:
    """An output's name in an archive: the job's place makes it unique, whatever the client's own name is."""
    own = re.sub(r"[^\w.-]+", "_", entry.name).lstrip(".").encode()[:NAME_BYTES].decode(errors="ignore")
    return f"{entry.seq:06d}-{own}-{entry.index}.{keys.extension(entry.media_type)}"


def draw_contact_sheet(
    context: ServiceContext,
    batch: Batch,
    columns: str | None = None,
    rows: str | None = None,
    tile: int = 192,
    form: SheetFormat = SheetFormat.JPEG,
) -> bytes:
    """The batch's first outputs in a grid, clips by their first frame and sounds by their waveform.

    Args:
        context: the process's connections.
        batch: whose images are drawn.
        columns: the parameter whose values are the columns; chosen if None.
        rows: the parameter whose values are the rows; all others if None.
        tile: an image's longest side, in pixels.
        form: the encoding.

    Returns:
        The encoded page.

    Raises:
        BadInput: no job has such a parameter.
    """
    with context.store.begin() as unit:
        jobs = unit.jobs.of_batch(batch.id, (JobState.SUCCEEDED,), 0, contact_sheet.MAX_IMAGES)
    layout = contact_sheet.lay_out(jobs, columns, rows)
    title = f"{batch.name or batch.id}   {len(layout.cells):,} outputs of {batch.counts.succeeded:,} jobs"

    def fetched(cells: Iterable[SheetCell]) -> Iterator[tuple[SheetCell, bytes]]:
        return prefetched(lambda cell: (cell, context.storage.get(cell.output.key)), cells)

    return contact_sheet.draw(layout, title, fetched, tile, form, context.settings)


def _members(context: ServiceContext, batch_id: str, after: tuple[int, int], last: int) -> Iterator[Member]:
    """A batch's outputs behind the place (job, output), up to the job ``last``."""

    def member(entry: ArchiveEntry) -> Member:
        return Member(file_name(entry), context.storage.get(entry.key), entry.ended_at)

    return prefetched(member, _entries(context, batch_id, after, last))


def _entries(context: ServiceContext, batch_id: str, after: tuple[int, int], last: int) -> Iterator[ArchiveEntry]:
    while True:
        with context.store.begin() as unit:
            page = unit.batches.archive_entries(batch_id, after, PAGE, last)
        yield from page
        if len(page) < PAGE:
            return
        after = page[-1].seq, page[-1].index


def prefetched(act: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """``act`` of each item, in their order, for `PREFETCHED` items at once."""
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(PREFETCHED, thread_name_prefix="fetch") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(act, item))
                if len(waiting) > PREFETCHED:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
