"""The base installation (`pip install diffusion-render-farm`) is a client: it has few packages, and every command that
speaks to a farm over HTTP works with them alone.

The commands run in processes that cannot import a package which the base installation would not bring.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import socket
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from farm.cli import COMMANDS
from farm.domain.worker import Device, WorkerInfo
from farm.settings import Settings
from tests.api_server import Api, Hand, running
from tests.conftest import TestServers

ROOT = Path(__file__).parents[2]
MOST_PACKAGES = 15  #: the farm's own among them

#: Reads a command a line, as a JSON list of words, and answers with its exit code, output and errors.
DRIVER = """
import contextlib, importlib.abc, io, json, os, sys, traceback
ALLOWED = {"farm", "workers", *sys.stdlib_module_names, *json.loads(os.environ["ALLOWED"])}

class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in ALLOWED and not top.startswith("_sysconfigdata"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden())
from farm.cli import main

for line in sys.stdin:
    sys.argv = ["farm", *json.loads(line)]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
            code = -1
    print(json.dumps([code, out.getvalue(), err.getvalue()]), flush=True)
"""


@dataclass(frozen=True)
class Done:
    """What a command did."""

    code: int
    out: str
    err: str


@cache
def base_packages() -> frozenset[str]:
    """What pip installs for the package without an extra, itself included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = {canonicalize_name(project["name"])}
    left = [Requirement(text) for text in project["dependencies"]]
    while left:
        requirement = left.pop()
        name = canonicalize_name(requirement.name)
        if name in found:
            continue
        found.add(name)
        for text in importlib.metadata.requires(name) or ():
            needed = Requirement(text)
            extras = requirement.extras or {""}
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                left.append(needed)
    return frozenset(found)


@cache
def allowed_modules() -> str:
    modules = importlib.metadata.packages_distributions()
    names = [
        module
        for module, packages in modules.items()
        if base_packages() & {canonicalize_name(package) for package in packages}
    ]
    return json.dumps(sorted(names))


Command = Callable[..., Done]


@contextmanager
def installation(cwd: Path, **environment: str) -> Iterator[Command]:
    """A process with the base installation, which runs one command after the other."""
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=cwd,
        env={
            "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "ALLOWED": allowed_modules(), "BROWSER": "true",
            "FARM_PROFILES": str(cwd / "profiles.json"), **environment,
        },
    )  # fmt: skip
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def command(*words: str) -> Done:
            print(json.dumps(words), file=stdin, flush=True)
            return Done(*json.loads(stdout.readline()))

        yield command
        stdin.close()


@pytest.fixture(scope="module")
def api(servers: TestServers, migrated_template: str) -> Iterator[Api]:
    """An API with a worker that renders each job at once."""
    servers.postgres.create_database("base_install", template=migrated_template)
    given = servers.env(database_url=servers.postgres.url("base_install"))
    settings = Settings.model_validate({name.removeprefix("FARM_").lower(): value for name, value in given.items()})
    with running(settings) as one:
        hand = Hand(one)
        device = Device("cpu", "cpu0", "a processor", 2**30, "float32")
        hand.join(WorkerInfo(hand.name, "boot", "test", device, slots=4, prefetch=2, pid=1))
        stopping = threading.Event()
        rendering = threading.Thread(target=_render_all, args=[hand, stopping])
        rendering.start()
        try:
            yield one
        finally:
            stopping.set()
            rendering.join()
    servers.postgres.drop_database("base_install")


def _render_all(hand: Hand, stopping: threading.Event) -> None:
    """Render whatever comes until stopped; a job whose prompt says so fails."""
    while not stopping.wait(0.02):
        for job_id in hand.queued():
            job = hand.begin(job_id)
            (hand.fail if job.spec.prompt == "broken" else hand.succeed)(job)


@pytest.fixture(scope="module")
def installed(api: Api, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Command, Path]]:
    directory = tmp_path_factory.mktemp("client")
    with installation(directory, FARM_URL=api.url, FARM_API_KEY=api.key) as command:
        yield command, directory


@pytest.fixture
def directory(installed: tuple[Command, Path]) -> Path:
    """Where the commands run."""
    return installed[1]


@pytest.fixture
def client(installed: tuple[Command, Path]) -> Callable[..., str]:
    def command(*words: str, code: int = 0) -> str:
        done = installed[0](*words)
        assert done.code == code, done.err
        return done.out

    return command


@pytest.fixture(scope="module")
def nowhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    """The same where no farm is named."""
    with installation(tmp_path_factory.mktemp("nowhere")) as command:
        yield command


