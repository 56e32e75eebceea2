"""Input files: from what a request refers to to stored content, before any transaction."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from farm import lifecycle
from farm.domain.job import Job
from farm.domain.job_spec import InputFile, JobSpec
from farm.domain.media import MediaMetadata
from farm.domain.requests import LINE, line_of
from farm.domain.states import JobState
from farm.errors import BadInput, NotFound
from farm.services.context import ServiceContext
from farm.store.files import StoredFile

MAX_FILENAME: Final = 200  #: characters of an upload's name that are kept

_SHA256: Final = re.compile(r"sha256:([0-9a-fA-F]{64})", re.ASCII)
_OUTPUT: Final = re.compile(r"(job_[0-9a-f]{32})(?:/([0-9]{1,4}))?", re.ASCII)
_URL_SCHEMES: Final = ("https://", "http://")


def is_stored(reference: str) -> bool:
    """Whether a reference names what the farm has or will have: an uploaded file, or an output of a job."""
    return reference.startswith(("file_", "job_", LINE)) or _SHA256.fullmatch(reference) is not None


def is_url(reference: str) -> bool:
    """Whether a reference is a URL to fetch."""
    return reference[:8].lower().startswith(_URL_SCHEMES)


def finder(context: ServiceContext, tenant_id: str) -> Callable[[str, str], InputFile]:
    """What finds the file that a field of a request refers to; it blocks and raises `BadInput`.

    It fetches and stores an image that is not stored yet, and records it as a file of the tenant.
    """

    def find(field: str, reference: str) -> InputFile:
        if reference.startswith(LINE):
            message = "names a line of the same batch; a single job names a job: job_… or job_…/1"
            raise BadInput.of(field, line_of(reference)[0], message)
        if reference.startswith("job_"):
            return _output(context, tenant_id, field, reference)
        if not is_stored(reference):
            _check_storage(context, tenant_id, 1)
        if reference[:8].lower().startswith("data:"):
            stored = context.intake.from_data_url(tenant_id, reference, field=field)
        elif is_url(reference):
            stored = context.intake.from_url(tenant_id, reference, field=field)
        else:
            return _known(context, tenant_id, field, reference)
        return _record(context, tenant_id, stored, None)[0].content

    return find


def store(
    context: ServiceContext, tenant_id: str, data: bytes, filename: str | None = None, *, field: str
) -> tuple[StoredFile, bool]:
    """Store an encoded image as a file of the tenant. Returns it, and whether it is new.

    Args:
        context: the process's connections.
        tenant_id: whose file it is.
        data: the encoded image.
        filename: the client's name for it, which may be anything.
        field: what the client calls it, for errors.

    Raises:
        BadInput: it is not an image that may be used.
        QuotaExceeded: the tenant stores as much as it may.
    """
    _check_storage(context, tenant_id, len(data))
    stored = context.intake.from_bytes(tenant_id, data, filename, field=field)
    return _record(context, tenant_id, stored, filename)


def get_file(context: ServiceContext, tenant_id: str, file_id: str) -> StoredFile:
    """A file of the tenant. Raises `NotFound`."""
    with context.store.begin() as unit:
        file = unit.files.get(tenant_id, file_id)
    if file is None:
        raise NotFound("file", file_id)
    return file


def _record(
    context: ServiceContext, tenant_id: str, content: InputFile, filename: str | None
) -> tuple[StoredFile, bool]:
    with context.store.begin() as unit:
        known = unit.files.by_content(tenant_id, content.sha256)
        if known is not None:
            return known, False
        unit.usage.add_stored(tenant_id, content.size)
        return unit.files.add(tenant_id, content, _clean_filename(filename)), True


def _check_storage(context: ServiceContext, tenant_id: str, size: int) -> None:
    with context.store.look() as unit:
        lifecycle.check_storage(unit, tenant_id, size)


def _clean_filename(filename: str | None) -> str | None:
    """The base name that the client gave, reduced to characters that can be stored."""
    text = (filename or "").replace("\\", "/").rsplit("/", 1)[-1]
    text = "".join(letter for letter in text if letter.isprintable())
    return text.encode("utf-8", "replace").decode()[:MAX_FILENAME] or None


def _output(context: ServiceContext, tenant_id: str, field: str, reference: str) -> InputFile:
    """An output of a job of the tenant, which need not exist yet."""
    named = _OUTPUT.fullmatch(reference)
    if named is None:
        raise BadInput.of(field, reference, "must be a job's id, alone or with an output: job_… or job_…/1")
    with context.store.look() as unit:
        job = unit.jobs.get(named[1], tenant_id)
    if job is None or job.state in (JobState.FAILED, JobState.CANCELED):
        raise BadInput.of(field, reference, lifecycle.no_output_of(None if job is None else job.state))
    return output_of(job, int(named[2] or 0), field, reference)


def output_of(job: Job, index: int, field: str, reference: str) -> InputFile:
    """An output of a job as an input. Raises `BadInput` if there will be none of that number."""
    if index >= (count := len(job.outputs) or job.spec.num_outputs):
        raise BadInput.of(field, reference, f"that job has {count} output{'s' * (count > 1)}, numbered from 0")
    if job.outputs:
        one = job.outputs[index]
        return InputFile(
            sha256=one.sha256,
            key=one.key,
            media_type=one.media_type,
            size=one.size,
            metadata=one.metadata,
            job=job.id,
            output=index,
        )
    sides: MediaMetadata = {}
    size = _size_of(job.spec)
    if size is not None:
        sides = {"width": size[0], "height": size[1]}
    media_type = job.spec.format.media_type
    return InputFile(sha256="", key="", media_type=media_type, size=0, metadata=sides, job=job.id, output=index)


def _size_of(spec: JobSpec) -> tuple[int, int] | None:
    """The size of a job's outputs, as far as its parameters say it."""
    if spec.task_spec.output_size is not None:
        image = spec.inputs["image"][0]
        if image.width is None or image.height is None:
            return None
        return spec.task_spec.output_size(spec.common, (image.width, image.height))
    return None if spec.width is None or spec.height is None else (spec.width, spec.height)


def _known(context: ServiceContext, tenant_id: str, field: str, reference: str) -> InputFile:
    content = _SHA256.fullmatch(reference)
    if content is None and not reference.startswith("file_"):
        raise BadInput.of(
            field,
            reference,
            "must be a file id (file_…), sha256:… of an uploaded file, a job's id, an https URL or a data URL",
        )
    with context.store.begin() as unit:
        file = (
            unit.files.get(tenant_id, reference)
            if content is None
            else unit.files.by_content(tenant_id, content[1].lower())
        )
    if file is None:
        raise BadInput.of(field, reference, "is not an uploaded file; upload it with POST /v1/files")
    return file.content
