"""What is played on a farm in containers. A step returns its figure, and raises where its promise is broken."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.containers.client import JOB, TERMINAL, Client, Load, png, until
from tests.containers.engine import ROOT, Engine, new_bytes

MEGABYTE: Final = 10**6
#: Killed one after the other, while two jobs a second come in.
KILLED: Final = ("worker", "dispatcher", "deliverer", "postgres", "valkey", "s3", "front")
OURS: Final = ("api", "dispatcher", "deliverer", "worker", "flower")
#: What the compiler of a worker's image is asked to do, as the user of the image and on its read-only root.
COMPILE: Final = (
    "from pathlib import Path; from workers import device; from workers.compilation import problem; "
    "choice = device.choose('cpu'); device.pin(choice); "
    "print(problem(device.describe(choice), Path('/data/compiled')) or 'compiled')"
)
#: Whether any of the ports of SeaweedFS' five servers answers at an address.
PORTS: Final = (
    "import socket, sys; found = []\n"
    "for port in (8333, 8888, 9101, 9333, 8080, 17777, 18080, 18333, 18888, 19333, 5432, 6379):\n"
    "    try:\n        socket.create_connection((sys.argv[1], port), 0.5).close(); found.append(port)\n"
    "    except OSError: pass\n"
    "print(found)"
)


class Broken(Exception):
    """A promise does not hold."""


@dataclass
class Result:
    """How a step ended."""

    name: str
    limit: str  #: what is promised
    passed: bool
    figure: str  #: what was seen
    seconds: float


@dataclass
class Scenario:
    """One run against one project."""

    engine: Engine
    client: Client
    prometheus: str  #: its URL; empty where it is left out
    say: Callable[[str], None] = print
    results: list[Result] = field(default_factory=list)
    jobs: list[str] = field(default_factory=list)  #: every job that was accepted
    pace: float = 1.0  #: how long jobs come in before and after each failure, relative to what the acceptance takes

    def step(self, name: str, limit: str, play: Callable[[], str]) -> bool:
        """Play one step and keep how it ended. An interrupt ends the run."""
        self.say(f"… {name}")
        began = time.monotonic()
        try:
            figure, passed = play(), True
        except KeyboardInterrupt:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the next steps say more
            figure, passed = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__, False
        self.results.append(Result(name, limit, passed, figure, time.monotonic() - began))
        self.say(f"  {'ok' if passed else 'BROKEN'}: {figure}")
        return passed

    def pause(self, seconds: float) -> None:
        """Let jobs come in for a while."""
        time.sleep(seconds * self.pace)

    # -- images --------------------------------------------------------------------------------------------------------

    def build(self) -> str:
        """Build all images."""
        began = time.monotonic()
        self.engine.compose("build", seconds=3600, show=True)
        sizes = [f"{name} {self.engine.size(self.image(name)) / MEGABYTE:.0f} MB" for name in ("api", "s3", "worker")]
        return f"{time.monotonic() - began:.0f} s; {', '.join(sizes)}"

    def size(self) -> str:
        """The image of a worker on a processor."""
        found = self.engine.size(self.image("worker"))
        if found > 1300 * MEGABYTE:
            raise Broken(f"{found / MEGABYTE:.0f} MB")
        return f"{found / MEGABYTE:.0f} MB"

    def small_change(self, source: Path) -> str:
        """Change one line of ours in a copy of the build context, and build again.

        Args:
            source: the copy, from which the images were built.
        """
        said = []
        for service in ("api", "worker"):
            before = self.engine.history(self.image(service))
            with (source / "farm" / "clock.py").open("a") as file:
                file.write(f"# {service} {time.time_ns()}\n")
            began = time.monotonic()
            self.engine.compose("build", service, seconds=900, show=True)
            took = time.monotonic() - began
            moved = new_bytes(before, self.engine.history(self.image(service))) / MEGABYTE
            said.append(f"{service} {took:.0f} s and {moved:.0f} MB")
            if took > 20 or moved > 30:
                raise Broken(", ".join(said))
        return ", ".join(said)

    def image(self, service: str) -> str:
        """The name of a service's image."""
        config = json.loads(self.engine.compose("config", "--format", "json").out)
        return str(config["services"][service]["image"])

    # -- start ---------------------------------------------------------------------------------------------------------

    def start(self) -> str:
        """Start everything, and wait until every container with a check is healthy."""
        began = time.monotonic()
        self.engine.compose("up", "--detach", "--no-build", *self.engine.services(), seconds=900, show=True)
        self.wait_healthy()
        until(lambda: Client(self.client.url).ask("GET", "/readyz").status == 200, 120, "the front door is ready")
        return f"{time.monotonic() - began:.0f} s"

    def wait_healthy(self, seconds: float = 300) -> None:
        """Wait until every container runs and is healthy, but for those that have done their work."""

        def healthy() -> bool:
            for service in self.engine.services():
                ids = self.engine.containers(service)
                if not ids:
                    return False
                for one in self.engine.inspect(*ids):
                    state = one["State"]
                    if service == "init" and state["Status"] == "exited" and state["ExitCode"] == 0:
                        continue
                    if not state["Running"] or state.get("Health", {}).get("Status", "healthy") != "healthy":
                        return False
            return True

        until(healthy, seconds, "every container is healthy")

    def first_key(self) -> str:
        """``make compose-key``: the first key is shown, and in no log."""
        said = self.engine.execute("api", "farm", "init", "--show-key").out
        match = re.search(r"(?m)^(farm_\S+)$", said)
        if match is None:
            raise Broken(f"no key in: {said}")
        self.client = Client(self.client.url, match[1], self.client.seconds, self.client.ca_file)
        if match[1] in self.engine.compose("logs", "--no-color", seconds=120).out:
            raise Broken("the key is in a container's log")
        self.client.get("/v1/jobs?limit=1")
        again = self.engine.execute("api", "farm", "init", "--show-key")
        if "farm_" in again.out:
            raise Broken("it is shown a second time")
        return "shown once, in no log"

    def admin(self) -> str:
        """An admin's commands need no further arguments in the API's container."""
        for command in (("workers",), ("models",), ("keys",), ("tenants",), ("outputs", "check"), ("pauses",)):
            self.engine.execute("api", "farm", *command)
        names = [worker["name"] for worker in json.loads(self.engine.execute("api", "farm", "workers", "--json").out)]
        if not names:
            raise Broken("no worker has joined")
        return f"workers {', '.join(names)}"

    def settings(self, name: str, value: str) -> str:
        """A variable of ``farm.env`` reaches every service of the farm."""
        for service in OURS:
            if service not in self.engine.without:
                found = self.engine.execute(service, "printenv", name, check=False).out.strip()
                if found != value:
                    raise Broken(f"{service} has {found!r}")
        return f"{name}={value} in {', '.join(OURS)}"

    # -- work ----------------------------------------------------------------------------------------------------------

    def tasks(self) -> str:
        """One job of each of the four image tasks, and its output as recorded."""
        image, mask = png(), png(colour=(0, 0, 0))
        wanted: list[dict[str, object]] = [
            {},
            {"task": "image-to-image", "image": image, "strength": 0.75},
            {"task": "inpainting", "image": image, "mask_image": mask, "strength": 1.0},
            {"task": "depth-to-image", "image": image, "strength": 1.0},
        ]
        for changes in wanted:
            job_id = self.client.submit(None, **changes)
            self.jobs.append(job_id)
            self.client.download(self.client.wait(job_id))
        return ", ".join(str(changes.get("task", JOB["task"])) for changes in wanted)

    def webhook(self) -> str:
        """A finished job is POSTed to the URL that it named."""
        job_id = self.client.submit(None, webhook="http://receiver.test:8080/")
        self.jobs.append(job_id)
        self.client.wait(job_id)
        look = "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:8080/').read().decode())"

        def came() -> list[str]:
            found: list[str] = json.loads(self.engine.execute("receiver", "python", "-c", look).out)
            return found

        return f"{len(until(came, 60, 'the webhook has come'))} received"

    def metrics(self) -> str:
        """Every target of Prometheus is up."""
        if not self.prometheus:
            return "left out"
        found = Client(self.prometheus)

        def targets() -> list[dict[str, Any]] | None:
            active: list[dict[str, Any]] = found.get("/api/v1/targets")["data"]["activeTargets"]
            jobs = {target["labels"]["job"] for target in active}
            return active if len(jobs) >= 5 and all(target["health"] == "up" for target in active) else None

        active = until(targets, 120, "every target of Prometheus is up")
        rules = found.get("/api/v1/rules")["data"]["groups"]
        broken = [rule["name"] for group in rules for rule in group["rules"] if rule["health"] == "err"]
        if broken:
            raise Broken(f"rules that cannot be evaluated: {broken}")
        return f"{len(active)} targets up, {sum(len(group['rules']) for group in rules)} rules"

    # -- hardening -----------------------------------------------------------------------------------------------------

    def unprivileged(self) -> str:
        """Nobody is root, may write into the image, or has privileges; each has limits."""
        count = 0
        for service in self.engine.services():
            for one in self.engine.inspect(*self.engine.containers(service)):
                host, name = one["HostConfig"], one["Name"].lstrip("/")
                faults = [
                    fault
                    for fault, is_one in {
                        "its root is writable": not host["ReadonlyRootfs"],
                        "it keeps capabilities": [cap.upper() for cap in host["CapDrop"] or ()] != ["ALL"],
                        "it may gain privileges": not any("no-new-privileges" in s for s in host["SecurityOpt"] or ()),
                        "it has no limit of processes": service != "receiver" and not host["PidsLimit"],
                        "a tmpfs has no size": any("size=" not in how for how in (host["Tmpfs"] or {}).values()),
                        "it shares memory with the machine": host["IpcMode"] == "host",
                    }.items()
                    if is_one
                ]
                if one["State"]["Running"]:
                    user = self.engine.docker("exec", one["Id"], "id", "-u", check=False).out.strip()
                    if user in ("", "0"):
                        faults.append(f"it runs as {user or 'an unknown user'}")
                if faults:
                    raise Broken(f"{name}: {', '.join(faults)}")
                count += 1
        return f"{count} containers"

    def networks(self) -> str:
        """Flower reaches the queue alone: no port of the database or of the storage answers it."""
        inside = {}
        for service in ("s3", "postgres", "valkey"):
            (one,) = self.engine.inspect(*self.engine.containers(service))
            inside[service] = [net["IPAddress"] for net in one["NetworkSettings"]["Networks"].values()]
        for service, addresses in inside.items():
            for address in addresses:
                found = json.loads(self.engine.execute("flower", "python", "-c", PORTS, address).out)
                allowed = [6379] if service == "valkey" else []
                if found != allowed:
                    raise Broken(f"from Flower, {service} answers at {found}")
        (storage,) = self.engine.inspect(*self.engine.containers("s3"))
        joined = storage["NetworkSettings"]["Networks"].items()
        (address,) = (network["IPAddress"] for name, network in joined if name.endswith("_storage"))
        found = json.loads(self.engine.execute("worker", "python", "-c", PORTS, address).out)
        if found != [8333]:
            raise Broken(f"from a worker, the storage answers at {found}")
        return "of the storage only 8333, and only to who needs it"

    def compiler(self) -> str:
        """``torch.compile`` works as the worker's user on its read-only root."""
        said = self.engine.execute("worker", "python", "-c", COMPILE, seconds=300).out.strip().splitlines()[-1]
        if said != "compiled":
            raise Broken(said)
        return said

    def quota(self) -> str:
        """Half a processor is one thread, whatever the machine has."""
        look = "from farm import processors; print(processors.available())"
        said = self.engine.docker(
            "run", "--rm", "--cpus", "0.5", "--entrypoint", "python", self.image("worker"), "-c", look, seconds=300
        ).out.strip()
        if said != "1":
            raise Broken(f"{said} threads with --cpus 0.5")
        return "1 thread with --cpus 0.5"

    # -- failures ------------------------------------------------------------------------------------------------------

    def rolling_restart(self) -> str:
        """Stop and start one API after the other: no submission fails, or waits for more than a second."""
        return self._replaced("restart", lambda one: self.engine.docker("restart", "-t", "75", one, seconds=120))

    def killed_api(self) -> str:
        """The same with SIGKILL."""

        def kill(one: str) -> None:
            self.engine.docker("kill", one)
            self.engine.docker("start", one)

        return self._replaced("SIGKILL", kill)

    def _replaced(self, how: str, replace: Callable[[str], object]) -> str:
        with Load(self.client) as load:
            self.pause(2)
            for one in self.engine.containers("api"):
                replace(one)
                self.wait_healthy()
                self.pause(3)
        self.jobs += load.jobs
        said = f"{len(load.errors)} errors of {load.sent} at {how}, slowest {load.slowest:.2f} s"
        if load.errors or load.slowest > 1.1:
            raise Broken(f"{said} {load.errors[:2]}")
        return said

    def kill(self, service: str) -> str:
        """Kill a service while jobs come in: what was accepted is rendered, once."""
        with Load(self.client, insists=True) as load:
            self.pause(2)
            for one in self.engine.containers(service):
                self.engine.docker("kill", one)
            self.pause(3)
            for one in self.engine.containers(service):
                self.engine.docker("start", one)
            self.wait_healthy()
            self.pause(2)
        self.jobs += load.jobs
        if load.errors:
            raise Broken(f"{len(load.errors)} submissions failed for good: {load.errors[:2]}")
        began = time.monotonic()
        for job_id in load.jobs:
            self.client.wait(job_id)
        later = time.monotonic() - began
        return f"{len(load.jobs)} jobs, longest wait {load.slowest:.1f} s, all rendered {later:.0f} s later"

    def recreate_worker(self) -> str:
        """A worker that is made anew keeps its name, and leaves no volume behind."""

        def names() -> list[str]:
            return sorted(worker["name"] for worker in self.client.get("/v1/workers")["data"])

        before, volumes = names(), self.engine.volumes()
        self.engine.compose("up", "--detach", "--no-deps", "--no-build", "--force-recreate", "worker", seconds=300)
        self.wait_healthy()
        job_id = self.client.submit()
        self.jobs.append(job_id)
        self.client.wait(job_id)
        after, left = names(), self.engine.volumes() - volumes
        if after != before:
            raise Broken(f"the workers were {before} and are {after}")
        if left:
            raise Broken(f"volumes are left: {sorted(left)}")
        return ", ".join(after)

    def join(self, worker: Engine, address: str) -> str:
        """A worker of another project joins through the front door, and renders."""
        token = json.loads(
            self.engine.execute("api", "farm", "workers", "tokens", "create", "acceptance", "--json").out
        )["token"]
        worker.variables = {**worker.variables, "FARM_JOIN_TOKEN": token, "FARM_JOIN_URL": f"https://{address}"}
        try:
            worker.compose("up", "--detach", "--no-build", seconds=300)

            def joined() -> bool:
                found = self.client.get("/v1/workers")["data"]
                return any(one["name"] == "elsewhere/cpu0" and one["state"] == "online" for one in found)

            until(joined, 180, "the worker of the other project is online")
            self.engine.docker("stop", *self.engine.containers("worker"))
            job_id = self.client.submit()
            self.jobs.append(job_id)
            job = self.client.wait(job_id)
            self.client.download(job)
            return f"{job.get('worker') or 'elsewhere/cpu0'} rendered {job_id}"
        finally:
            self.engine.docker("start", *self.engine.containers("worker"), check=False)
            worker.compose("down", "--volumes", seconds=120, check=False)

    # -- the end -------------------------------------------------------------------------------------------------------

    def stop_and_start(self) -> str:
        """Everything is stopped and started: what was rendered is there, and new jobs are rendered."""
        began = time.monotonic()
        self.engine.compose("stop", seconds=300)
        stopped = time.monotonic() - began
        self.engine.compose("start", seconds=300)
        self.wait_healthy()
        until(lambda: self.client.get("/v1/jobs?limit=1"), 60, "the API answers")
        self.client.download(self.client.get(f"/v1/jobs/{self.jobs[0]}"))
        job_id = self.client.submit()
        self.jobs.append(job_id)
        self.client.wait(job_id)
        return f"stopped in {stopped:.0f} s, ready {time.monotonic() - began - stopped:.0f} s after the start"

    def history(self) -> str:
        """Every accepted job ended once and well, and nothing else did."""
        states = {job["id"]: job["state"] for job in self.all_jobs()}
        lost = [job_id for job_id in self.jobs if states.get(job_id) not in TERMINAL]
        failed = [job_id for job_id, state in states.items() if state != "succeeded"]
        strangers = set(states) - set(self.jobs)
        if lost or failed or strangers or len(set(self.jobs)) != len(self.jobs):
            raise Broken(f"{len(lost)} lost, {len(failed)} not succeeded, {len(strangers)} made twice: "
                         f"{(lost + failed + sorted(strangers))[:3]}")  # fmt: skip
        return f"{len(states)} jobs, each succeeded once"

    def all_jobs(self) -> Iterator[dict[str, Any]]:
        """Every job of the tenant."""
        cursor = ""
        while True:
            page = self.client.get(f"/v1/jobs?limit=200{cursor}")
            yield from page["data"]
            if not page["next"]:
                return
            cursor = f"&cursor={page['next']}"

    def outputs(self) -> str:
        """``farm outputs check --deep`` reads every object and compares its SHA-256."""
        said = json.loads(self.engine.execute("api", "farm", "outputs", "check", "--deep", "--json", seconds=600).out)
        if said["damaged"]:
            raise Broken(f"{len(said['damaged'])} of {said['checked']} are damaged: {said['damaged'][:2]}")
        if said["checked"] < len(self.jobs):
            raise Broken(f"{said['checked']} outputs of {len(self.jobs)} jobs")
        return f"{said['checked']} outputs, none damaged"


def copy_of_context(target: Path) -> None:
    """The files that the images and the compose files are made of, in a folder that may be changed."""
    import shutil

    left_out = shutil.ignore_patterns("__pycache__", ".git", ".venv*", ".farm", "node_modules", ".*_cache")
    for name in ("farm", "workers", "infra", "tests/containers"):
        shutil.copytree(ROOT / name, target / name, ignore=left_out)
    for file in (*ROOT.glob("docker-compose*.yml"), *(ROOT / name for name in _FILES)):
        shutil.copy2(file, target / file.name)


_FILES: Final = (".dockerignore", "pyproject.toml", "constraints.txt", "README.md", "LICENSE")
