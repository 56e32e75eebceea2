"""The audit log: each change by the API and the dashboard is recorded with the key that made it.

What tenants do all day (submitting, uploading, starring) is not: the jobs and their events say that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import structlog

from farm.errors import DatabaseUnavailable
from farm.services.context import ServiceContext
from farm.store.tenants import Key

log = structlog.get_logger(__name__)

CHANGES: Final = frozenset({"POST", "PUT", "PATCH", "DELETE"})
#: Path templates whose requests are no entries.
NOT_RECORDED: Final = frozenset(
    {
        *("/v1/jobs", "/v1/batches", "/v1/files", "/v1/outputs/archive", "/v1/outputs/labels"),
        *("/farm/render", "/farm/batches/new", "/farm/batches/check", "/farm/login", "/farm/logout"),
        *("/farm/studio/jobs", "/farm/studio/files", "/farm/studio/recipe"),
    }
)
#: Fields of forms and queries that say what was changed.
NAMING: Final = ("name", "model", "tenant", "action", "priority", "job", "place", "worker")
MAX_TARGET: Final = 500  #: characters
MAX_VALUES: Final = 3  #: of one field


def record(
    context: ServiceContext,
    key: Key,
    action: str,
    path: Mapping[str, str],
    fields: Mapping[str, list[str]],
    request_id: str,
) -> None:
    """Record a change that was made. If the database does not answer, a line of the log says it instead.

    Args:
        context: the process's connections.
        key: who made it.
        action: method and path template.
        path: the parameters of the path.
        fields: of the query or the form; those that are not `NAMING` are left out, so no secret is recorded.
        request_id: the request's.
    """
    parts = [value for value in path.values() if value]
    for name in NAMING:
        values = fields.get(name, [])
        if values:
            more = f" and {len(values) - MAX_VALUES} more" if len(values) > MAX_VALUES else ""
            parts.append(f"{name}={', '.join(values[:MAX_VALUES])}{more}")
    target = " ".join(parts)[:MAX_TARGET].replace("\0", "")
    try:
        with context.store.begin() as unit:
            unit.audit.add(key.id, key.name, key.tenant_id, action, target, request_id)
    except DatabaseUnavailable as error:
        log.warning("a change is not in the audit log", action="audit", change=action, target=target, error=str(error))
