"""Measures the stages of a job."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from farm import metrics, tracing


@contextmanager
def measure(stage: str) -> Iterator[None]:
    """Time the block as a stage: in the metric, and as a span of the job's trace."""
    with metrics.timed(metrics.STAGE_SECONDS.labels(stage)), tracing.span(stage):
        yield
