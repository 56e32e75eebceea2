"""Play the acceptance on an engine: ``make containers``, or ``python3 -m tests.containers``.

Builds the images, starts the farm as a project of its own, plays failures while jobs come in, and prints a table. Exit
code 1: a promise is broken; 2: there is no engine. Everything that it started is removed at the end.

These variables let it run where no registry of images or packages is reached:

    PYTHON_IMAGE POSTGRES_IMAGE VALKEY_IMAGE HAPROXY_IMAGE PROMETHEUS_IMAGE GRAFANA_IMAGE    base images
    PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_TRUSTED_HOST                                       where pip looks
    TORCH_INDEX        an index with torch's CPU build; empty: the build of the package index
    BUILD_NETWORK      the network of builds: host
    CONTAINERS_WITHOUT services that are left out, with commas between: grafana,prometheus
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.containers.client import Client
from tests.containers.engine import ROOT, CommandFailed, Engine, NoEngine
from tests.containers.scenario import KILLED, Result, Scenario, copy_of_context

PROJECT = "farm-acceptance"
PORTS = ("FRONT_DOOR_PORT", "S3_PORT", "FLOWER_PORT", "PROMETHEUS_PORT", "GRAFANA_PORT")
JOIN_PORTS = ("JOIN_POSTGRES_PORT", "JOIN_VALKEY_PORT", "JOIN_S3_PORT")


def main() -> int:
    """Play everything. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="make containers", description="The acceptance of the farm in containers.")
    parser.add_argument("--keep", action="store_true", help="leave the farm running at the end")
    parser.add_argument("--no-build", action="store_true", help="use the images of the last run")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="farm-acceptance-") as made:
        context = Path(made, "context")
        context.mkdir()
        copy_of_context(context)
        engine = project(context)
        try:
            print(engine.require(), flush=True)
        except NoEngine as error:
            print(f"make containers: {error}", file=sys.stderr)
            return 2
        scenario = new_scenario(engine)
        try:
            play(scenario, context, build=not given.no_build)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
        finally:
            if given.keep:
                print(f"the farm is at {scenario.client.url}; end it with `docker compose -p {PROJECT} down --volumes`")
            else:
                engine.compose("down", "--volumes", "--remove-orphans", seconds=300, check=False)
    print(table(scenario.results))
    return 0 if scenario.results and all(one.passed for one in scenario.results) else 1


def project(context: Path, program: str = "docker") -> Engine:
    """The project in a copy of the repository, with secrets of its own and free ports."""
    environment = context / ".env"
    drawing = [sys.executable, str(ROOT / "infra" / "compose_env.py"), str(ROOT / "infra" / "compose.env.example")]
    subprocess.run([*drawing, str(environment)], check=True, stdout=subprocess.DEVNULL)
    lines = (line for line in environment.read_text().splitlines() if "=" in line and not line.startswith("#"))
    variables = dict(line.split("=", 1) for line in lines)
    variables |= {name: str(free_port()) for name in (*PORTS, *JOIN_PORTS)}
    variables |= {
        "FARM_VERSION": "acceptance",
        "FARM_WORKER_HOST": "acceptance",
        "S3_PUBLIC_URL": f"http://127.0.0.1:{variables['S3_PORT']}",
    }
    (context / "farm.env").write_text("FARM_DRAIN_SECONDS=20\n")
    without = frozenset(filter(None, os.environ.get("CONTAINERS_WITHOUT", "").split(",")))
    files = [context / "docker-compose.yml", context / "tests" / "containers" / "overlay.yml"]
    return Engine(PROJECT, files, variables, program, context, without)


def new_scenario(engine: Engine) -> Scenario:
    """The scenario on that project."""
    prometheus = "" if "prometheus" in engine.without else f"http://127.0.0.1:{engine.variables['PROMETHEUS_PORT']}"
    return Scenario(engine, Client(f"http://127.0.0.1:{engine.variables['FRONT_DOOR_PORT']}"), prometheus)


