"""The gallery: finding outputs, marking them, taking them home as one file, and deleting them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from typing import Final

from farm import lifecycle
from farm.domain.gallery import GalleryOutput, LabelCount, LabelKind, OutputFilter, OutputPlace
from farm.errors import NotFound
from farm.objects import keys
from farm.services import archive
from farm.services.archive import Member
from farm.services.batch_archive import NAME_BYTES, prefetched
from farm.services.context import ServiceContext

MAX_PLACES: Final = 1_000  #: outputs of one request


def page(
    context: ServiceContext, tenant_id: str, wanted: OutputFilter, cursor: str | None, limit: int
) -> tuple[list[GalleryOutput], str | None]:
    """A page of outputs, newest job first, and the cursor of the next page. Raises `BadInput` for a cursor."""
    with context.store.begin() as unit:
        return unit.gallery.page(tenant_id, wanted, cursor, limit)


def many(context: ServiceContext, tenant_id: str | None, places: Sequence[OutputPlace]) -> list[GalleryOutput]:
    """Outputs in the order given, all of them. Raises `NotFound` for one that the tenant does not have."""
    with context.store.begin() as unit:
        found = unit.gallery.many(list(dict.fromkeys(places)), tenant_id)
    _require_all(places, found)
    return found


def labels(context: ServiceContext, tenant_id: str) -> list[LabelCount]:
    """The tenant's tags and collections, by name."""
    with context.store.begin() as unit:
        return unit.gallery.labels(tenant_id)


def change_labels(
    context: ServiceContext,
    tenant_id: str,
    places: Sequence[OutputPlace],
    *,
    add: Collection[tuple[LabelKind, str]] = (),
    remove: Collection[tuple[LabelKind, str]] = (),
) -> list[GalleryOutput]:
    """Add marks to outputs and take marks away; returns the outputs as they are now. All or nothing.

    Raises `NotFound` for an output that the tenant does not have.
    """
    places = list(dict.fromkeys(places))
    with context.store.begin() as unit:
        _require_all(places, unit.gallery.many(places, tenant_id))
        for kind, name in add:
            unit.gallery.add_label(tenant_id, kind, name, places)
        for kind, name in remove:
            unit.gallery.remove_label(tenant_id, kind, name, places)
        return unit.gallery.many(places, tenant_id)


def delete(context: ServiceContext, tenant_id: str, places: Sequence[OutputPlace]) -> int:
    """Delete outputs: their rows now, their objects by the clean-up. Returns how many. All or nothing.

    Their jobs stay, with their recipes. Raises `NotFound` for an output that the tenant does not have.
    """
    places = list(dict.fromkeys(places))
    with context.store.begin() as unit:
        found = unit.gallery.many(places, tenant_id)
        _require_all(places, found)
        lifecycle.delete_outputs(unit, found)
    context.cleanup.wake()
    return len(found)


def delete_job(context: ServiceContext, tenant_id: str, job_id: str) -> int:
    """Delete a job that has ended, with its outputs and its history; returns how many outputs it had.

    Raises `NotFound`, or `Conflict` while it has not ended and where it is part of a batch.
    """
    with context.store.begin() as unit:
        job = lifecycle.delete_job(unit, tenant_id, job_id)
    context.cleanup.wake()
    return len(job.outputs)


def stream_zip(context: ServiceContext, outputs: Sequence[GalleryOutput]) -> Iterator[bytes]:
    """A zip of outputs, read from the storage while it is sent."""
    width = len(str(len(outputs)))

    def member(numbered: tuple[int, GalleryOutput]) -> Member:
        number, one = numbered
        name = f"{number:0{width}d}-{file_stem(one)}.{keys.extension(one.output.media_type)}"
        return Member(name, context.storage.get(one.output.key), one.finished_at or one.created_at)

    return archive.write_zip(prefetched(member, enumerate(outputs, 1)))


def file_stem(one: GalleryOutput) -> str:
    """What an output's file is called: the client's own name or the prompt's first words, and the seed."""
    own = re.sub(r"[^\w.-]+", "-", one.custom_id or one.prompt or one.job_id).strip("-.").encode()[:NAME_BYTES]
    return f"{own.decode(errors='ignore')}-{one.output.seed}"


def _require_all(places: Sequence[OutputPlace], found: Sequence[GalleryOutput]) -> None:
    there = {one.place for one in found}
    for place in places:
        if place not in there:
            raise NotFound("output", f"{place.job_id}/{place.index}")
