"""The files around the code: workflows, policies, changelog. They are checked by their own schemas, and what they name
must exist."""

from __future__ import annotations

import ast
import email
import importlib.metadata
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import farm

ROOT = Path(__file__).parents[2]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
ACTIONS = sorted((GITHUB / "actions").glob("*/action.yml"))
#: The pages that tell people which commands to run.
PAGES = [ROOT / "CONTRIBUTING.md", ROOT / "README.md", GITHUB / "pull_request_template.md"]

LONG = 600  #: lines above which a module's docstring says why it is one

PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())


def loaded(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text())
    return found


def steps() -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in WORKFLOWS:
        for job in loaded(path)["jobs"].values():
            yield from ((path, step) for step in job["steps"])
    for path in ACTIONS:
        yield from ((path, step) for step in loaded(path)["runs"]["steps"])


def test_each_long_module_says_why_it_is_long() -> None:
    tracked = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    long = [name for name in tracked.stdout.split() if len((ROOT / name).read_text("utf-8").splitlines()) > LONG]
    assert long
    for name in long:
        reason = ast.get_docstring(ast.parse((ROOT / name).read_text("utf-8"))) or ""
        assert re.search(r"\blong\b", reason, re.IGNORECASE), f"{name} has over {LONG} lines and does not say why"


