"""One action on many jobs: on those that are ticked, or on all that match a filter; counted before, reported after."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import urlencode

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from farm.api.dependencies import AppContext, Context
from farm.dashboard.rendering import HOME, CurrentUser, PageRoute, render
from farm.dashboard.session import User
from farm.domain.job import JobFilter, Selection
from farm.errors import BadInput, NotFound, QuotaExceeded
from farm.services import bulk_actions, validation
from farm.services.bulk_actions import ActionReport, JobAction
from farm.store.unit_of_work import UnitOfWork

router: Final = APIRouter(prefix=HOME, include_in_schema=False, route_class=PageRoute)

MOST: Final = 5_000  #: jobs that one action touches one by one; canceling and retrying all that match has no limit
FILTERS: Final = ("batch_id", "task", "model", "worker", "custom_id", "error_code")


@dataclass(frozen=True)
class ActionText:
    """How the pages describe an action."""

    verb: str
    done: str
    explain: str


ACTIONS: Final = {
    JobAction.CANCEL: ActionText(
        "Cancel", "canceled, or asked to stop at the next step", "Finished jobs stay as they are."
    ),
    JobAction.RETRY: ActionText("Retry", "submitted again", "Each that failed or was canceled becomes a new job."),
    JobAction.RERUN: ActionText(
        "Rerun", "submitted with another seed", "Each becomes a new job with the same parameters and another seed."
    ),
}


#: What is done to all that match by few statements, however many there are.
WHOLE: Final = frozenset({JobAction.CANCEL, JobAction.RETRY})


@router.post("/act")
async def act(request: Request, context: Context, user: CurrentUser) -> Response:
    """Ask for confirmation, or do it and report."""
    form = await request.form(max_files=0, max_fields=MOST + 50)
    given = [(name, value) for name, value in form.multi_items() if isinstance(value, str)]
    return await run_in_threadpool(_act, request, context, user, given)


def _act(request: Request, context: AppContext, user: User, given: list[tuple[str, str]]) -> Response:
    only = dict(given)
    try:
        action = JobAction(only.get("action", ""))
    except ValueError:
        raise BadInput.of("action", only.get("action"), f"must be one of {', '.join(ACTIONS)}") from None
    everything = only.get("all") == "1"
    wanted = _wanted(given)
    sure = only.get("sure") == "1"
    new_jobs: list[str] | None = None  # the bulk statements do not return the ids
    if everything and action in WHOLE:
        count, report = _apply_to_all(context, user, action, wanted, sure=sure)
    else:
        chosen = [value for name, value in given if name == "job"][:MOST]
        if everything:
            with context.store.begin() as unit:
                _owners(unit, user, wanted)
                chosen = unit.dashboard_queries.matching(user.tenant, wanted, MOST)
        count, report = len(chosen), None
        if sure:
            report = bulk_actions.apply(context, action, chosen, user.tenant, user.require_change)
            new_jobs = report.new_jobs
    names = {"action", "state", *FILTERS} | ({"all"} if everything else {"job"})
    return render(
        request,
        "act.html",
        action=action,
        verb=ACTIONS[action].verb,
        done_word=ACTIONS[action].done,
        explain=ACTIONS[action].explain,
        count=count,
        capped=count == MOST and not (everything and action in WHOLE),
        everything=everything,
        fields=[(name, value) for name, value in given if name in names],
        report=report,
        new_jobs=new_jobs,
        back=_back(wanted),
    )


def _wanted(given: list[tuple[str, str]]) -> JobFilter:
    only = dict(given)
    return validation.job_filter(
        [value for name, value in given if name == "state"], {name: only.get(name, "") for name in FILTERS}
    )


def _back(wanted: JobFilter) -> str:
    filters = [("state", state.value) for state in wanted.state]
    filters += [(name, getattr(wanted, name)) for name in FILTERS if name != "batch_id" and getattr(wanted, name)]
    query = f"?{urlencode(filters)}" if filters else ""
    return f"{HOME}/batches/{wanted.batch_id}{query}" if wanted.batch_id else f"{HOME}/jobs{query}"


def _owners(unit: UnitOfWork, user: User, wanted: JobFilter) -> list[str]:
    """Whose jobs may match. Raises `NotFound` for the batch of somebody else."""
    if wanted.batch_id:
        owner = unit.dashboard_queries.owner(wanted.batch_id)
        if owner is None or user.tenant not in (None, owner):
            raise NotFound("batch", wanted.batch_id)
        return [owner]
    if user.tenant is not None:
        return [user.tenant]
    found: list[str] = []
    while page := unit.tenants.page(found[-1] if found else None, 1_000):
        found += [tenant.id for tenant in page]
    return found


def _apply_to_all(
    context: AppContext, user: User, action: JobAction, wanted: JobFilter, *, sure: bool
) -> tuple[int, ActionReport | None]:
    """Cancel or retry all that match, by few statements for each tenant; or only count them."""
    chosen = Selection(wanted=wanted)
    with context.store.begin() as unit:
        owners = _owners(unit, user, wanted)
    count_matching = bulk_actions.count_cancelable if action is JobAction.CANCEL else bulk_actions.count_retryable
    matching = {owner: count_matching(context, owner, chosen) for owner in owners}
    count = sum(matching.values())
    if not sure:
        return count, None
    report = ActionReport()
    for owner, matched in matching.items():
        if not matched:
            continue
        user.require_change(owner)
        if action is JobAction.CANCEL:
            done = bulk_actions.cancel(context, owner, chosen)
            report.done += done.canceled + done.stopping
            if not done.complete:
                report.skipped["not reached within the time limit; repeat the action"] += max(
                    0, matched - done.canceled
                )
            continue
        try:
            report.done += bulk_actions.retry(context, owner, chosen)
        except QuotaExceeded as refused:
            report.skipped[str(refused)] += matched
    return count, report
