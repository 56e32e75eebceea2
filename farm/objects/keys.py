"""The names of all objects in the bucket.

Inputs are content-addressed, so the same image sent twice is stored once. Outputs carry the epoch, so a worker that
lost its lease on a job cannot overwrite what the current one wrote::

    inputs/<tenant>/<sha256>.<extension>
    outputs/<tenant>/<job>/<epoch>/<index>.<extension>
    reports/<tenant>/<batch>/errors.jsonl
    lines/<tenant>/<file>.jsonl
    checkpoints/<tenant>/<job>/<epoch>/<part>.safetensors
    models/parts/<sha256>
    models/manifests/<sha256>.json
"""

from __future__ import annotations

import re
from typing import Final

from farm.domain.media import extension_of

INPUTS: Final = "inputs/"  #: every input's key starts with this
OUTPUTS: Final = "outputs/"  #: every output's key starts with this

REPORTS: Final = "reports/"  #: every report's key starts with this
LINES: Final = "lines/"  #: the key of every uploaded file of requests starts with this
CHECKPOINTS: Final = "checkpoints/"  #: the key of every part of a checkpoint starts with this
MODEL_PARTS: Final = "models/parts/"  #: every piece of a model's file, by its content
MODEL_MANIFESTS: Final = "models/manifests/"  #: which pieces the files of a model consist of

#: What the farm stores beside media, and the extension under which it does.
_DOCUMENTS: Final = {"application/jsonl": "jsonl", "application/json": "json"}

_TENANT = re.compile(r"ten_[0-9a-f]{32}", re.ASCII)
_JOB = re.compile(r"job_[0-9a-f]{32}", re.ASCII)
_BATCH = re.compile(r"bat_[0-9a-f]{32}", re.ASCII)
_FILE = re.compile(r"file_[0-9a-f]{32}", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_EXTENSION = re.compile(r"[a-z0-9]{1,8}", re.ASCII)


def input_key(tenant_id: str, sha256: str, extension: str) -> str:
    """Where a tenant's input with this content lies.

    Raises:
        ValueError: a part is not in its form; a key is never built from what a client wrote.
    """
    return (
        f"{INPUTS}{_part('tenant', _TENANT, tenant_id)}/"
        f"{_part('SHA-256', _SHA256, sha256)}.{_part('extension', _EXTENSION, extension)}"
    )


def output_key(tenant_id: str, job_id: str, epoch: int, index: int, extension: str) -> str:
    """Where output number ``index`` (from 0) of a job lies, written under the right of ``epoch``.

    Raises:
        ValueError: a part is not in its form.
    """
    if index < 0:
        raise ValueError(f"an output's index is 0 or more, not {index}")
    return f"{epoch_prefix(tenant_id, job_id, epoch)}{index}.{_part('extension', _EXTENSION, extension)}"


def batch_errors_key(tenant_id: str, batch_id: str) -> str:
    """Where the refused lines of a bulk request are reported.

    Raises:
        ValueError: a part is not in its form.
    """
    return f"{REPORTS}{_part('tenant', _TENANT, tenant_id)}/{_part('batch', _BATCH, batch_id)}/errors.jsonl"


def lines_key(tenant_id: str, file_id: str) -> str:
    """Where an uploaded file of requests lies, one per line.

    Raises:
        ValueError: a part is not in its form.
    """
    return f"{LINES}{_part('tenant', _TENANT, tenant_id)}/{_part('file', _FILE, file_id)}.jsonl"


def checkpoint_prefix(tenant_id: str, job_id: str) -> str:
    """What all parts of a job's checkpoints start with."""
    return f"{CHECKPOINTS}{_part('tenant', _TENANT, tenant_id)}/{_part('job', _JOB, job_id)}/"


def checkpoint_key(tenant_id: str, job_id: str, epoch: int, part: int) -> str:
    """Where part number ``part`` (from 0) lies that was written under the right of ``epoch``.

    Raises:
        ValueError: a part of the name is not in its form.
    """
    if epoch < 0 or part < 0:
        raise ValueError(f"an epoch and a part are 0 or more, not {epoch} and {part}")
    return f"{checkpoint_prefix(tenant_id, job_id)}{epoch}/{part}.safetensors"


def model_part_key(sha256: str) -> str:
    """Where a piece of a model's file lies. Raises `ValueError`."""
    return f"{MODEL_PARTS}{_part('SHA-256', _SHA256, sha256)}"


def model_manifest_key(sha256: str) -> str:
    """Where the manifest with this SHA-256 lies. Raises `ValueError`."""
    return f"{MODEL_MANIFESTS}{_part('SHA-256', _SHA256, sha256)}.json"


def job_prefix(tenant_id: str, job_id: str) -> str:
    """What all outputs of a job start with, whatever their epoch."""
    return f"{OUTPUTS}{_part('tenant', _TENANT, tenant_id)}/{_part('job', _JOB, job_id)}/"


def epoch_prefix(tenant_id: str, job_id: str, epoch: int) -> str:
    """What all outputs of a job start with that were written under this epoch."""
    if epoch < 0:
        raise ValueError(f"an epoch is 0 or more, not {epoch}")
    return f"{job_prefix(tenant_id, job_id)}{epoch}/"


def extension(media_type: str) -> str:
    """The extension for a content type that the farm stores.

    Raises:
        ValueError: the farm stores nothing of this type.
    """
    found = extension_of(media_type) or _DOCUMENTS.get(media_type)
    if found is None:
        raise ValueError(f"the farm stores no {media_type!r}")
    return found


def _part(name: str, form: re.Pattern[str], value: str) -> str:
    if form.fullmatch(value) is None:
        raise ValueError(f"{value!r} is no {name} for an object's name (form: {form.pattern})")
    return value
