"""Work done on a device is not thrown away: a job that loses its worker goes on with the same bytes."""

from __future__ import annotations

import re
import signal
import socket
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from farm import lifecycle
from farm.domain.checkpoint import Checkpoint
from farm.domain.job import HeldJob, Job
from farm.domain.states import JobState
from farm.errors import LeaseLost
from farm.objects.keys import checkpoint_prefix
from farm.services.cleanup import CleanupThread
from tests.conftest import TestServers
from tests.integration.worker_process import Farm, NoiseWorker, Wire, WorkerProcess, spec
from tests.waiting import wait_until
from workers.checkpoints.writer import CheckpointWriter
from workers.engine_messages import StoredPart
from workers.leases import Lease

#: Long enough to be stopped in the middle.
LONG: dict[str, Any] = {"num_inference_steps": 150, "width": 128, "height": 128}
OFTEN = {"FARM_CHECKPOINT_SECONDS": "0.2"}


@pytest.fixture(scope="module")
def farm(servers: TestServers, migrated_template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    servers.postgres.create_database("checkpoints", template=migrated_template)
    env = servers.env(database_url=servers.postgres.url("checkpoints"), redis_url=servers.valkey.url(0))
    env |= {"FARM_HEARTBEAT_SECONDS": "0.5", "FARM_RUN_LEASE_SECONDS": "6"}
    farm = Farm(env, tmp_path_factory.mktemp("worker"))
    yield farm
    farm.close()
    servers.postgres.drop_database("checkpoints")


class Measured:
    """A real worker whose device's forwards are counted."""

    def __init__(self, farm: Farm, device: str, **env: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.worker = WorkerProcess(farm, device, env=OFTEN | {"FARM_METRICS_WORKER_PORT": str(self.port)} | env)

    def value(self, name: str) -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10) as answer:
            found = re.search(rf"^{re.escape(name)} (\S+)$", answer.read().decode(), re.MULTILINE)
        return 0.0 if found is None else float(found[1])

    @property
    def forwards(self) -> float:
        return self.value("farm_forward_duration_seconds_count")


@pytest.fixture(scope="module")
def workers(farm: Farm) -> Iterator[tuple[Measured, Measured]]:
    found = Measured(farm, "cpu0"), Measured(farm, "cpu1")
    try:
        for one in found:
            one.worker.start()
        for one in found:
            one.worker.wait_online()
        yield found
    finally:
        for one in found:
            one.worker.kill()


def stored(farm: Farm, job: Job) -> Checkpoint | None:
    with farm.store.begin() as unit:
        return unit.checkpoints.get(job.id)


def objects(farm: Farm, job: Job) -> list[str]:
    return [one.key for one in farm.storage.list(checkpoint_prefix(farm.tenant, job.id))]


def hashes(job: Job) -> list[str]:
    return [one.sha256 for one in job.outputs]


def requeue_events(farm: Farm, job: Job) -> list[dict[str, Any]]:
    with farm.store.begin() as unit:
        return [event.data for event in unit.events.of_job(job.id) if event.type == "job.requeued"]


@pytest.mark.timeout(300)
def test_a_job_whose_worker_is_killed_or_drained_goes_on_with_the_same_bytes(
    farm: Farm, workers: tuple[Measured, Measured]
) -> None:
    first, second = workers
    wanted = spec(**LONG)
    began = second.forwards
    whole = farm.wait(farm.start(wanted, second.worker.name), JobState.SUCCEEDED)
    undisturbed = second.forwards - began
    assert undisturbed >= 150
    assert whole.steps_resumed == 0

    # SIGKILL at 70 % of the job
    on_first, on_second = first.forwards, second.forwards
    job = farm.start(wanted, first.worker.name)
    comes_to(farm, job, 100)
    computed = first.forwards - on_first
    first.worker.kill()
    kept = stored(farm, job)
    assert kept is not None
    first.worker.start().wait_online()  # which gives the job back
    assert requeue_events(farm, job) == [{"reason": "worker lost", "steps_kept": kept.steps}]
    farm.dispatch(job, second.worker.name)
    ended = farm.wait(job, JobState.SUCCEEDED)
    assert hashes(ended) == hashes(whole)
    assert (ended.attempts, ended.steps_resumed) == (2, kept.steps)
    assert second.forwards - on_second <= undisturbed - kept.steps
    assert computed + second.forwards - on_second <= 1.2 * undisturbed
    assert second.value('farm_steps_resumed_total{model="starter"}') == kept.steps
    wait_until(lambda: not objects(farm, job) or cleaned(farm), 20, what="the checkpoint is deleted")
    assert stored(farm, job) is None

    # SIGTERM in the middle of a job that would take longer than the drain: it ends at once, and nothing is lost
    job = farm.start(spec(**LONG, num_outputs=16), second.worker.name)
    wait_until(lambda: (p := farm.job(job.id).progress) and p.step >= 60, 60, what="the job is on the device")
    second.worker.signal(signal.SIGTERM)
    asked_at = time.monotonic()
    back = farm.wait(job, JobState.QUEUED, timeout=20)
    assert time.monotonic() - asked_at < 10, "not after the 25 seconds of the drain"
    assert (back.attempts, back.error) == (0, None)
    kept = stored(farm, job)
    assert kept is not None
    assert kept.steps >= 60
    assert requeue_events(farm, job) == [{"reason": "worker stopped", "steps_kept": kept.steps}]
    assert second.worker.wait(30) == 0
    farm.dispatch(job, first.worker.name)
    wait_until(lambda: farm.job(job.id).steps_resumed, 60, what="it goes on")
    resumed = farm.job(job.id)
    assert (resumed.steps_resumed, resumed.attempts) == (kept.steps, 1)

    # canceled: what is stored goes with it
    with farm.store.begin() as unit:
        lifecycle.cancel(unit, farm.tenant, job.id)
    farm.wait(job, JobState.CANCELED)
    wait_until(lambda: cleaned(farm) and not objects(farm, job), 20, what="the checkpoint is deleted")
    assert stored(farm, job) is None


def comes_to(farm: Farm, job: Job, steps: int) -> None:
    """Wait until so many steps of the job are in its checkpoint."""
    wait_until(lambda: (kept := stored(farm, job)) and kept.steps > steps, 60, what=f"{steps} steps are kept")


def cleaned(farm: Farm) -> bool:
    """Let the API's sweeper look."""
    CleanupThread(farm.store, farm.storage).run_once()
    return True


def test_a_storage_that_is_away_delays_nothing_and_a_job_that_ends_leaves_nothing(farm: Farm) -> None:
    wire = Wire(farm.env["FARM_S3_ENDPOINT_URL"])
    env = {"FARM_CHECKPOINT_SECONDS": "0.05", "FARM_NOISE_STEP_SECONDS": "0.02", "FARM_S3_ENDPOINT_URL": wire.url}
    worker = NoiseWorker(farm, device="cpu5", env=env).start()
    try:
        worker.wait_online()
        usual = farm.wait(farm.start(spec(num_inference_steps=60), worker.name), JobState.SUCCEEDED)
        wire.refuse()
        job = farm.start(spec(num_inference_steps=60), worker.name)
        wait_until(lambda: "outputs_spooled" in worker.log(), 60, what="the job is rendered")
        wire.mend()
        done = farm.wait(job, JobState.SUCCEEDED, timeout=60)
        assert "checkpoint_unwritten" in worker.log()
        assert done.attempts == 1
        for one in (usual, done):
            wait_until(lambda one=one: cleaned(farm) and not objects(farm, one), 20, what="nothing is left")  # type: ignore[misc]
            assert stored(farm, one) is None
    finally:
        worker.kill()
        wire.close()


def test_a_job_goes_on_again_and_again_and_begins_anew_after_an_error(farm: Farm) -> None:
    """The noise engine checks that the parts of all attempts follow each other."""
    env = {"FARM_CHECKPOINT_SECONDS": "0.1", "FARM_DRAIN_SECONDS": "0", "FARM_NOISE_STEP_SECONDS": "0.02"}
    worker = NoiseWorker(farm, device="cpu6", env=env)
    try:
        job = farm.submit(spec(num_inference_steps=150))
        reached = 0
        for attempt in range(3):
            worker.start().wait_online()
            farm.dispatch(job, worker.name)
            comes_to(farm, job, reached + 15)
            worker.signal(signal.SIGTERM) if attempt else worker.kill()
            worker.wait(30)
            if not attempt:
                with farm.store.begin() as unit:
                    (lost,) = unit.jobs.held_by(worker.name)
                    lifecycle.release(unit, lost.job_id, lost.epoch, "killed")
            farm.wait(job, JobState.QUEUED, timeout=20)
            kept = stored(farm, job)
            assert kept is not None
            assert len(kept.parts) == attempt + 1, "each attempt adds to those before"
            assert len(objects(farm, job)) >= sum(count for _, count in kept.parts)
            reached = kept.steps
        worker.start().wait_online()
        farm.dispatch(job, worker.name)
        done = farm.wait(job, JobState.SUCCEEDED)
        assert done.steps_resumed == reached
        assert "AssertionError" not in worker.log()
    finally:
        worker.kill()


def test_only_the_lease_that_holds_a_job_changes_its_checkpoint(farm: Farm) -> None:
    job = farm.submit(spec())
    sent = farm.dispatch(job, "somebody/cpu0", send=False)
    held, late = HeldJob(job.id, sent.epoch), HeldJob(job.id, sent.epoch - 1)
    kept = Checkpoint().extended(sent.epoch, 5, 100, fresh=True)
    with farm.store.begin() as unit, pytest.raises(LeaseLost):
        lifecycle.save_checkpoint(unit, held, kept)  # it is not claimed
    with farm.store.begin() as unit:
        lifecycle.claim_all(unit, [held], "somebody/cpu0", 30)
        lifecycle.save_checkpoint(unit, held, kept)
    with farm.store.begin() as unit:
        with pytest.raises(LeaseLost):
            lifecycle.save_checkpoint(unit, late, Checkpoint())
        with pytest.raises(LeaseLost):
            lifecycle.note_resumed(unit, late, 3)
        with pytest.raises(LeaseLost):
            lifecycle.void_checkpoint(unit, late)
    assert stored(farm, job) == kept
    with farm.store.begin() as unit:
        lifecycle.void_checkpoint(unit, held)
        assert f"{checkpoint_prefix(farm.tenant, job.id)}{sent.epoch}/" in unit.pending_deletions.take(100)
    assert stored(farm, job) is None


def test_the_parts_of_a_checkpoint_are_those_of_each_epoch_in_order() -> None:
    first = Checkpoint().extended(1, 5, 100, fresh=True).extended(1, 9, 50, fresh=False)
    second = first.extended(3, 20, 10, fresh=False)
    assert list(second.objects()) == [(1, 0), (1, 1), (3, 0)]
    assert (second.steps, second.size) == (20, 160)
    assert list(second.extended(4, 2, 10, fresh=True).objects()) == [(4, 0)]


def test_checkpoints_are_stored_under_their_tenant_and_named_paths_only(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no tenant"):
        checkpoint_prefix("../other", "job_" + "0" * 32)


def test_when_memory_is_full_a_job_keeps_what_is_stored_and_nothing_more(
    farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.checkpoints.writer.MAX_QUEUED_BYTES", 100)
    writer = CheckpointWriter(farm.store, farm.storage, 10)
    job = farm.submit(spec())
    sent = farm.dispatch(job, "somebody/cpu0", send=False)
    with farm.store.begin() as unit:
        (claimed,) = lifecycle.claim_all(unit, [HeldJob(job.id, sent.epoch)], "somebody/cpu0", 30)
    kept = writer.open(Lease(claimed, time.monotonic() + 30))
    save = writer.fields(kept, ())["on_checkpoint"]
    save(StoredPart(3, fresh=True, file=b"a" * 60))
    save(StoredPart(5, fresh=False, file=b"b" * 60))  # the writer's thread does not run yet: this is too much
    save(StoredPart(7, fresh=False, file=b"c" * 10))
    writer.start()
    save(StoredPart(9, fresh=False, file=b"d"))
    assert writer.flush(kept, 10)
    writer.close()
    writer.join(10)
    assert stored(farm, job) is None, "the first part was not written yet, and later ones would leave a gap"
