"""Schemathesis against the running API: every operation, every check, generated requests of all kinds."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from farm.domain.worker import Device, WorkerInfo
from farm.settings import Settings
from tests.api_server import Hand, running
from tests.depth import NIGHTLY

#: Generated requests per operation and phase: few in each run of the suite, many in `make nightly`.
EXAMPLES = int(os.environ.get("SCHEMA_EXAMPLES") or (60 if NIGHTLY else 1))
#: A fixed seed in the suite, so that it fails only for a change; nightly draws one, and the report prints it.
SEED = int(os.environ.get("SCHEMA_SEED") or (secrets.randbelow(2**31) if NIGHTLY else 1))

# What a JSON Schema cannot say: that a named image, job or model exists, that it has the mask's size, that the model
# renders the size and leaves a step to take, that bytes are an image, that a model's class exists, that a URL leads to
# a public host, that a cursor came from us, that a last day or place is not before the first, that an Idempotency-Key
# was not used for another request, or that a batch's jobs differ in a parameter. Such requests are valid by the schema
# and still answered with 422 (or 415, where a form is asked for with a part that is no file). 429: another request may
# have lowered the tenant's limits to 0.
CONFIG = """
[generation]
database = "none"
max-examples = EXAMPLES

[[operations]]
include-name = "POST /v1/jobs"
checks.positive_data_acceptance.expected-statuses = ["2XX", 409, 422, 429]

[[operations]]
include-name = "POST /v1/batches"
checks.positive_data_acceptance.expected-statuses = ["2XX", 409, 422, 429]

[[operations]]
include-name = "POST /v1/models"
checks.positive_data_acceptance.expected-statuses = ["2XX", 409, 422]

[[operations]]
include-name = "POST /v1/model-uploads"
checks.positive_data_acceptance.expected-statuses = ["2XX", 422]

[[operations]]
include-name = "PATCH /v1/models/{model_id}"
checks.positive_data_acceptance.expected-statuses = ["2XX", 404, 409, 422]

[[operations]]
include-name = "POST /v1/files"
checks.positive_data_acceptance.expected-statuses = ["2XX", 415, 422, 429]

[[operations]]
include-name = "POST /v1/webhooks/endpoints"
checks.positive_data_acceptance.expected-statuses = ["2XX", 422]

[[operations]]
include-name = [
  "POST /v1/keys", "POST /v1/keys/{key_id}/rotate", "POST /v1/join-tokens", "POST /v1/tenants",
  "POST /v1/webhooks/endpoints/{endpoint_id}/rotate", "POST /v1/webhooks/endpoints/{endpoint_id}/test",
]
checks.positive_data_acceptance.expected-statuses = ["2XX", 404, 409, 422]

[[operations]]
include-name = "PATCH /v1/webhooks/endpoints/{endpoint_id}"
checks.positive_data_acceptance.expected-statuses = ["2XX", 404, 409, 422]

[[operations]]
include-name = "GET /v1/webhooks/deliveries"
checks.positive_data_acceptance.expected-statuses = ["2XX", 422]

[[operations]]
include-name = "GET /v1/usage"
checks.positive_data_acceptance.expected-statuses = ["2XX", 403, 404, 422]

[[operations]]
include-name = "GET /v1/batches/{batch_id}/archive"
checks.positive_data_acceptance.expected-statuses = ["2XX", 404, 409, 422]

[[operations]]
include-name = "HEAD /v1/batches/{batch_id}/archive"
checks.positive_data_acceptance.expected-statuses = ["2XX", 404, 409, 422]

[[operations]]
include-name = "GET /v1/batches/{batch_id}/contact-sheet"
checks.positive_data_acceptance.expected-statuses = ["2XX", 404, 409, 422]

[[operations]]
include-name = "GET /v1/webhooks/endpoints"
checks.positive_data_acceptance.expected-statuses = ["2XX", 422]
"""

# The boundary values of each parameter of each task are half of all generated requests, and more with each new task. In
# the suite `contract/test_parameters_everywhere.py` has them, and these operations get some random requests instead.
SHORT = """
[[operations]]
include-name = ["POST /v1/jobs", "POST /v1/batches"]
phases.coverage.enabled = false
generation.max-examples = 20
"""


@pytest.mark.timeout(7200 if NIGHTLY else 900)
def test_no_generated_request_breaks_the_contract(farm_env: dict[str, str], tmp_path: Path) -> None:
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG.replace("EXAMPLES", str(EXAMPLES)) + ("" if NIGHTLY else SHORT))
    report = tmp_path / "report.json"
    settings = Settings(max_wait_seconds=0.2)
    with running(settings) as api:
        hand = Hand(api)
        info = WorkerInfo(hand.name, "boot", "test", Device("cpu", "cpu0", "a processor", 2**30, "float32"), 1, 2, 1)
        hand.join(info)
        stopping = threading.Event()
        # jobs come to an end, so that the streams of their events do
        rendering = threading.Thread(target=hand.run_all, args=[stopping], name="rendering")
        rendering.start()
        try:
            done = subprocess.run(
                [
                    str(Path(sys.executable).with_name("schemathesis")),
                    f"--config-file={config}",
                    "run",
                    f"{api.url}/openapi.json",
                    f"--header=Authorization: Bearer {api.key}",
                    f"--seed={SEED}",
                    "--request-timeout=20",
                    "--suppress-health-check=all",
                    "--continue-on-failure",
                    f"--report-json-path={report}",
                    "--report=json",
                ],
                capture_output=True,
                text=True,
                timeout=600 + EXAMPLES * 60,
                cwd=tmp_path,
                env={"PATH": os.environ["PATH"], "NO_COLOR": "1", "COLUMNS": "140"},
            )
        finally:
            stopping.set()
            rendering.join(20)
        print(done.stdout[-60_000:])
        assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-4_000:]
        assert json.loads(report.read_text())
