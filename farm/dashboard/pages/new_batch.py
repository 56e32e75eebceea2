"""New batch: a file of jobs, checked first, then submitted."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import PurePath
from typing import IO, Final

from fastapi import APIRouter, Request, Response
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from farm.api.batch_schemas import BatchQuery
from farm.api.bulk_submission import submit_bulk
from farm.api.dependencies import AppContext, Context
from farm.dashboard import forms
from farm.dashboard.rendering import HOME, CurrentUser, Link, PageRoute, render, see
from farm.domain.batch import Batch, Estimate, NewBatch, OnError
from farm.domain.numerics import ONE
from farm.domain.parameters import PARAMETERS
from farm.domain.states import Priority
from farm.errors import BadInput, BatchRefused, FieldProblem
from farm.services import bulk, bulk_parsers, validation
from farm.services.bulk import BatchOptions
from farm.store.tenants import Scope
from farm.tasks import TASKS

PATH: Final = f"{HOME}/batches/new"
LINK: Final = Link("Work", "New batch", PATH, -10, (Scope.SUBMIT,))
router: Final = APIRouter(prefix=PATH, include_in_schema=False, route_class=PageRoute)

SHOWN: Final = 50  #: bad lines that the page names
#: What the form gives.
FIELDS: Final = tuple(name for name in BatchQuery.model_fields if name != "dry_run")
#: The defaults that are shown when “More” is opened.
MORE: Final = tuple(
    name
    for name in BatchQuery.model_fields
    if name in PARAMETERS and name not in ("task", "model", *forms.MAIN, *forms.PROMPTS, *forms.IMAGES)
)


@dataclass(frozen=True)
class CheckResult:
    """What a dry run, or a refusal, has to say."""

    estimate: Estimate | None
    problems: tuple[FieldProblem, ...]
    count: int  #: of problems in all, or of lines that would not be taken
    error_file: str | None = None


@router.get("")
def form(request: Request, context: Context, user: CurrentUser) -> Response:
    """The form."""
    user.require(Scope.SUBMIT)
    return _form(request, context, {}, None)


@router.post("")
async def submit(request: Request, context: Context, user: CurrentUser) -> Response:
    """Check the file, and submit it unless only a check was asked for."""
    user.require(Scope.SUBMIT)
    async with request.form(max_files=1, max_fields=60) as sent:
        given = {name: value for name, value in sent.items() if isinstance(value, str)}
        part = sent.get("file")
        dry = given.get("act") != "submit"
        found: Batch | CheckResult
        if isinstance(part, UploadFile) and part.size:
            found = await _submit(context, user.key.tenant_id, given, part.file, part.filename or "", dry=dry)
        else:
            found = CheckResult(None, (FieldProblem("file", None, "choose a CSV or JSONL file"),), 1)
    if isinstance(found, Batch):
        return see(f"{HOME}/batches/{found.id}", f"Submitted: {found.counts.total:,} jobs.")
    return await run_in_threadpool(_form, request, context, given, found)


async def _submit(
    context: AppContext, tenant_id: str, given: dict[str, str], file: IO[bytes], filename: str, *, dry: bool
) -> Batch | CheckResult:
    try:
        query = BatchQuery.model_validate({name: given[name] for name in FIELDS if given.get(name, "").strip()})
    except ValidationError as error:
        wrong = validation.of_body(error)
        return CheckResult(None, tuple(wrong), len(wrong))
    new = NewBatch(query.name, webhook=query.webhook, one_numerics=query.numerics == ONE)
    options = BatchOptions(new, query.defaults(), query.on_error, dry)
    key = given.get("idempotency_key") or None
    try:
        source = await run_in_threadpool(bulk.of_file, options, _media_type(file, filename), file)
        made, _ = await submit_bulk(context, tenant_id, options, source, key)
    except BatchRefused as error:
        return CheckResult(None, error.problems[:SHOWN], error.count, error.error_file)
    except BadInput as error:
        return CheckResult(None, error.problems[:SHOWN], len(error.problems))
    if isinstance(made, Estimate):
        return CheckResult(made, made.problems[:SHOWN], made.refused)
    return made


def _media_type(file: IO[bytes], filename: str) -> str:
    """By its name, else by how it begins: a JSON line begins with a brace."""
    suffix = PurePath(filename.lower()).suffix
    if suffix == ".csv":
        return bulk_parsers.CSV
    if suffix in (".jsonl", ".ndjson"):
        return bulk_parsers.JSONL[0]
    begin = file.read(1000).removeprefix(b"\xef\xbb\xbf").lstrip()
    file.seek(0)
    return bulk_parsers.JSONL[0] if begin.startswith(b"{") else bulk_parsers.CSV


def _form(request: Request, context: AppContext, given: dict[str, str], checked: CheckResult | None) -> Response:
    part = "hx-request" in request.headers
    refused = checked is not None and checked.estimate is None
    return render(
        request,
        "batch_checked.html" if part else "batch_new.html",
        status=422 if refused and not part else 200,
        given=given,
        wrong={},
        checked=checked,
        on_error=given.get("on_error", ""),
        idempotency_key=given.get("idempotency_key") or f"page-{secrets.token_urlsafe(18)}",
        tasks=list(TASKS),
        models=[one.id for one in context.registry.models],
        on_error_choices=list(OnError),
        main=forms.fields(forms.MAIN, hidden=("priority",), blank=True),
        more_fields=forms.fields(MORE, blank=True),
        priorities=list(Priority),
    )
