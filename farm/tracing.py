"""Traces of jobs, for OpenTelemetry, if ``FARM_OTEL_ENDPOINT`` names a collector; else nothing is imported or done.

A job's id is a UUID, and so is a trace's: the trace of ``job_0199…`` is ``0199…``. Whoever does something for a job
(the API, the dispatcher, a worker) adds to its trace without a word from the others: nothing is stored or sent along.

    job                      the request that made it; its id is the second half of the job's
    ├── dispatch             the dispatcher
    ├── attempt              one epoch at a worker
    │   └── claim, inputs, denoise, encode, upload, commit
    └── webhook              one try of a deliverer to tell an endpoint

A job of a batch has no request of its own, so its trace lacks the first span. The trace of the client that called
(``traceparent``, W3C Trace Context) is linked to.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

from farm import authorities
from farm.domain import ids
from farm.errors import SetupError
from farm.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import SpanContext

_first: Final[ContextVar[int | None]] = ContextVar("first", default=None)  #: the job whose first span is being made
_tracer: Any = None  #: None: nobody listens
_NOTHING: Final[AbstractContextManager[None]] = nullcontext()


def configure(settings: Settings, service: str) -> None:
    """Send this process's spans to the collector that the settings name, if they do. Raises `SetupError`."""
    if settings.otel_endpoint is None:
        return
    try:
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415 - optional

        exporter = make_exporter(settings)
    except ImportError as error:
        raise SetupError(
            "FARM_OTEL_ENDPOINT is set, but OpenTelemetry is not installed: pip install 'diffusion-render-farm[otel]', "
            "or unset it"
        ) from error
    set_processor(service, BatchSpanProcessor(exporter))


def make_exporter(settings: Settings) -> SpanExporter:
    """What sends spans to the collector of the settings. Raises `ImportError` without OpenTelemetry."""
    import requests  # noqa: PLC0415 - optional
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415

    class Session(requests.Session):
        """One whose own authorities are not replaced by those of ``REQUESTS_CA_BUNDLE``."""

        def merge_environment_settings(self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any) -> Any:
            chosen = self.verify if verify is None else verify
            return super().merge_environment_settings(url, proxies, stream, chosen, cert)

    return OTLPSpanExporter(
        endpoint=f"{(settings.otel_endpoint or '').rstrip('/')}/v1/traces",
        certificate_file=None if settings.ca_file is None else authorities.bundle(settings.ca_file),
        session=Session(),
    )


def set_processor(service: str, processor: SpanProcessor) -> None:
    """Give this process's spans to a processor."""
    global _tracer  # noqa: PLW0603 - one process has one place where its spans go, as it has one log
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415 - optional
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator  # noqa: PLC0415
    from opentelemetry.sdk.trace.sampling import ALWAYS_ON  # noqa: PLC0415

    class Ids(RandomIdGenerator):
        """Random ones, but for a job's first span: there, those that everybody else derives from the job's id."""

        def generate_trace_id(self) -> int:
            job = _first.get()
            return super().generate_trace_id() if job is None else job

        def generate_span_id(self) -> int:
            job = _first.get()
            return super().generate_span_id() if job is None else _low(job)

    resource = Resource.create({"service.name": f"farm-{service}"})
    provider = TracerProvider(sampler=ALWAYS_ON, resource=resource, id_generator=Ids())
    provider.add_span_processor(processor)
    _tracer = provider.get_tracer("farm")


def reset() -> None:
    """Forget where spans go."""
    global _tracer  # noqa: PLW0603
    _tracer = None


def record_submission(job_id: str, traceparent: str | None, began: float, **attributes: str | int) -> None:
    """A request made a job: the first span of its trace, from ``began`` (Unix time) until now."""
    if _tracer is None:
        return
    from opentelemetry.context import Context  # noqa: PLC0415 - optional
    from opentelemetry.trace import Link  # noqa: PLC0415

    caller = _caller(traceparent)
    token = _first.set(ids.to_uuid(ids.JOB, job_id).int)
    try:
        span = _tracer.start_span(
            "job",
            context=Context(),
            links=[] if caller is None else [Link(caller)],
            start_time=int(began * 1e9),
            attributes=_named(job_id, attributes),
        )
    finally:
        _first.reset(token)
    span.end()


def job_span(name: str, job_id: str, **attributes: str | int) -> AbstractContextManager[None]:
    """A span of a job's trace, under its first span."""
    return _NOTHING if _tracer is None else _spanned(name, _under(job_id), _named(job_id, attributes))


def job_event(name: str, job_id: str, **attributes: str | int) -> None:
    """Something that happened to a job just now."""
    if _tracer is not None:
        with job_span(name, job_id, **attributes):
            pass


def span(name: str) -> AbstractContextManager[None]:
    """A span within the one that this thread is in."""
    return _NOTHING if _tracer is None else _spanned(name, None, {})


@contextmanager
def _spanned(name: str, context: Context | None, attributes: dict[str, str | int]) -> Iterator[None]:
    with _tracer.start_as_current_span(name, context=context, attributes=attributes):
        yield


def _named(job_id: str, attributes: dict[str, str | int]) -> dict[str, str | int]:
    return {"farm.job": job_id} | {f"farm.{name}": value for name, value in attributes.items()}


def _low(job: int) -> int:
    """The id of a job's first span: never 0, because a UUID's variant is in it."""
    return job & (1 << 64) - 1


def _under(job_id: str) -> Context:
    from opentelemetry.context import Context  # noqa: PLC0415 - optional
    from opentelemetry.trace import (  # noqa: PLC0415
        NonRecordingSpan,
        SpanContext,
        TraceFlags,
        set_span_in_context,
    )

    job = ids.to_uuid(ids.JOB, job_id).int
    first = SpanContext(job, _low(job), is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    return set_span_in_context(NonRecordingSpan(first), Context())


def _caller(traceparent: str | None) -> SpanContext | None:
    """What a client's ``traceparent`` names; None if it is not valid."""
    from opentelemetry.trace import get_current_span  # noqa: PLC0415 - optional
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

    context = TraceContextTextMapPropagator().extract({"traceparent": traceparent or ""})
    found = get_current_span(context).get_span_context()
    return found if found.is_valid else None