def test_it_has_few_packages_and_no_server_library() -> None:
    assert len(base_packages()) <= MOST_PACKAGES, sorted(base_packages())
    assert {"httpx2", "rich", "typer"} <= base_packages()


def test_an_image_is_rendered_and_rendered_again(client: Callable[..., str], directory: Path) -> None:
    told = json.loads(client("render", "a red ball", "--size", "64x64", "-o", "ball.png", "--json"))
    assert (directory / "ball.png").stat().st_size > 0
    assert "a red ball" in client("show", told["id"])
    assert told["id"] in client("ls")
    assert "bit-identical" in client("rerun", told["id"])


def test_an_image_s_own_recipe_is_read(api: Api, client: Callable[..., str], directory: Path) -> None:
    info = PngInfo()
    info.add_text("farm", json.dumps({"version": 1, "parameters": {"task": "text-to-image", "prompt": "a cone"}}))
    Image.new("RGB", (64, 64)).save(directory / "cone.png", pnginfo=info)
    told = client("rerun", "cone.png", "-o", "again.png", code=1)
    assert "to compare their content: pip install pillow" in told
    assert (directory / "again.png").exists()


def test_a_file_of_jobs_is_submitted_followed_and_fetched(client: Callable[..., str], directory: Path) -> None:
    (directory / "night.csv").write_text("prompt,seed\nball,1\nbroken,2\ncone,3\n")
    batch_id = client("submit", "night.csv", "--size", "64x64").strip()
    client("watch", batch_id, code=1)
    client("get", batch_id, "-o", "out", code=1)
    assert len(list((directory / "out").iterdir())) == 2
    assert batch_id in client("batches")
    (failed,) = json.loads(client("ls", "--state", "failed", "--batch", batch_id, "--json"))
    assert client("retry", failed["id"]).startswith("job_")
    client("delete", batch_id, "--yes")


def test_what_waits_is_canceled_paused_and_resumed(client: Callable[..., str], directory: Path) -> None:
    (directory / "later.jsonl").write_text('{"prompt": "a ball"}\n')
    moment = (datetime.now(UTC) + timedelta(days=30)).isoformat()
    job_id = client("render", "a ball", "--no-wait", "--not-before", moment).strip()
    assert "canceled" in client("cancel", job_id)
    batch_id = client("submit", "later.jsonl", "--not-before", moment).strip()
    assert "paused" in client("pause", batch_id)
    assert "in_progress" in client("resume", batch_id)


def test_the_farm_is_operated(client: Callable[..., str]) -> None:
    assert "version" in client("status")
    assert json.loads(client("status", "--json"))["workers"] == {"online": 1}
    assert "a processor" in client("workers")
    assert client("models")
    assert "nothing is paused" in client("pauses")
    assert client("keys")
    assert client("tenants")
    assert client("outputs", "check")
    client("usage")
    secret = client("webhooks", "add", "https://192.0.32.7/hook").strip()
    assert secret.startswith("whsec_")
    assert "192.0.32.7" in client("webhooks")
    assert "POST /v1/webhooks" in client("audit")


def test_an_address_is_kept_and_forgotten(api: Api, client: Callable[..., str]) -> None:
    assert "used from now on" in client("login", api.url, "--api-key", api.key)
    assert client("open").strip() == f"{api.url}/farm"
    assert "forgotten" in client("logout")


def test_the_webhook_listener_checks_signatures_with_the_standard_library(client: Callable[..., str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        client("webhooks", "listen", "--port", str(taken.getsockname()[1]), code=2)


def test_every_command_is_tried_here_or_names_its_extra() -> None:
    tried = set(re.findall(r'client\("([a-z]+)"', Path(__file__).read_text()))
    assert tried == {name for name, command in COMMANDS.items() if command.extra is None}


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if command.extra])
def test_a_command_of_an_extra_says_which_one_to_install(name: str, nowhere: Command) -> None:
    done = nowhere(name)
    assert (done.code, done.out) == (2, "")
    (line,) = done.err.splitlines()
    assert line.endswith(f": pip install 'diffusion-render-farm[{COMMANDS[name].extra}]'")


def test_where_no_farm_is_named_the_sentence_says_what_to_set(nowhere: Command) -> None:
    done = nowhere("ls")
    assert done.code == 3
    assert "set FARM_URL and FARM_API_KEY" in done.err


def test_the_help_page_and_the_version_need_nothing_else(nowhere: Command) -> None:
    assert "render" in nowhere("--help").out
    assert nowhere("--version").out.startswith("farm ")
