"""One trace for each job, whoever works on it; and one line of log that says whose it is."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from ipaddress import ip_network
from pathlib import Path
from typing import Any, cast

import pytest
import structlog
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from PIL import Image

from farm import lifecycle, tracing
from farm.domain.queue import Assignment
from farm.domain.states import JobState
from farm.domain.worker import Device, WorkerInfo
from farm.errors import SetupError
from farm.log import configure
from farm.settings import Settings
from farm.store.unit_of_work import Store
from farm.webhooks import signature
from farm.webhooks.deliverer import Deliverer
from tests.api_server import Hand, running
from tests.integration.conftest import Submit
from tests.job_specs import size_of
from tests.waiting import wait_until
from workers.checkpoints.writer import CheckpointWriter
from workers.engine import Engine
from workers.group_commit import GroupCommit
from workers.job_runner import JobRunner
from workers.leases import Leases
from workers.model_files import ModelFiles
from workers.prefetch import PrefetchControl
from workers.progress_reporter import ProgressReporter
from workers.render_request import RenderRequest, RenderResult
from workers.upload_spool import UploadSpool

JOB = {"task": "text-to-image", "model": "starter", "prompt": "a red ball on a blue background"}
CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class BlackEngine:
    """In place of the engine: a black image at once."""

    def submit(self, request: RenderRequest) -> Future[RenderResult]:
        request.on_start(request.total_steps)
        done: Future[RenderResult] = Future()
        done.set_result(RenderResult([Image.new("RGB", size_of(request.spec))], {"dtype": "float32"}))
        return done

    def withdraw(self, _: RenderRequest) -> None: ...

    def job_left(self, _: object) -> None: ...


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    tracing.set_processor("test", SimpleSpanProcessor(exporter))
    yield exporter
    tracing.reset()


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    configure(Settings(log_json=True), "test")
    structlog.configure(cache_logger_on_first_use=False)  # what is cached would stay so after this test
    written = io.StringIO()
    cast("logging.StreamHandler[Any]", root.handlers[0]).setStream(written)
    yield written
    root.handlers[:], level = before[0], before[1]
    root.setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def test_api_and_worker_write_one_trace_and_their_lines_of_log_say_whose(
    farm_env: dict[str, str], spans: InMemorySpanExporter, log: io.StringIO, tmp_path: Path
) -> None:
    settings = Settings()
    with running(settings) as api:
        headers = {"traceparent": CALLER, "X-Request-Id": "mine-1"}
        with api.client() as client:
            job = client.post("/v1/jobs", json=JOB, headers=headers).raise_for_status().json()["id"]
        hand = Hand(api)
        hand.join(
            WorkerInfo(hand.name, "boot", "test", Device("cpu", "cpu0", "a processor", 2**30, "float32"), 1, 2, 1)
        )
        with api.store.begin() as unit:
            (sent,) = lifecycle.dispatch(unit, [Assignment(job, hand.name)], 30)
        leases = Leases()
        model = api.server.config.app.state.context.registry.get  # type: ignore[union-attr]
        runner = JobRunner(
            hand.name,
            settings,
            api.store,
            api.storage,
            cast("Engine", BlackEngine()),
            GroupCommit(api.store, hand.name, 30),
            ProgressReporter(api.store, leases),
            leases,
            UploadSpool(tmp_path / "spool"),
            CheckpointWriter(api.store, api.storage, 0),
            model,
            ModelFiles(api.storage, tmp_path / "models", 2**30),
            PrefetchControl(1, 2, 2),
        )
        runner.run(job, sent.epoch)
        with api.store.begin() as unit:
            done = unit.jobs.get(job)
        assert done is not None
        assert done.state is JobState.SUCCEEDED, log.getvalue()

    found = {span.name: span for span in spans.get_finished_spans()}
    assert set(found) == {"job", "attempt", "claim", "inputs", "denoise", "encode", "upload", "commit"}
    assert {f"{span.context.trace_id:032x}" for span in found.values()} == {job.removeprefix("job_")}
    first, attempt = found["job"], found["attempt"]
    assert first.parent is None
    assert f"{first.links[0].context.trace_id:032x}" in CALLER
    assert attempt.parent is not None
    assert attempt.parent.span_id == first.context.span_id
    assert attempt.attributes is not None
    assert (attempt.attributes["farm.epoch"], attempt.attributes["farm.worker"]) == (sent.epoch, hand.name)
    for name in set(found) - {"job", "attempt"}:
        parent = found[name].parent
        assert parent is not None
        assert parent.span_id == attempt.context.span_id

    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    (claimed,) = [line for line in lines if line.get("action") == "job_claimed"]
    assert (claimed["job"], claimed["epoch"], claimed["worker"]) == (job, sent.epoch, hand.name)
    (asked,) = [line for line in lines if line.get("request") == "mine-1"]
    assert (asked["action"], asked["tenant"], asked["job"]) == ("request", api.tenant_id, job)


def test_the_webhook_of_a_jobs_end_is_in_its_trace(
    store: Store, tenant: str, submit: Submit, database_url: str, spans: InMemorySpanExporter
) -> None:
    with store.begin() as unit:  # nobody listens there: a try that fails is a try
        unit.webhooks.create_endpoint(tenant, "http://127.0.0.1:9/hook", signature.new_secret())
    job = submit()
    with store.begin() as unit:
        lifecycle.cancel(unit, tenant, job.id)
    config = Settings(database_url=database_url, webhook_allow=(ip_network("127.0.0.0/8"),), webhook_allow_http=True)
    deliverer = Deliverer(config, lambda key: f"https://bucket.example/{key}")
    working = threading.Thread(target=deliverer.run)
    working.start()
    try:
        (span,) = wait_until(lambda: [one for one in spans.get_finished_spans() if one.name == "webhook"], 20)
    finally:
        deliverer.stop()
        working.join(20)
    assert f"{span.context.trace_id:032x}" == job.id.removeprefix("job_")
    assert span.attributes is not None
    assert span.attributes["farm.event"] == "job.canceled"


def test_without_an_endpoint_nothing_of_opentelemetry_is_imported_and_without_the_extra_a_sentence_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code = (
        "import sys; from farm import tracing; from farm.settings import Settings\n"
        "tracing.configure(Settings(), 'api')\n"
        "with tracing.job_span('attempt', 'job_' + '0' * 32), tracing.span('claim'): pass\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(SetupError, match=r"\[otel\]"):
        tracing.configure(Settings(otel_endpoint="http://127.0.0.1:4318"), "api")
