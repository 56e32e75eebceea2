"""What the pages say is there: tests named as proofs, and files that are linked to."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_each_promise_names_tests_that_exist() -> None:
    page = (ROOT / "docs" / "03-promises.md").read_text("utf-8")
    sections = re.split(r"^## ", page, flags=re.MULTILINE)[1:]
    assert len(sections) >= 8
    for section in sections:
        named = re.findall(r"`((?:unit|integration|acceptance|chaos)/\w+\.py)`((?:[:,]?\s*`test_\w+`)*)", section)
        assert named, section.splitlines()[0]
        for file, functions in named:
            source = (ROOT / "tests" / file).read_text("utf-8")
            for function in re.findall(r"test_\w+", functions):
                assert f"def {function}(" in source, f"{file}: {function}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:|#", target):
            assert (page.parent / target.partition("#")[0]).exists(), target
