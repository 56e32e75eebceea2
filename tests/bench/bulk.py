"""A million jobs in one request, beside what else could take them, on the same servers in the same run.

``python -m tests.bench.bulk [--jobs N]`` starts a farm without workers in a temporary directory and stops it. Each
figure stands beside its peer: PostgreSQL's own COPY of the same rows into a table with the same indexes, a loop of
Celery's ``delay`` with the same payload, the SDK's signatures, the API's own health check.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import boto3
import httpx2
import psycopg
import redis
from botocore.config import Config
from celery import Celery
from pydantic import SecretStr

from farm.client import Batch, Farm
from farm.domain import ids
from farm.local.state import DataDirectory
from farm.settings import Settings
from farm.store.unit_of_work import Store
from tests.queues import candidates

OUT = Path("bench-out")
DELAYED = 3_000  #: messages of the loop of ``delay``; more would take minutes and say the same
LOOKS = 60
_OUTPUTS = """
    INSERT INTO output (job_id, index, epoch, key, media_type, size, sha256, seed, metadata)
    SELECT id, 0, 1, 'outputs/' || id || '/1/0.png', 'image/png', 4000, repeat('0', 64), batch_seq,
           '{"width": 64, "height": 64}'
    FROM job WHERE batch_id = %(id)s
"""


@dataclass(frozen=True)
class Figure:
    """One thing measured."""

    what: str
    value: float
    unit: str
    ratio: float
    peer: str  #: what it is a ratio to


def farm_command(*words: str) -> str:
    done = subprocess.run([sys.executable, "-m", "farm.cli", *words], check=True, capture_output=True, text=True)
    return done.stdout


def lines(count: int) -> Iterator[bytes]:
    """Jobs as a catalogue has them: a name, a prompt, a seed, and something of one's own."""
    for start in range(0, count, 1_000):
        yield b"".join(
            b'{"custom_id":"sku-%d","prompt":"a red ball number %d on a blue background","seed":%d,'
            b'"metadata":{"shelf":"%d"}}\n' % (k, k, k, k % 97)
            for k in range(start, min(start + 1_000, count))
        )


