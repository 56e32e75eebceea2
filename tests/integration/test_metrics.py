"""What the services show to Prometheus, and that dashboards and alerts ask for nothing else."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from farm import metrics
from farm.settings import Settings
from tests.api_server import running
from tests.waiting import wait_until

from .conftest import Submit

INFRA = Path(__file__).parents[2] / "infra"
#: What PromQL says itself; everything else that is no label, function, string or number is a metric.
WORDS = {"and", "or", "unless", "on", "ignoring", "group_left", "group_right", "offset", "bool", "by", "without", "inf"}


def asked_for(expression: str) -> set[str]:
    """The metrics that a PromQL expression names."""
    bare = re.sub(r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\'|`[^`]*`', "", expression)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", bare)  # matchers and ranges
    bare = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", bare)  # lists of labels
    names = re.finditer(r"(?<![\w.])[A-Za-z_:][\w:]*(?!\w)(?!\s*\()", bare)
    return {name[0] for name in names} - WORDS


def expressions() -> dict[str, str]:
    found: dict[str, str] = {}
    for group in yaml.safe_load((INFRA / "prometheus" / "rules.yml").read_text())["groups"]:
        found |= {rule["alert"]: rule["expr"] for rule in group["rules"]}
    for panel in json.loads((INFRA / "grafana" / "farm.json").read_text())["panels"]:
        found |= {f"{panel['title']} {target['refId']}": target["expr"] for target in panel["targets"]}
    return found


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        assert answer.headers["content-type"].split(";")[0] == CONTENT_TYPE_LATEST.split(";")[0]
        return str(answer.read().decode())


@pytest.fixture
def dispatcher(farm_env: dict[str, str]) -> Iterator[int]:
    """The port of a real dispatcher's metrics."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "farm.cli", "dispatcher"],
        env=farm_env | {"FARM_METRICS_DISPATCHER_PORT": str(port), "PYTHONPATH": str(INFRA.parent)},
        stderr=subprocess.PIPE,
    )
    try:
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)


def test_dashboards_and_alerts_name_only_what_a_dispatcher_really_shows(dispatcher: int, submit: Submit) -> None:
    submit()
    submit()

    def shown() -> str:
        with contextlib.suppress(OSError):
            return scrape(dispatcher)
        return ""

    waiting = 'farm_jobs{model="starter",state="queued"} 2.0'
    wait_until(lambda: waiting in shown(), 60, what="the leader shows what waits")
    names: set[str] = set()
    for family in text_string_to_metric_families(shown()):
        suffixes = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("_total",)}.get(family.type, ("",))
        names |= {family.name + suffix for suffix in suffixes}
        labels = {label for sample in family.samples for label in sample.labels}
        assert not labels & {"job", "job_id", "tenant", "tenant_id"}, family.name
    for where, expression in expressions().items():
        asked = asked_for(expression)
        assert asked, where
        assert asked <= names, f"{where} asks for {asked - names}"
    assert asked_for('sum by (x) (rate(nobody_has_this{a="b"}[5m])) > 1') == {"nobody_has_this"}


def test_requests_are_counted_by_route_and_the_apis_own_port_shows_no_metrics(farm_env: dict[str, str]) -> None:
    def count(route: str, status: str) -> float:
        labels = {"method": "GET", "route": route, "status": status}
        return REGISTRY.get_sample_value("farm_http_request_duration_seconds_count", labels) or 0

    with running(Settings()) as api, api.client() as client:
        before = count("/v1/jobs/{job_id}", "404")
        assert client.get("/v1/jobs/job_00000000000000000000000000000000").status_code == 404
        assert client.get("/metrics").status_code == 404
        wait_until(lambda: count("/v1/jobs/{job_id}", "404") == before + 1, 5, what="the request is counted")


def test_a_port_that_is_taken_stops_no_service() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        metrics.serve(Settings(), taken.getsockname()[1])
