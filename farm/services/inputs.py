"""The input images of a request: from what the client wrote to stored content, before any transaction."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from farm.domain.tasks import INPUT_FIELDS, AnyJobRequest, InputFile
from farm.errors import BadInput, FieldProblem
from farm.objects.intake import Intake
from farm.store.files import StoredFile
from farm.store.unit_of_work import Store

_SHA256: Final = re.compile(r"sha256:([0-9a-fA-F]{64})", re.ASCII)


def references(request: AnyJobRequest) -> dict[str, str]:
    """The request's images as it names them, by field."""
    given = {name: getattr(request, name) for name in INPUT_FIELDS[request.task]}
    return {name: reference for name, reference in given.items() if reference is not None}


def is_stored(reference: str) -> bool:
    """Whether it names an image that was uploaded before, by id or content."""
    return reference.startswith("file_") or _SHA256.fullmatch(reference) is not None


def gather(given: dict[str, str], tenant_id: str, store: Store, intake: Intake) -> dict[str, InputFile]:
    """The images that the references name. Fetches and stores what is not stored yet; blocks for as long.

    Raises `BadInput` with the problems of all of them.
    """
    images: dict[str, InputFile] = {}
    problems: list[FieldProblem] = []
    for field, reference in given.items():
        try:
            images[field] = _image(field, reference, tenant_id, store, intake)
        except BadInput as refused:
            problems += refused.problems
    if problems:
        raise BadInput(*problems)
    return images


def keep(store: Store, tenant_id: str, content: InputFile, filename: str | None) -> tuple[StoredFile, bool]:
    """Record stored content as the tenant's file. Returns the file, and whether it is new."""
    with store.begin() as unit:
        known = unit.files.by_content(tenant_id, content.sha256)
        if known is not None:
            return known, False
        return unit.files.add(tenant_id, content, filename), True


def _image(field: str, reference: str, tenant_id: str, store: Store, intake: Intake) -> InputFile:
    scheme = reference[:8].lower()
    take: Callable[..., InputFile]
    if scheme.startswith("data:"):
        take = intake.from_data_url
    elif scheme.startswith(("https://", "http://")):
        take = intake.from_url
    else:
        return _known(field, reference, tenant_id, store)
    file, _ = keep(store, tenant_id, take(tenant_id, reference, field=field), None)
    return file.content


def _known(field: str, reference: str, tenant_id: str, store: Store) -> InputFile:
    content = _SHA256.fullmatch(reference)
    if content is None and not reference.startswith("file_"):
        raise BadInput.of(
            field, reference, "must be a file id (file_…), sha256:… of an uploaded file, an https URL or a data URL"
        )
    with store.begin() as unit:
        file = (
            unit.files.get(tenant_id, reference)
            if content is None
            else unit.files.by_content(tenant_id, content[1].lower())
        )
    if file is None:
        raise BadInput.of(field, reference, "there is no such file; upload it with POST /v1/files")
    return file.content
