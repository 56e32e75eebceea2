"""A bulk request on its way through the threads that its parts may take."""

from __future__ import annotations

from functools import partial

from starlette.concurrency import run_in_threadpool

from farm.api.dependencies import AppContext
from farm.domain.batch import Batch, Estimate
from farm.services import bulk
from farm.services.bulk import BatchOptions, BulkSource


async def submit_bulk(
    context: AppContext, tenant_id: str, options: BatchOptions, source: BulkSource, key: str | None = None
) -> tuple[Batch | Estimate, bool]:
    """`bulk.submit`, after the images that lines name by URL were fetched. Raises the same, and `QuotaExceeded`."""
    if key is not None and not options.dry_run:
        earlier = await run_in_threadpool(bulk.find_earlier, context, tenant_id, source, key)
        if earlier is not None:
            return earlier, False
    if source.names_urls:
        fetch = partial(bulk.fetch_inputs, context, tenant_id, options, source)
        validator = await context.fetching.run(tenant_id, fetch)
    else:
        validator = bulk.LineValidator(context, tenant_id, options.defaults, one_numerics=options.new.one_numerics)
    submit = partial(bulk.submit, context, tenant_id, options, source, validator, key)
    return await context.bulk.run(tenant_id, submit)
