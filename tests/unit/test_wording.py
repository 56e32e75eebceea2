"""Texts that users read keep to the terms of docs/glossary.md: the words that those terms replaced do not come back."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

ROOT: Final = Path(__file__).parents[2]

#: Words that must not be written, each with what is written instead.
REPLACED: Final = {
    r"hand(s|ed|ing)?[- ]overs?": "dispatch",
    r"(take|takes|took|taken|taking|give|gives|gave|given|giving) back": "requeue, release",
    r"(take|takes|took|taken|taking) up": "start",
    r"(is|are|was|were|not|once|yet) over(?= ?[.,;:)]|$)": "finished",
    r"told|hears?|heard": "notified, subscribed, reported",
    r"deaf|ears?": "stalled consumer",
    r"bury|buries|buried|doomed|strays?": "soft-delete, pending deletion, orphan",
    r"step(s|ped|ping)? aside|patien(t|ce|tly)": "delay scheduling",
    r"insist(s|ed|ing)?": "retry until",
    r"shelf|shelves|shelved": "upload spool",
    r"attic": "CPU model cache",
    r"wears?|wearing": "has an active adapter",
    r"lessons?": "batch profile",
    r"neighbou?rs?": "co-batched jobs",
    r"seats?": "slot",
    r"pictures?": "image",
    r"cards?": "device, GPU",
    r"signs? of life": "heartbeat",
    r"no such thing": "not found",
    r"made a mistake": "failed",
    r"(without you|this far)(?= ?[.,;:)]|$)": "the state, or the missing scope",
}
_PATTERNS: Final = {
    re.compile(rf"(?<![\w`/-])(?:{words})(?![\w`/-])", re.IGNORECASE | re.MULTILINE): instead
    for words, instead in REPLACED.items()
}


def replaced_words(text: str) -> list[str]:
    """What of a text should be written otherwise."""
    return [f"{match[0]!r}: write {instead}" for words, instead in _PATTERNS.items() for match in words.finditer(text)]


def python_texts(file: Path) -> Iterator[str]:
    """Every string of a module that has a space: messages, descriptions, help texts and docstrings."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.value


def template_texts(file: Path) -> Iterator[str]:
    """The text between a page's tags, and the attributes that are shown or read aloud."""
    page = re.sub(r"\{[{%#].*?[}%#]\}", " ", file.read_text("utf-8"), flags=re.DOTALL)
    yield from re.findall(r'(?:title|placeholder|aria-label|alt|data-sure)="([^"]*)"', page)
    yield re.sub(r"<[^>]*>", "\n", page)


def script_texts(file: Path) -> Iterator[str]:
    """The string literals of a script that have a space."""
    source = file.read_text("utf-8")
    yield from (text for text in re.findall(r'"([^"\n]*)"|`([^`]*)`', source) for text in text if " " in text)


def json_texts(file: Path) -> Iterator[str]:
    """The texts of a Grafana dashboard."""
    found: list[Any] = [json.loads(file.read_text("utf-8"))]
    while found:
        match found.pop():
            case dict(fields):
                found += fields.values()
            case list(values):
                found += values
            case str(text):
                yield text


def whole(file: Path) -> Iterator[str]:
    """A page of documentation."""
    yield file.read_text("utf-8")


READERS: Final = {
    "farm/**/*.py": python_texts,
    "workers/**/*.py": python_texts,
    "examples/*.py": python_texts,
    "farm/dashboard/templates/*.html": template_texts,
    "farm/dashboard/static/*.js": script_texts,
    "infra/grafana/*.json": json_texts,
    "infra/prometheus/*.yml": whole,
    "*.md": whole,
    "docs/**/*.md": whole,
    "examples/*.md": whole,
}


@pytest.mark.parametrize("pattern", READERS)
def test_user_visible_texts_use_the_terms_of_the_glossary(pattern: str) -> None:
    files = sorted(ROOT.glob(pattern))
    assert files
    found = {
        str(file.relative_to(ROOT)): words
        for file in files
        if (words := [word for text in READERS[pattern](file) for word in replaced_words(text)])
    }
    assert found == {}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A job is handed over to a worker.", 1),
        ("The job is over.", 1),
        ("It hears of its end, and the card is given back.", 3),
        ("Pictures of the farm", 1),
        ("Dispatched over the network; the sum is over all jobs; hear/say; `shelf` and pre-shelf.", 0),
        ("The search is over jobs, an early and a discarded row.", 0),
    ],
)
def test_replaced_words_are_found_and_others_are_not(text: str, found: int) -> None:
    assert len(replaced_words(text)) == found


def test_classes_of_different_concepts_have_different_names() -> None:
    named: dict[str, list[str]] = {}
    for folder in ("farm", "workers"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.parse(file.read_text("utf-8")).body:
                if isinstance(node, ast.ClassDef):
                    named.setdefault(node.name, []).append(str(file.relative_to(ROOT)))
    # the client has its own view of what the server has, and each file of farm/tasks has the `Params` of its task
    own = re.compile(r"farm/(client/|api_types\.py|tasks/)")
    shared = {name: files for name, files in named.items() if len([file for file in files if not own.match(file)]) > 1}
    assert shared == {}
    tasks = {name: files for name, files in named.items() if len([file for file in files if "/tasks/" in file]) > 1}
    assert set(tasks) <= {"Params"}
