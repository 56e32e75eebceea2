"""One sentence for each parameter, from the ``Args:`` of a docstring."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_SECTION: Final = re.compile(r"^\s*(Args|Arguments|Parameters)\s*:\s*$")
_ENTRY: Final = re.compile(r"^[*`]*(?P<names>\w+(?:`?\s*,\s*`?\w+)*)`?\s*(?P<type>\(.*)?(?P<text>:.*)?$")
_LINK: Final = re.compile(r"\[([^\]]*)\]\([^)]*\)")
_REFERENCE: Final = re.compile(r"\[`[~.]*([^`\]]+)`\](?!\()")
_SENTENCE: Final = re.compile(r"(?<!e\.g\.)(?<!i\.e\.)(?<!etc\.)(?<!vs\.)(?<=[.!?])\s+(?=[A-Z`(\[])")
_MARKUP: Final = re.compile(r":\w+:(?=`)|\*\*")

MAX_LENGTH: Final = 160  #: characters of a description


@dataclass(frozen=True)
class Entry:
    """What a docstring says about one parameter."""

    type: str  #: in parentheses after the name; may be empty
    sentence: str  #: the first one; may be empty


def parse(docstring: str) -> dict[str, Entry]:
    """What the docstring says about each parameter."""
    lines = docstring.expandtabs().splitlines()
    texts: dict[str, list[str]] = {}
    types: dict[str, str] = {}
    start = next((i for i, line in enumerate(lines) if _SECTION.match(line)), None)
    if start is None:
        return {}
    section = _indent(lines[start])
    entry: int | None = None
    names: list[str] = []
    heading: str | None = None  # an entry's type that goes on in the next line
    for line in lines[start + 1 :]:
        if not line.strip():
            continue
        indent = _indent(line)
        if indent <= section:
            break
        entry = indent if entry is None else entry
        text = line.strip()
        if heading is not None or indent <= entry:
            joined = text if heading is None else f"{heading} {text}"
            heading = None
            if joined.count("(") > joined.count(")"):
                heading = joined
                continue
            match = _ENTRY.match(joined)
            if match is None:
                names = []
                continue
            names = re.findall(r"\w+", match["names"])
            rest = (match["type"] or (match["text"] or "")[1:]).strip()
            kind, rest = _split_type(rest) if rest.startswith("(") else ("", rest)
            for name in names:
                texts.setdefault(name, [rest])
                types.setdefault(name, kind)
        else:
            for name in names:
                texts[name].append(text)
    return {name: Entry(types[name], first_sentence(" ".join(lines))) for name, lines in texts.items()}


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _split_type(text: str) -> tuple[str, str]:
    """The type in parentheses and what follows it: ``(`float`, *optional*): the text``."""
    depth = 0
    for index, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return text[1:index], text[index + 1 :].lstrip(" :")
    return text[1:], ""


def first_sentence(text: str) -> str:
    """The first sentence without markup; a long one is cut at the end of a clause or of a word."""
    text = _REFERENCE.sub(r"`\1`", _LINK.sub(r"\1", text))
    text = _MARKUP.sub("", text).replace("``", "`")
    text = re.sub(r"\s+", " ", text).strip().lstrip(":- ")
    text = _SENTENCE.split(text)[0].strip()
    if len(text) > MAX_LENGTH:
        clause = max(text.rfind("; ", 0, MAX_LENGTH), text.rfind(", ", 0, MAX_LENGTH), text.rfind(" (", 0, MAX_LENGTH))
        text = text[: clause if clause > MAX_LENGTH // 2 else text.rfind(" ", 0, MAX_LENGTH)].rstrip(" ,;:") + "."
    if not text or not re.search(r"[A-Za-z]{3}", text):
        return ""
    return text[0].upper() + text[1:].rstrip(" :") + ("" if text[-1] in ".!?:" else ".")
