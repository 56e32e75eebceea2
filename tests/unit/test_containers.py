"""``make containers`` without an engine: what it asks Docker for, what it computes, and how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.containers.__main__ import project, table
from tests.containers.client import ApiFailed, Client, until
from tests.containers.engine import ROOT, CommandFailed, Engine, Layer, NoEngine, new_bytes, version
from tests.containers.scenario import Broken, Result, Scenario, copy_of_context


def fake(folder: Path, body: str) -> str:
    """A program that stands for ``docker``."""
    path = folder / "docker"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def test_without_an_engine_it_says_so_and_exits_with_2(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.containers"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "there is no container engine here" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("server", "compose", "said"),
    [
        ("20.10.24+dfsg1", "2.26.1", None),
        ("28.2.2", "v2.40.0-desktop.1", None),
        ("20.10.5", "2.26.1", "Docker Engine is 20.10.5"),
        ("28.2.2", "2.17.3", "Compose is 2.17.3"),
    ],
)
def test_an_engine_that_is_too_old_is_refused(tmp_path: Path, server: str, compose: str, said: str | None) -> None:
    program = fake(tmp_path, f'[ "$1" = version ] && echo {server} || echo {compose}')
    engine = Engine("p", [], {}, program, tmp_path)
    if said is None:
        assert server in engine.require()
    else:
        with pytest.raises(NoEngine, match=said):
            engine.require()


def test_versions_are_compared_as_numbers() -> None:
    assert version("v2.9.0") < version("2.24") < version("2.100.1-rc1")


def test_compose_is_asked_with_its_project_its_files_and_its_variables(tmp_path: Path) -> None:
    program = fake(tmp_path, 'printf "%s\\n" "$S3_PORT" "$@"')
    engine = Engine("farm-x", [tmp_path / "a.yml", tmp_path / "b.yml"], {"S3_PORT": "8333"}, program, tmp_path)
    said = engine.execute("api", "farm", "workers").out.splitlines()
    assert said == [
        "8333", "compose", "--project-name", "farm-x", "--file", f"{tmp_path}/a.yml", "--file", f"{tmp_path}/b.yml",
        "exec", "--no-TTY", "api", "farm", "workers",
    ]  # fmt: skip


def test_a_command_that_fails_says_what_the_engine_said(tmp_path: Path) -> None:
    engine = Engine("p", [], {}, fake(tmp_path, "echo no such container >&2; exit 3"), tmp_path)
    with pytest.raises(CommandFailed, match="no such container"):
        engine.docker("kill", "x")
    assert engine.docker("kill", "x", check=False).code == 3


def test_what_a_change_moves_are_the_layers_that_were_not_there() -> None:
    before = [Layer("10:00", "RUN ours", 26), Layer("09:00", "RUN torch", 700), Layer("08:00", "ADD base", 75)]
    after = [Layer("11:00", "RUN ours", 27), *before[1:]]
    assert new_bytes(before, after) == 27
    assert new_bytes(before, before) == 0


def test_the_project_is_a_copy_with_ports_and_secrets_of_its_own(tmp_path: Path) -> None:
    copy_of_context(tmp_path)
    engine = project(tmp_path)
    ports = [value for name, value in engine.variables.items() if name.endswith("_PORT")]
    assert len(ports) == len(set(ports)) >= 5
    assert engine.variables["FARM_VERSION"] == "acceptance"
    assert all(file.is_relative_to(tmp_path) and file.exists() for file in engine.files)
    assert (tmp_path / "farm.env").exists()
    for name in ("docker-compose.yml", "docker-compose.join.yml", "docker-compose.worker.yml", ".dockerignore"):
        assert (tmp_path / name).read_text() == (ROOT / name).read_text()
    assert (tmp_path / "infra" / "images" / "Dockerfile").exists()


def test_it_needs_nothing_but_the_standard_library() -> None:
    command = [
        sys.executable,
        "-I",
        "-S",
        "-c",
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import tests.containers.__main__",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_step_that_fails_is_kept_and_the_next_one_is_played(tmp_path: Path) -> None:
    scenario = Scenario(Engine("p", [], {}, "docker", tmp_path), Client("http://127.0.0.1:1"), "", say=lambda _: None)

    def broken() -> str:
        raise Broken("2 jobs lost")

    assert not scenario.step("kill", "no job lost", broken)
    assert scenario.step("metrics", "up", lambda: "4 targets")
    text = table(scenario.results)
    assert "BROKEN  kill" in text
    assert "2 jobs lost" in text
    assert text.endswith("1 passed, 1 failed")
    assert table([Result("a", "-", True, "fine\nindeed", 1.4)]).splitlines()[1].split() == [
        "ok",
        "a",
        "-",
        "1",
        "fine",
        "indeed",
    ]


def inspected(**changes: object) -> dict[str, object]:
    host = {
        "ReadonlyRootfs": True, "CapDrop": ["ALL"], "SecurityOpt": ["no-new-privileges:true"], "PidsLimit": 512,
        "Tmpfs": {"/tmp": "size=1m"}, "IpcMode": "private",
    }  # fmt: skip
    return {"Id": "abc", "Name": "/p-api-1", "HostConfig": host | changes, "State": {"Running": True}}


@pytest.mark.parametrize(
    ("changes", "user", "fault"),
    [
        ({}, "10001", None),
        ({}, "0", "runs as 0"),
        ({"ReadonlyRootfs": False}, "10001", "root is writable"),
        ({"CapDrop": None}, "10001", "capabilities"),
        ({"SecurityOpt": []}, "10001", "privileges"),
        ({"Tmpfs": {"/tmp": ""}}, "10001", "has no size"),
        ({"IpcMode": "host"}, "10001", "shares memory"),
    ],
)
def test_a_container_with_too_many_rights_is_found(
    tmp_path: Path, changes: dict[str, object], user: str, fault: str | None
) -> None:
    (tmp_path / "inspected.json").write_text(json.dumps([inspected(**changes)]))
    answers = (
        f"*config*) echo api ;; *ps*) echo abc ;; inspect*) cat {tmp_path}/inspected.json ;; exec*) echo {user} ;;"
    )
    program = fake(tmp_path, f'case "$*" in {answers} esac')
    scenario = Scenario(Engine("p", [], {}, program, tmp_path), Client("http://127.0.0.1:1"), "")
    if fault is None:
        assert scenario.unprivileged() == "1 containers"
    else:
        with pytest.raises(Broken, match=fault):
            scenario.unprivileged()


def test_waiting_has_an_end_and_says_for_what() -> None:
    with pytest.raises(ApiFailed, match="the moon is full"):
        until(lambda: False, 0, "the moon is full")