def play(scenario: Scenario, context: Path, *, build: bool) -> None:
    """Every step, in order. Those that need a farm are left out if it does not start."""
    step = scenario.step
    if build:
        if not step("images are built", "-", scenario.build):
            return
        step("a worker's image for processors", "1300 MB", scenario.size)
    if not step("docker compose up", "every container healthy", scenario.start):
        print(scenario.engine.compose("ps", "--all", check=False).out)
        print(scenario.engine.compose("logs", "--no-color", "--tail", "40", check=False).out)
        return
    if not step("make compose-key", "shown once, in no log", scenario.first_key):
        return
    step("docker compose exec api farm …", "no further arguments", scenario.admin)
    step("farm.env", "reaches every service", lambda: scenario.settings("FARM_DRAIN_SECONDS", "20"))
    step("all four tasks", "outputs as recorded", scenario.tasks)
    step("webhook", "received", scenario.webhook)
    step("metrics", "every target and rule", scenario.metrics)
    step("unprivileged and bounded", "every container", scenario.unprivileged)
    step("networks by need", "nothing else answers", scenario.networks)
    step("torch.compile", "as the worker's user", scenario.compiler)
    step("threads follow the quota", "1 with half a processor", scenario.quota)
    step("rolling restart of the API", "0 errors, 1.1 s", scenario.rolling_restart)
    step("SIGKILL of each API", "0 errors, 1.1 s", scenario.killed_api)
    for service in KILLED:
        step(f"SIGKILL of {service}", "no job lost", lambda service=service: scenario.kill(service))  # type: ignore[misc]
    step("the worker is made anew", "same name, no volume left", scenario.recreate_worker)
    step("stop and start", "nothing lost", scenario.stop_and_start)
    step("every job", "succeeded once", scenario.history)
    step("farm outputs check --deep", "none damaged", scenario.outputs)
    if shutil.which("openssl"):
        step("a worker of another machine joins", "through TLS", lambda: join(scenario, context))
    if build:
        step("a change of one line", "20 s, 30 MB", lambda: scenario.small_change(context))


def join(scenario: Scenario, context: Path) -> str:
    """Open the farm for others as ``make compose-join`` does, and let a worker of a second project join."""
    engine = scenario.engine
    gateway = "{{(index .IPAM.Config 0).Gateway}}"
    (address,) = engine.docker("network", "inspect", "bridge", "--format", gateway).out.split()
    tls = context / "infra" / "front-door" / "tls"
    subprocess.run(
        [str(context / "infra" / "certificate.sh"), address], check=True, stdout=subprocess.DEVNULL, timeout=60
    )
    variables = {
        **engine.variables,
        "FRONT_DOOR_ADDRESS": address,
        "FRONT_DOOR_CERTIFICATE": f"{address}.pem",
        "JOIN_HOST": address,
        "JOIN_ADDRESS": address,
        "JOIN_POSTGRES_PASSWORD": "acceptance",
    }
    opened = Engine(
        engine.project,
        [engine.files[0], context / "docker-compose.join.yml", *engine.files[1:]],
        variables,
        engine.program,
        engine.directory,
        engine.without,
    )
    port = variables["FRONT_DOOR_PORT"]
    worker = Engine(
        f"{PROJECT}-worker",
        [context / "docker-compose.worker.yml"],
        {**variables, "FARM_WORKER_HOST": "elsewhere", "FARM_CA": "ca.pem"},
        engine.program,
        engine.directory,
    )
    before = scenario.client
    opened.compose("up", "--detach", "--no-build", *opened.services(), seconds=600)
    scenario.engine = opened
    scenario.client = Client(f"https://{address}:{port}", before.key, before.seconds, str(tls / "ca.pem"))
    scenario.wait_healthy()
    return scenario.join(worker, f"{address}:{port}")


def free_port() -> int:
    """A port of this machine's loopback that nobody listens at."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
    return port


def table(results: list[Result]) -> str:
    """How each step ended, for a person."""
    rows = [("", "step", "promised", "seconds", "seen")]
    for one in results:
        seen = one.figure.replace("\n", " ")[:160]
        rows.append(("ok" if one.passed else "BROKEN", one.name, one.limit, f"{one.seconds:.0f}", seen))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join([*map(str.ljust, row[:4], widths), row[4]]) for row in rows]
    broken = sum(not one.passed for one in results)
    return "\n".join([*lines, "", f"{len(results) - broken} passed, {broken} failed"])


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CommandFailed as error:
        print(f"make containers: {error}", file=sys.stderr)
        sys.exit(1)
