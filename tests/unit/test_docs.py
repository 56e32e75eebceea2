"""What the pages say is there: tests named as proofs, and files that are linked to."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.chaos.faults import FAULTS

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    ROOT / "examples" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]


def test_each_promise_names_tests_that_exist() -> None:
    page = (ROOT / "docs" / "concepts" / "promises.md").read_text("utf-8")
    sections = re.split(r"^## ", page, flags=re.MULTILINE)[1:]
    assert len(sections) >= 8
    for section in sections:
        named = re.findall(
            r"`((?:unit|contract|integration|acceptance|chaos)/\w+\.py)`((?:[:,]?\s*`test_\w+`)*)", section
        )
        assert named, section.splitlines()[0]
        for file, functions in named:
            source = (ROOT / "tests" / file).read_text("utf-8")
            for function in re.findall(r"test_\w+", functions):
                assert f"def {function}(" in source, f"{file}: {function}"


def test_each_failure_names_tests_and_faults_that_exist() -> None:
    page = (ROOT / "docs" / "internals" / "failures.md").read_text("utf-8")
    sources = "".join(file.read_text("utf-8") for file in (ROOT / "tests").rglob("test_*.py"))
    there = set(re.findall(r"def (test_\w+)\(", sources))
    faults: set[str] = set()
    for row in re.findall(r"^\| (?!failure |input |-).*", page, flags=re.MULTILINE):
        what, _, tries = (cell.strip() for cell in row.strip("| ").split(" | "))
        named, drawn = set(re.findall(r"`(test_\w+)`", tries)), set(re.findall(r"\*([a-z -]+)\*", tries))
        assert named | drawn, what
        assert named <= there, f"{what}: {named - there}"
        faults |= drawn
    assert faults == set(FAULTS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:|#", target):
            assert (page.parent / target.partition("#")[0]).exists(), target


def test_glossary_names_modules_and_metrics_that_exist() -> None:
    page = (ROOT / "docs" / "glossary.md").read_text("utf-8")
    modules = set(re.findall(r"`((?:farm|workers)/[\w/]+\.py)`", page))
    assert modules
    assert {module for module in modules if not (ROOT / module).exists()} == set()
    named = set(re.findall(r"`(farm_[a-z_]+)`", page))
    sources = "".join(
        file.read_text("utf-8") for folder in ("farm", "workers") for file in (ROOT / folder).rglob("*.py")
    )
    assert named
    assert named <= set(re.findall(r'"(farm_[a-z_]+)"', sources))
