"""A real worker as a subprocess, and the test in the dispatcher's place: dispatch, then send."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self
from urllib.parse import urlsplit, urlunsplit

import redis
from celery import Celery
from PIL import Image, ImageDraw

from farm import lifecycle
from farm.dispatch import broker
from farm.domain.job import Job, NewJob
from farm.domain.job_spec import InputFile, JobSpec
from farm.domain.queue import Assignment, DispatchedJob
from farm.domain.states import JobState
from farm.domain.worker import Worker, WorkerState
from farm.objects.intake import Intake
from farm.objects.storage import Storage
from farm.settings import Settings
from farm.store.unit_of_work import Store
from tests.job_specs import job_spec
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
HOST = "testhost"
START_SECONDS = 120  #: importing torch and diffusers on a busy machine


@dataclass
class Farm:
    """The servers of a test module with a tenant, and no dispatcher: the test dispatches by itself."""

    env: dict[str, str]
    log_dir: Path
    settings: Settings = field(init=False)
    store: Store = field(init=False)
    storage: Storage = field(init=False)
    app: Celery = field(init=False)
    tenant: str = field(init=False)

    def __post_init__(self) -> None:
        before = {name: os.environ.get(name) for name in self.env}
        os.environ.update(self.env)
        try:
            self.settings = Settings()
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
        self.store = Store.connect(self.settings, pool=4)
        self.storage = Storage(self.settings)
        self.app = broker.make_app(self.settings)
        with self.store.begin() as unit:
            self.tenant = unit.tenants.create("test").id

    def close(self) -> None:
        self.store.close()
        self.storage.close()
        self.app.close()

    # -- jobs ---------------------------------------------------------------------------------------------------------

    def store_input(self, image: Image.Image) -> InputFile:
        """Store an input image."""
        target = io.BytesIO()
        image.save(target, "PNG")
        return Intake(self.storage, self.settings).from_bytes(self.tenant, target.getvalue())

    def submit(self, spec: JobSpec, max_attempts: int = 3) -> Job:
        with self.store.begin() as unit:
            return lifecycle.submit(unit, self.tenant, NewJob(spec, max_attempts=max_attempts))[0]

    def dispatch(self, job: Job, worker: str, *, send: bool = True) -> DispatchedJob:
        with self.store.begin() as unit:
            (sent,) = lifecycle.dispatch(unit, [Assignment(job.id, worker)], self.settings.dispatch_lease_seconds)
        if send:
            broker.send(self.app, [sent])
        return sent

    def start(self, spec: JobSpec, worker: str, **kwargs: Any) -> Job:
        job = self.submit(spec, **kwargs)
        self.dispatch(job, worker)
        return job

    def job(self, job_id: str) -> Job:
        with self.store.begin() as unit:
            found = unit.jobs.get(job_id)
        assert found is not None
        return found

    def wait(self, job: Job, *states: JobState, timeout: float = 60) -> Job:
        return wait_until(
            lambda: found if (found := self.job(job.id)).state in states else None,
            timeout,
            every=0.05,
            what=f"{job.id} is {' or '.join(states)}",
        )

    def events(self, job: Job) -> list[str]:
        with self.store.begin() as unit:
            return [event.type.value for event in unit.events.of_job(job.id)]

    def worker(self, name: str) -> Worker | None:
        with self.store.begin() as unit:
            return next((worker for worker in unit.workers.all() if worker.info.name == name), None)

    def queued_messages(self, worker: str) -> int:
        with redis.Redis.from_url(self.env["FARM_REDIS_URL"]) as client:
            return int(client.llen(broker.queue_of(worker).name))


@dataclass
class WorkerProcess:
    """One ``celery -A workers.app worker``."""

    app: ClassVar[str] = "workers.app"  #: the module of the Celery app

    farm: Farm
    device: str = "cpu0"
    env: dict[str, str] = field(default_factory=dict)
    prefix: tuple[str, ...] = ()  #: stands before the command
    process: subprocess.Popen[bytes] | None = None

    @property
    def name(self) -> str:
        return f"{HOST}/{self.device}"

    @property
    def log_file(self) -> Path:
        return self.farm.log_dir / f"worker-{self.device}.log"

    def start(self) -> Self:
        env = (
            os.environ
            | self.farm.env
            | {
                "FARM_DEVICE": self.device,
                "FARM_DATA_DIR": str(self.farm.log_dir),
                "FARM_TORCH_THREADS": "1",
                "FARM_WORKER_HOST": HOST,
            }
        )
        command = [*self.prefix, *worker_command(self.app)]
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                command, env=env | self.env, cwd=ROOT, stdout=log, stderr=log, start_new_session=True
            )
        return self

    def wait_online(self) -> Self:
        def online() -> bool:
            assert self.running.poll() is None, self.log()
            found = self.farm.worker(self.name)
            return found is not None and found.info.pid == self.running.pid and found.state is WorkerState.ONLINE

        wait_until(online, START_SECONDS, every=0.1, what="the worker is online")
        return self

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    @property
    def running(self) -> subprocess.Popen[bytes]:
        assert self.process is not None, "it was not started"
        return self.process

    def signal(self, number: int) -> None:
        self.running.send_signal(number)

    def wait(self, timeout: float = 60) -> int:
        return self.running.wait(timeout)

    def kill(self) -> None:
        """Kill the process, if it was started and is alive."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)


