"""The body of a webhook: small, complete, and the same at each try."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farm.domain.job import Job, JobError, Output
from farm.domain.job_spec import InputFile
from farm.domain.states import EventType, JobState, Priority
from farm.fields import MAX_SEED
from farm.webhooks.payload import MARKER, MAX_BYTES, job_payload, stamp
from tests.job_specs import job_spec

AT = datetime(2026, 1, 2, 3, 4, 5, 678_900, tzinfo=UTC)
SPEC = job_spec(
    {
        "task": "image-to-image",
        "model": "starter",
        "prompt": "a red ball",
        "negative_prompt": "",
        "num_inference_steps": 4,
        "guidance_scale": 4.0,
        "scheduler": "ddim",
        "seed": MAX_SEED,
        "num_outputs": 1,
        "width": 64,
        "height": 64,
        "strength": 0.5,
        "output_format": "png",
        "inputs": {"image": InputFile(sha256="cd" * 32, key="secret/key", media_type="image/png", size=99)},
    }
)


def output(index: int) -> Output:
    return Output(index, f"outputs/{index}.png", "image/png", 1234, "ab" * 32, MAX_SEED, {"width": 64, "height": 64})


JOB = Job(
    id="job_" + "0" * 32,
    tenant_id="ten_" + "0" * 32,
    state=JobState.SUCCEEDED,
    spec=SPEC,
    priority=Priority.NORMAL,
    epoch=1,
    attempts=1,
    max_attempts=3,
    worker="host/cuda0",
    progress=None,
    outputs=(output(0),),
    error=None,
    recipe={"version": 1},
    custom_id="chair-17",
    metadata={"sku": "A-1"},
    webhook="https://receiver.example/?token=secret",
    cost=1.0,
    cancel_requested=False,
    retry_of=None,
    created_at=AT,
    available_at=AT,
    dispatched_at=AT,
    claimed_at=AT,
    started_at=AT,
    finished_at=AT + timedelta(seconds=2),
)


def read(job: Job, url: str = "https://bucket.example/{}?signed") -> dict[str, Any]:
    made = job_payload(EventType.SUCCEEDED, AT, 7, job, url.format, AT + timedelta(hours=1))
    assert len(made) < MAX_BYTES
    return dict(json.loads(made))


def test_a_body_says_what_happened_to_which_job() -> None:
    assert read(JOB) == {
        "type": "job.succeeded",
        "timestamp": "2026-01-02T03:04:05.678Z",
        "sequence": 7,
        "data": {
            "id": JOB.id,
            "state": "succeeded",
            "task": "image-to-image",
            "model": "starter",
            "custom_id": "chair-17",
            "metadata": {"sku": "A-1"},
            "parameters": {
                "prompt": "a red ball",
                "negative_prompt": "",
                "num_inference_steps": 4,
                "guidance_scale": 4.0,
                "scheduler": "ddim",
                "seed": MAX_SEED,
                "num_outputs": 1,
                "width": 64,
                "height": 64,
                "output_format": "png",
                "exact": True,
                "strength": 0.5,
                "image": "sha256:" + "cd" * 32,
            },
            "outputs": [
                {
                    "media_type": "image/png",
                    "size": 1234,
                    "sha256": "ab" * 32,
                    "seed": MAX_SEED,
                    "width": 64,
                    "height": 64,
                    "metadata": {"width": 64, "height": 64},
                    "url": "https://bucket.example/outputs/0.png?signed",
                    "url_expires_at": "2026-01-02T04:04:05.678Z",
                }
            ],
            "depends_on": [],
            "error": None,
            "warnings": [],
            "attempts": 1,
            "worker": "host/cuda0",
            "created_at": "2026-01-02T03:04:05.678Z",
            "finished_at": "2026-01-02T03:04:07.678Z",
        },
    }


def test_a_body_tells_no_inner_names() -> None:
    made = json.dumps(read(JOB))
    assert "token=secret" not in made
    assert "secret/key" not in made
    assert JOB.tenant_id not in made


def test_what_is_too_large_is_shortened_and_says_so() -> None:
    spec = SPEC.model_copy(
        update={
            "common": {**SPEC.common, "prompt": "p" * 10_000, "negative_prompt": "n" * 10_000},
            "parameters": {"prompt_2": "q" * 10_000},
        }
    )
    found = read(replace(JOB, spec=spec))
    assert found["truncated"] is True
    parameters = found["data"]["parameters"]
    assert parameters["prompt"] == "p" * 2_000 + MARKER
    assert parameters["negative_prompt"] == "n" * 2_000 + MARKER
    assert parameters["parameters"]["prompt_2"] == "q" * 2_000 + MARKER
    assert found["data"]["metadata"] == {"sku": "A-1"}
    assert found["data"]["outputs"][0]["url"]
    assert "truncated" not in read(JOB)


def test_urls_go_last() -> None:
    many = replace(JOB, outputs=tuple(map(output, range(16))), metadata={"k" * 64: "v" * 1_000})
    found = read(many, "https://bucket.example/{}?" + "s" * 2_000)
    assert found["truncated"] is True
    assert found["data"]["metadata"] == {}
    assert [one["url"] for one in found["data"]["outputs"]] == [None] * 16
    assert [one["sha256"] for one in found["data"]["outputs"]] == ["ab" * 32] * 16


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)


@settings(deadline=None, max_examples=50)
@given(text=TEXT, outputs=st.integers(0, 16), pairs=st.integers(0, 50))
def test_any_job_that_the_api_accepts_fits(text: str, outputs: int, pairs: int) -> None:
    def long(length: int) -> str:
        return (text * (length // len(text) + 1))[:length]

    job = replace(
        JOB,
        spec=SPEC.model_copy(
            update={
                "common": {**SPEC.common, "prompt": long(10_000), "negative_prompt": long(10_000)},
                "parameters": {f"{number}{long(60)}": [long(1_000)] for number in range(pairs)},
                "scheduler_options": {"sigmas": [0.123456789] * 20 * pairs},
                "model": long(200),
            }
        ),
        custom_id=long(200),
        metadata={f"{number}{long(60)}": long(1_000) for number in range(pairs)},
        outputs=tuple(map(output, range(outputs))),
        error=JobError("render_failed", long(5_000)),
    )
    assert read(job)["data"]["id"] == JOB.id


@pytest.mark.parametrize("zone", [UTC, timezone(timedelta(hours=2))])
def test_times_are_utc(zone: timezone) -> None:
    assert stamp(AT.astimezone(zone)) == "2026-01-02T03:04:05.678Z"
