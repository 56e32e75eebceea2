"""One action on many jobs: on those that are ticked, or on all that match a filter; counted before, reported after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlencode

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from farm import lifecycle
from farm.api.dependencies import AppContext, Context
from farm.dashboard.rendering import HOME, CurrentUser, PageRoute, render
from farm.dashboard.session import User
from farm.domain.job import Job, JobFilter, Selection
from farm.domain.states import JobState
from farm.errors import BadInput, Conflict, Forbidden, NotFound, QuotaExceeded
from farm.services import bulk_actions, jobs, validation
from farm.store.unit_of_work import UnitOfWork

router: Final = APIRouter(prefix=HOME, include_in_schema=False, route_class=PageRoute)

MOST: Final = 5_000  #: jobs that one action touches one by one; canceling and retrying all that match has no limit
TOGETHER: Final = 100  #: jobs changed in one transaction
FILTERS: Final = ("batch_id", "task", "model", "worker", "custom_id", "error_code")


@dataclass(frozen=True)
class Action:
    """What can be done to many jobs."""

    verb: str
    done: str
    explain: str
    do: Callable[[UnitOfWork, User, Job], str | None]  #: returns the new job's id, if it makes one


@dataclass
class Report:
    """What an action did."""

    done: int = 0
    skipped: Counter[str] = field(default_factory=Counter)  #: jobs, by the reason why they were left as they are
    made: list[str] = field(default_factory=list)  #: new jobs
    unnamed: bool = False  #: new jobs were made, too many to name


def _cancel(unit: UnitOfWork, user: User, job: Job) -> None:
    if job.state.terminal:
        raise Conflict(f"had {job.state} already")
    lifecycle.cancel(unit, user.require_change(job.tenant_id), job.id)


def _retry(unit: UnitOfWork, user: User, job: Job) -> str:
    if job.state not in (JobState.FAILED, JobState.CANCELED):
        raise Conflict(f"{job.state}: only failed and canceled jobs are retried")
    return lifecycle.retry(unit, user.require_change(job.tenant_id), job.id).id


def _rerun(unit: UnitOfWork, user: User, job: Job) -> str:
    user.require_change(job.tenant_id)
    return jobs.submit_rerun(unit, job).id


ACTIONS: Final = {
    "cancel": Action(
        "Cancel", "canceled, or asked to stop at the next step", "Finished jobs stay as they are.", _cancel
    ),
    "retry": Action("Retry", "submitted again", "Each that failed or was canceled becomes a new job.", _retry),
    "rerun": Action(
        "Rerun", "submitted with another seed", "Each becomes a new job with the same wishes and another seed.", _rerun
    ),
}


#: What is done to all that match by few statements, however many there are.
WHOLE: Final = frozenset({"cancel", "retry"})


@router.post("/act")
async def act(request: Request, context: Context, user: CurrentUser) -> Response:
    """Ask, or do it and tell."""
    form = await request.form(max_files=0, max_fields=MOST + 50)
    given = [(name, value) for name, value in form.multi_items() if isinstance(value, str)]
    return await run_in_threadpool(_act, request, context, user, given)


def _act(request: Request, context: AppContext, user: User, given: list[tuple[str, str]]) -> Response:
    only = dict(given)
    action = ACTIONS.get(only.get("action", ""))
    if action is None:
        raise BadInput.of("action", only.get("action"), f"must be one of {', '.join(ACTIONS)}")
    everything = only.get("all") == "1"
    wanted = _wanted(given)
    sure = only.get("sure") == "1"
    if everything and only["action"] in WHOLE:
        count, report = _do_all(context, user, only["action"], wanted, sure=sure)
    else:
        chosen = [value for name, value in given if name == "job"][:MOST]
        if everything:
            with context.store.begin() as unit:
                _owners(unit, user, wanted)
                chosen = unit.dashboard_queries.matching(user.tenant, wanted, MOST)
        count, report = len(chosen), _do(context, user, action, chosen) if sure else None
    names = {"action", "state", *FILTERS} | ({"all"} if everything else {"job"})
    return render(
        request,
        "act.html",
        action=only["action"],
        verb=action.verb,
        done_word=action.done,
        explain=action.explain,
        count=count,
        capped=count == MOST and not (everything and only["action"] in WHOLE),
        everything=everything,
        fields=[(name, value) for name, value in given if name in names],
        report=report,
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


def _do_all(
    context: AppContext, user: User, action: str, wanted: JobFilter, *, sure: bool
) -> tuple[int, Report | None]:
    """Cancel or retry all that match, by few statements for each tenant; or only count them."""
    chosen = Selection(wanted=wanted)
    with context.store.begin() as unit:
        owners = _owners(unit, user, wanted)
    count_matching = bulk_actions.count_cancelable if action == "cancel" else bulk_actions.count_retryable
    matching = {owner: count_matching(context, owner, chosen) for owner in owners}
    count = sum(matching.values())
    if not sure:
        return count, None
    report = Report()
    for owner, matched in matching.items():
        if not matched:
            continue
        user.require_change(owner)
        if action == "cancel":
            done = bulk_actions.cancel(context, owner, chosen)
            report.done += done.canceled + done.stopping
            if not done.complete:
                report.skipped["could not be reached in time; repeat the action"] += max(0, matched - done.canceled)
            continue
        try:
            report.done += bulk_actions.retry(context, owner, chosen)
            report.unnamed = True
        except QuotaExceeded as refused:
            report.skipped[str(refused)] += matched
    return count, report


def _do(context: AppContext, user: User, action: Action, chosen: list[str]) -> Report:
    report = Report()
    for start in range(0, len(chosen), TOGETHER):
        part = chosen[start : start + TOGETHER]
        with context.store.begin() as unit:
            found = unit.jobs.many(part)
            for job_id in part:
                job = found.get(job_id)
                if job is None or user.tenant not in (None, job.tenant_id):
                    report.skipped["are gone"] += 1
                    continue
                try:
                    made = action.do(unit, user, job)
                except (Conflict, QuotaExceeded, NotFound, Forbidden) as refused:
                    report.skipped[str(refused)] += 1
                    continue
                report.done += 1
                if made is not None:
                    report.made.append(made)
    return report