class NoiseWorker(WorkerProcess):
    """A worker without torch, whose images are noise: for what has nothing to do with images."""

    app = "tests.noise_engine"


def worker_command(app: str) -> tuple[str, ...]:
    """What starts a worker of that Celery app, in `ROOT`."""
    return (sys.executable, "-m", "celery", "-A", app, "--quiet", "worker", "--without-gossip", "--without-mingle")


# -- what is asked for -------------------------------------------------------------------------------------------------


def spec(task: str = "text-to-image", **changes: Any) -> JobSpec:
    """A small job for the built-in model; inputs by field name."""
    values: dict[str, Any] = {
        "task": task,
        "model": "starter",
        "prompt": "a red sphere on a blue background",
        "negative_prompt": "",
        "num_inference_steps": 4,
        "guidance_scale": 4.0,
        "scheduler": "ddim",
        "seed": 7,
        "num_outputs": 1,
        "width": 64,
        "height": 64,
        "strength": None if task == "text-to-image" else 1.0,
        "output_format": "png",
        "inputs": {},
    }
    return job_spec(values | changes)


def scene() -> Image.Image:
    image = Image.new("RGB", (64, 64), (40, 60, 200))
    ImageDraw.Draw(image).ellipse((16, 16, 48, 48), fill=(220, 40, 40))
    return image


def mask() -> Image.Image:
    image = Image.new("L", (64, 64), 0)
    ImageDraw.Draw(image).rectangle((8, 8, 40, 56), fill=255)
    return image


def depth() -> Image.Image:
    return Image.linear_gradient("L").resize((64, 64))


class Wire:
    """A TCP connection to a server that can be disturbed from outside."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._target = (parts.hostname, parts.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = set()
        self._flows = threading.Event()
        self._flows.set()
        self._refuses = False
        before, at, _ = parts.netloc.rpartition("@")
        port = self._listener.getsockname()[1]
        self.url = urlunsplit(parts._replace(netloc=f"{before}{at}127.0.0.1:{port}"))
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Connections stay open and nothing comes through, as when a cable is pulled."""
        self._flows.clear()

    def refuse(self) -> None:
        """Connections end, and new ones end at once, as when a server restarts."""
        self._refuses = True
        for one in tuple(self._open):
            _shut(one)

    def mend(self) -> None:
        self._refuses = False
        self._flows.set()

    def close(self) -> None:
        _shut(self._listener)  # close() alone does not wake accept()
        self._listener.close()
        self.refuse()
        self._flows.set()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self._refuses:
                near.close()
                continue
            far = socket.create_connection(self._target)
            self._open |= {near, far}
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=(source, target), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._flows.wait()
                target.sendall(data)
        _shut(source)
        _shut(target)
        self._open.discard(source)
        source.close()


def _shut(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