def timed(act: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    act()
    return time.perf_counter() - begun


def p50(act: Callable[[], Any]) -> float:
    act()
    return statistics.median(timed(act) for _ in range(LOOKS))


class Memory:
    """A process's memory: its growth at the peak since it was last asked to forget."""

    def __init__(self, pid: int) -> None:
        self._status = Path(f"/proc/{pid}/status")
        self._clear = Path(f"/proc/{pid}/clear_refs")
        self.forget()

    def forget(self) -> None:
        self._clear.write_text("5")
        self._before = self._read("VmRSS")

    def grown(self) -> float:
        """MB."""
        return (self._read("VmHWM") - self._before) / 1e6

    def _read(self, name: str) -> int:
        line = next(line for line in self._status.read_text().splitlines() if line.startswith(f"{name}:"))
        return int(line.split()[1]) * 1024


class Bench:
    """One farm, and what is measured on it."""

    def __init__(self, up: dict[str, Any], api_pid: int, jobs: int, scratch: Path) -> None:
        self.up = up
        self.jobs = jobs
        self.scratch = scratch
        self.farm = Farm(up["url"], up["api_key"], timeout=1_200)
        self.http = httpx2.Client(
            base_url=up["url"], headers={"Authorization": f"Bearer {up['api_key']}"}, timeout=1_200, trust_env=False
        )
        self.database = psycopg.connect(up["database_url"], autocommit=True)
        self.redis = redis.Redis.from_url(up["redis_url"])
        self.memory = Memory(api_pid)
        self.found: list[Figure] = []

    def note(self, what: str, value: float, unit: str, ratio: float, peer: str) -> None:
        self.found.append(Figure(what, round(value, 4), unit, round(ratio, 4), peer))
        print(f"{what:48} {value:14,.3f} {unit:8} {ratio:10.3f} x {peer}", flush=True)

    def submit(self, count: int) -> Batch:
        body = self.scratch / "jobs.jsonl"
        with body.open("wb") as file:
            file.writelines(lines(count))
        batch = self.farm.submit_batch(body, task="text-to-image", width=64, height=64)
        body.unlink()
        return batch

    def raw_copy(self, batch_id: str) -> float:
        """Seconds that the same rows take to go into a table with the same columns and indexes."""
        dumped = self.scratch / "rows"
        columns = (
            "id, tenant_id, state, task, model, priority, spec, cost, max_attempts, custom_id, metadata, batch_seq"
        )
        with self.database.cursor() as cursor:
            cursor.execute("CREATE TABLE raw (LIKE job INCLUDING ALL)")
            with (
                dumped.open("wb") as file,
                cursor.copy(
                    f"COPY (SELECT {columns} FROM job WHERE batch_id = '{uuid(batch_id)}' ORDER BY batch_seq) TO STDOUT"
                ) as copy,
            ):
                for part in copy:
                    file.write(part)

            def load() -> None:
                with dumped.open("rb") as file, cursor.copy(f"COPY raw ({columns}) FROM STDIN") as copy:
                    while part := file.read(256 * 2**10):
                        copy.write(part)

            seconds = timed(load)
            cursor.execute("DROP TABLE raw")
        dumped.unlink()
        return seconds

    def delay(self) -> float:
        """Seconds per job of a loop of ``delay``."""
        bare = Celery("bare", broker=self.up["redis_url"].rsplit("/", 1)[0] + "/9", set_as_current=False)

        @bare.task(name="bare.nothing", ignore_result=True)
        def nothing(**_: object) -> None:
            pass

        bodies = [json.loads(line) for line in b"".join(lines(DELAYED)).splitlines()]

        def loop() -> None:
            for body in bodies:
                nothing.delay(**body)

        seconds = timed(loop)
        redis.Redis.from_url(self.up["redis_url"].rsplit("/", 1)[0] + "/9").flushdb()
        return seconds / DELAYED

    def submitting(self) -> str:
        self.submit(500)  # what is loaded once is loaded now
        idle = self.redis.info("memory")["used_memory"]
        self.memory.forget()
        begun = time.perf_counter()
        batch = self.submit(self.jobs)
        seconds = time.perf_counter() - begun
        rate = self.jobs / seconds
        copied = self.raw_copy(batch.id)
        delayed = self.delay()
        self.note("submit", rate, "jobs/s", copied / seconds, "raw COPY")
        self.note("submit", rate, "jobs/s", rate * delayed, "Celery's delay loop")
        grown = self.memory.grown()
        self.note("API memory at the peak of submitting", grown, "MB", grown / 64, "64 MB")
        grown = (self.redis.info("memory")["used_memory"] - idle) / 1e6
        self.note("Redis memory with all queued", grown, "MB", grown / 20, "20 MB")
        return batch.id

    def looking(self, batch_id: str) -> None:
        self.database.execute("VACUUM ANALYZE job")
        health = p50(lambda: self.http.get("/healthz").raise_for_status())
        for what, path in (
            ("status", f"/v1/batches/{batch_id}"),
            ("list of batches", "/v1/batches"),
            ("list of the batch's jobs", f"/v1/batches/{batch_id}/jobs"),
            ("list of jobs", "/v1/jobs"),
        ):
            seconds = p50(lambda path=path: self.http.get(path).raise_for_status())  # type: ignore[misc]
            self.note(f"{what}, p50", seconds * 1000, "ms", seconds / health, "health check")

    def steering(self, batch_id: str) -> None:
        url = SecretStr(self.up["database_url"])
        store = Store.connect(Settings(database_url=url), pool=1)

        def heads() -> None:
            with store.begin() as unit:
                candidates(unit, 64)

        free = p50(heads)
        paused = timed(lambda: self._until_arranged(self.http.post(f"/v1/batches/{batch_id}/pause")))
        held = p50(heads)
        self.note("dispatcher's look, all paused, p50", held * 1000, "ms", held / free, "the same, none paused")
        resumed = timed(lambda: self._until_arranged(self.http.post(f"/v1/batches/{batch_id}/resume")))
        change = {"priority": "normal"}
        moved = timed(lambda: self._until_arranged(self.http.patch(f"/v1/batches/{batch_id}", json=change)))
        touched = timed(
            lambda: self.database.execute(
                "UPDATE job SET available_at = available_at WHERE batch_id = %s", [uuid(batch_id)]
            )
        )
        for what, seconds in (("pause", paused), ("resume", resumed), ("change of priority", moved)):
            self.note(what, seconds, "s", seconds / touched, "raw UPDATE of the rows")
        store.close()

    def _until_arranged(self, answer: httpx2.Response) -> None:
        answer.raise_for_status()
        body = answer.json()
        while body["propagating"]:
            time.sleep(0.2)
            body = self.http.get(f"/v1/batches/{body['id']}").raise_for_status().json()

    def canceling(self, batch_id: str) -> None:
        """Until the farm reports the cancel, and until each row is canceled and its event written."""
        begun = time.perf_counter()
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(self.farm.cancel_batch, batch_id)
            while self.farm.batch(batch_id).state == "in_progress":
                pass
            held = time.perf_counter() - begun
            while self.farm.batch(batch_id).state != "canceled":
                time.sleep(0.2)
            seconds = time.perf_counter() - begun
            asked.result()
        self.note("cancel of all, in force", held, "s", held / 15, "15 s")
        self.note("cancel of all, each row", seconds, "s", seconds / 15, "15 s")

    def exporting(self, batch_id: str) -> None:
        """Results without images, and, of a tenth as many jobs, with one each."""
        self.memory.forget()
        took = timed(lambda: self._drained(f"/v1/batches/{batch_id}/results"))
        count = max(1_000, self.jobs // 10)
        other = self.submit(count).id
        self.database.execute(
            "UPDATE job SET state = 'succeeded', epoch = 1, finished_at = now() WHERE batch_id = %s", [uuid(other)]
        )
        self.database.execute(_OUTPUTS, {"id": uuid(other)})
        self.database.execute(
            "UPDATE batch SET succeeded = total, first_finished_at = now(), finished_at = now() WHERE id = %s",
            [uuid(other)],
        )
        self.database.execute("VACUUM ANALYZE output")
        signed = timed(lambda: self._drained(f"/v1/batches/{other}/results"))
        s3 = self.up["s3"]
        sdk = boto3.client(
            "s3",
            endpoint_url=s3["endpoint_url"],
            region_name="us-east-1",
            aws_access_key_id=s3["access_key"],
            aws_secret_access_key=s3["secret_key"],
            config=Config(signature_version="s3v4", s3={"addressing_style": "path"}),
        )

        def sign() -> None:
            for number in range(1_000):
                about = {"Bucket": s3["bucket"], "Key": f"outputs/{number}.png", "ResponseContentDisposition": "inline"}
                sdk.generate_presigned_url("get_object", Params=about)

        signatures = 1_000 / timed(sign)
        self.note("results without images", self.jobs / took, "jobs/s", self.jobs / took / signatures, "SDK signatures")
        self.note("results with an image each", count / signed, "jobs/s", count / signed / signatures, "SDK signatures")
        grown = self.memory.grown()
        self.note("API memory at the peak of results", grown, "MB", grown / 64, "64 MB")
        length = p50(lambda: self.http.head(f"/v1/batches/{other}/archive?format=tar").raise_for_status())
        self.note("length of a tar of a tenth, p50", length * 1000, "ms", length / signed, "its results")
        self.http.delete(f"/v1/batches/{other}").raise_for_status()

        def gone() -> None:
            left = "SELECT EXISTS (SELECT FROM batch WHERE id = %s) OR EXISTS (SELECT FROM pending_deletion)"
            while (row := self.database.execute(left, [uuid(other)]).fetchone()) and row[0]:
                time.sleep(0.1)

        seconds = timed(gone)
        self.note("deletion of a tenth", count / seconds, "jobs/s", count / seconds / (count / signed), "its results")

    def _drained(self, path: str) -> None:
        with self.http.stream("GET", path) as answer:
            answer.raise_for_status()
            for _ in answer.iter_raw():
                pass


def uuid(batch_id: str) -> str:
    return str(ids.to_uuid(ids.BATCH, batch_id))


def main() -> None:
    """Start a farm, measure, stop it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=100_000)
    jobs = parser.parse_args().jobs
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name) / "farm"
        up = json.loads(farm_command("up", "--detach", "--json", "--data-dir", str(directory), "--workers", "0"))
        try:
            run = DataDirectory(directory).run()
            assert run is not None
            api = next(part.identity for part in run.parts if part.name == "api")
            assert api is not None
            bench = Bench(up, api.pid, jobs, Path(name))
            batch_id = bench.submitting()
            bench.looking(batch_id)
            bench.steering(batch_id)
            bench.canceling(batch_id)
            bench.exporting(batch_id)
        finally:
            farm_command("down", "--data-dir", str(directory))
    OUT.mkdir(exist_ok=True)
    figures = {"jobs": jobs, "figures": [asdict(one) for one in bench.found]}
    (OUT / "bulk.json").write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
