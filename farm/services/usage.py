"""What tenants have used, by day and model, as rows or as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from datetime import date

from farm.services.context import ServiceContext


@dataclass(frozen=True)
class TenantUsage:
    """What one tenant used of one model on one day (UTC)."""

    day: date
    tenant_id: str
    tenant: str  #: its name
    model: str
    jobs: int  #: that succeeded
    outputs: int
    bytes: int  #: of the outputs
    device_seconds: float


def between(context: ServiceContext, first: date, last: date, tenant_id: str | None) -> list[TenantUsage]:
    """By day, tenant and model; None: of all tenants. Raises `NotFound` for a tenant that does not exist."""
    with context.store.begin() as unit:
        whose = None if tenant_id is None else unit.tenants.existing(tenant_id).id
        used = unit.usage.between(first, last, whose)
        names = unit.tenants.names({one.tenant_id for one in used})
    return [
        TenantUsage(
            day=one.day,
            tenant_id=one.tenant_id,
            tenant=names[one.tenant_id],
            model=one.model,
            jobs=one.jobs,
            outputs=one.outputs,
            bytes=one.bytes,
            device_seconds=round(one.device_seconds, 3),
        )
        for one in used
    ]


def as_csv(rows: Iterable[TenantUsage]) -> str:
    """The rows as CSV with a header."""
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(field.name for field in fields(TenantUsage))
    for row in rows:
        table.writerow(_cell(value) for value in asdict(row).values())
    return out.getvalue()


def _cell(value: object) -> object:
    """Quote what a spreadsheet would take for a formula: a tenant's name may be any text."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