# -- workflows -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "files"),
    [
        ("vendor.github-workflows", WORKFLOWS),
        ("custom.github-workflows-require-timeout", WORKFLOWS),
        ("vendor.github-actions", ACTIONS),
        ("vendor.github-issue-forms", sorted(set((GITHUB / "ISSUE_TEMPLATE").glob("*.yml")) - {GITHUB / "ISSUE_TEMPLATE" / "config.yml"})),  # noqa: E501
        ("vendor.github-issue-config", [GITHUB / "ISSUE_TEMPLATE" / "config.yml"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_github_s_files_match_their_schemas(schema: str, files: list[Path]) -> None:
    assert files
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_security_linter_finds_nothing_in_the_workflows() -> None:
    found = importlib.metadata.files("zizmor") or []
    program = next(Path(file.locate()).resolve() for file in found if file.name == "zizmor")
    command = [str(program), "--offline", "--no-progress", "--config", str(GITHUB / "zizmor.yml"), str(GITHUB)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_action_has_one_version() -> None:
    used: dict[str, set[str]] = {}
    for path in WORKFLOWS + ACTIONS:
        for action, version in re.findall(r"uses: ([^@\s$]+)@(.+)", path.read_text()):
            used.setdefault(action, set()).add(version)
    assert len(used) > 5
    assert {action: versions for action, versions in used.items() if len(versions) > 1} == {}


def test_each_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text()))
    commands = [line for _, step in steps() for line in step.get("run", "").splitlines()]
    for page in PAGES:
        text = page.read_text()
        commands += re.findall(r"`(make [^`]+)`", text)
        commands += [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    named = {
        word
        for line in commands
        for command in re.split(r"&&|\|\||;|#", line)
        if (words := command.split())[:1] == ["make"]
        for word in words[1:]
        if "=" not in word
    }
    assert {"install", "unit", "integration", "nightly", "chaos"} <= named
    assert named <= targets


def test_each_script_that_a_workflow_runs_exists() -> None:
    scripts = {name for _, step in steps() for name in re.findall(r"\b(?:infra|tools)/[\w./-]+\.sh", step.get("run", ""))}  # fmt: skip # noqa: E501
    assert scripts
    for name in scripts:
        assert (ROOT / name).stat().st_mode & 0o111, f"{name} is not executable"


def test_every_version_of_python_that_is_promised_is_tested() -> None:
    jobs = loaded(GITHUB / "workflows" / "ci.yml")["jobs"]
    promised = {
        found[1]
        for classifier in PYPROJECT["project"]["classifiers"]
        if (found := re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", classifier))
    }
    lowest = PYPROJECT["project"]["requires-python"].removeprefix(">=")
    assert lowest == min(promised, key=lambda version: int(version.split(".")[1]))
    for name in ("unit", "integration"):
        assert set(jobs[name]["strategy"]["matrix"]["python-version"]) == promised
    # Jobs in parallel: one that waits for another one would say so.
    assert all("needs" not in job for job in jobs.values())


# -- commits and policies --------------------------------------------------------------------------------------------


def test_the_hooks_of_pre_commit_run_what_the_development_tools_install() -> None:
    local = next(repo for repo in loaded(ROOT / ".pre-commit-config.yaml")["repos"] if repo["repo"] == "local")
    scripts = {entry.name for entry in importlib.metadata.entry_points(group="console_scripts")}
    programs = {"ruff"}  # a binary, not an entry point
    for hook in local["hooks"]:
        program = hook["entry"].split()[0]
        assert program.startswith(".venv/bin/")
        assert program.removeprefix(".venv/bin/") in scripts | programs
    assert {hook["id"] for hook in local["hooks"]} >= {"ruff", "ruff-format", "mypy", "import-linter"}


def test_the_licence_is_the_same_everywhere() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert PYPROJECT["project"]["license"] == "Apache-2.0"
    assert PYPROJECT["project"]["license-files"] == ["LICENSE"]


# -- changelog -------------------------------------------------------------------------------------------------------


def test_the_changelog_keeps_the_form_of_keep_a_changelog() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    sections = re.findall(r"(?m)^## (.*)$", text)
    assert sections[0] == "[Unreleased]"
    for section in sections[1:]:
        assert re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", section)
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"(?m)^### (.*)$", text)) <= kinds
    for name in (section.partition("]")[0][1:] for section in sections):
        assert f"\n[{name}]: https://" in text, f"{name} links to nothing"


# -- version and package ---------------------------------------------------------------------------------------------


def test_the_version_is_declared_once_and_shown_everywhere() -> None:
    assert "version" not in PYPROJECT["project"]
    assert loaded(ROOT / "infra" / "helm" / "farm" / "Chart.yaml")["appVersion"] == farm.__version__
    shown = subprocess.run(
        [sys.executable, "-m", "farm.cli", "--version"], capture_output=True, text=True, timeout=60, check=True
    )
    assert shown.stdout == f"farm {farm.__version__}\n"
    dockerfile = (ROOT / "infra" / "images" / "Dockerfile").read_text()
    for stage in re.split(r"(?m)^FROM ", dockerfile)[1:]:
        if re.match(r"base AS (control|worker)\n", stage):
            assert 'ARG VERSION\nLABEL org.opencontainers.image.version="$VERSION"' in stage
    sources = [path for folder in ("farm", "workers") for path in (ROOT / folder).rglob("*.py")]
    literal = re.compile(rf"""["']{re.escape(farm.__version__)}["']""")
    assert [path.relative_to(ROOT).as_posix() for path in sources if literal.search(path.read_text())] == [
        "farm/__init__.py"
    ]


def test_the_docs_name_each_extra() -> None:
    page = (ROOT / "docs" / "getting-started.md").read_text()
    named = re.findall(r"(?m)^\| `'diffusion-render-farm\[(\w+)\]'` \|", page)
    assert named == list(PYPROJECT["project"]["optional-dependencies"])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    directory = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = directory.glob("*.whl")
    assert path.name == f"diffusion_render_farm-{farm.__version__}-py3-none-any.whl"
    return zipfile.ZipFile(path)


def test_the_wheel_has_the_code_its_types_and_its_licence_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    info = f"diffusion_render_farm-{farm.__version__}.dist-info"
    assert {name.partition("/")[0] for name in names} == {"farm", "workers", info}
    assert {"farm/py.typed", "workers/py.typed", f"{info}/licenses/LICENSE", f"{info}/entry_points.txt"} <= names
    tracked = subprocess.run(
        ["git", "ls-files", "farm", "workers"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert {name for name in names if not name.startswith(info)} <= set(tracked.stdout.splitlines())


def test_the_wheel_s_metadata_say_what_an_index_shows(wheel: zipfile.ZipFile) -> None:
    name = f"diffusion_render_farm-{farm.__version__}.dist-info/METADATA"
    metadata = email.message_from_bytes(wheel.read(name))
    assert metadata["Version"] == farm.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    urls = dict(one.split(", ", 1) for one in metadata.get_all("Project-URL", []))
    assert {"Homepage", "Documentation", "Changelog", "Issues"} <= set(urls)
    assert "Typing :: Typed" in metadata.get_all("Classifier", [])
