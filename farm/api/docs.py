"""The API's own page: the OpenAPI document as plain HTML, without a script and without anything from elsewhere."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator
from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

router: Final = APIRouter(include_in_schema=False)

_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'"
}
_STYLE: Final = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); text-transform: capitalize; }
section { margin: 1.5rem 0 2.5rem; } h3 { font: 600 1rem ui-monospace, monospace; margin-bottom: .3rem; }
h3 b { display: inline-block; min-width: 4.5rem; }
code, pre { font: .9rem ui-monospace, monospace; background: var(--soft); } code { padding: .1rem .3rem; }
pre { padding: .8rem; overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: .92rem; }
td, th { text-align: left; vertical-align: top; padding: .3rem .6rem .3rem 0; border-top: 1px solid var(--line); }
nav a { margin-right: .8rem; display: inline-block; } summary { cursor: pointer; }
h3, td, th, p { overflow-wrap: anywhere; }
@media (max-width: 760px) {
  table, tbody { display: block; } tr { display: block; padding: .4rem 0; border-top: 1px solid var(--line); }
  td, th { display: inline; border: 0; padding: 0 .6rem 0 0; }
}
"""


@router.get("/docs")
def docs(request: Request) -> HTMLResponse:
    """The page."""
    base = f"{request.url.scheme}://{request.url.netloc}"
    return HTMLResponse("".join(_page(request.app.openapi(), base)), headers=_HEADERS)


def _page(document: dict[str, Any], base: str) -> Iterator[str]:
    info = document["info"]
    by_tag: dict[str, list[tuple[str, str, dict[str, Any]]]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            by_tag.setdefault(operation.get("tags", ["other"])[0], []).append((method, path, operation))
    yield '<!doctype html><html lang="en"><meta charset="utf-8">'
    yield f'<meta name="viewport" content="width=device-width"><title>{_(info["title"])} API</title>'
    yield f"<style>{_STYLE}</style><h1>{_(info['title'])} API {_(info['version'])}</h1>"
    yield "".join(f"<p>{_text(part)}</p>" for part in info["description"].strip().split("\n\n"))
    yield '<p>The whole contract, for programs: <a href="/openapi.json">/openapi.json</a></p><nav>'
    yield "".join(f'<a href="#{_(tag)}">{_(tag)}</a>' for tag in by_tag) + "</nav>"
    for tag, operations in by_tag.items():
        yield f'<h2 id="{_(tag)}">{_(tag)}</h2>'
        for method, path, operation in operations:
            yield from _operation(document, method, path, operation, base)


def _operation(document: dict[str, Any], method: str, path: str, operation: dict[str, Any], base: str) -> Iterator[str]:
    yield f'<section id="{_(operation["operationId"])}"><h3><b>{_(method.upper())}</b>{_(path)}</h3>'
    yield f"<p>{_text(operation.get('description', operation['summary']))}</p>"
    fields = [
        (p["name"], p["in"], p.get("required", False), p["schema"], p.get("description", ""))
        for p in operation.get("parameters", ())
    ]
    if fields:
        yield from _table(document, "Parameters", fields)
    media = operation.get("requestBody", {}).get("content", {})
    for schema in _variants(document, media.get("application/json", {}).get("schema", {})):
        required = schema.get("required", ())
        yield from _table(
            document,
            schema.get("title", "Body"),
            [
                (name, "body", name in required, one, one.get("description", ""))
                for name, one in schema.get("properties", {}).items()
            ],
        )
    yield f"<pre>{_(_curl(method, path, operation, media, base))}</pre><table>"
    for status, answer in operation["responses"].items():
        yield f"<tr><td><code>{_(status)}</code><td>{_text(answer['description'])}"
    yield "</table></section>"


def _table(
    document: dict[str, Any], title: str, fields: list[tuple[str, str, bool, dict[str, Any], str]]
) -> Iterator[str]:
    yield f"<details open><summary>{_(title)}</summary><table>"
    for name, where, required, schema, text in fields:
        needed = "required" if required else "optional"
        kind = _kind(document, schema)
        yield f"<tr><td><code>{_(name)}</code><td>{_(where)}, {needed}<td>{_(kind)}<td>{_text(text)}"
    yield "</table></details>"


def _variants(document: dict[str, Any], schema: dict[str, Any]) -> list[dict[str, Any]]:
    """The objects that a body may be."""
    found = _resolved(document, schema)
    parts = found.get("oneOf") or found.get("anyOf")
    return [_resolved(document, one) for one in parts] if parts else [found] if found else []


def _resolved(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[-1]]
    return schema


_LIMITS: Final = (
    ("minimum", "≥ {}"),
    ("maximum", "≤ {}"),
    ("multipleOf", "multiple of {}"),
    ("minLength", "at least {} characters"),
    ("maxLength", "at most {} characters"),
    ("default", "default {}"),
)


def _kind(document: dict[str, Any], schema: dict[str, Any]) -> str:
    found = _resolved(document, schema) | {name: value for name, value in schema.items() if name == "default"}
    options = [one for one in found.get("anyOf", ()) if one.get("type") != "null"]
    if options:
        found = _resolved(document, options[0]) | {"default": found.get("default")}
    if "const" in found:
        return json.dumps(found["const"])
    parts = [" | ".join(map(str, found["enum"]))] if "enum" in found else [str(found.get("type", "any"))]
    if found.get("type") == "array":
        parts = [f"list of {_kind(document, found.get('items', {}))}"]
    for name, form in _LIMITS:
        if found.get(name) not in (None, "", {}, []):
            value = found[name]
            parts.append(
                form.format(value if isinstance(value, int | float) else json.dumps(value, ensure_ascii=False))
            )
    return ", ".join(parts)


def _curl(method: str, path: str, operation: dict[str, Any], media: dict[str, Any], base: str) -> str:
    parts = ["curl" if method == "get" else f"curl -X {method.upper()}"]
    if operation.get("security"):
        parts.append('-H "Authorization: Bearer $FARM_API_KEY"')
    if "text/event-stream" in operation["responses"].get("200", {}).get("content", {}):
        parts[0] += " -N"
    body = media.get("application/json")
    if body is not None:
        examples = body.get("examples", {})
        example = next(iter(examples.values()))["value"] if examples else {"name": "ci", "scopes": ["submit", "read"]}
        parts.append("-H 'Content-Type: application/json'")
        parts.append(f"-d '{json.dumps(example)}'")
    elif media:
        parts.append("-F file=@image.png")
    parts.append(f"'{base}{path}'")
    return " \\\n  ".join(parts)


def _(text: object) -> str:
    return html.escape(str(text))


def _text(text: str) -> str:
    """Escaped, with `code` between backticks."""
    pieces = _(text).split("`")
    return "".join(f"<code>{piece}</code>" if number % 2 else piece for number, piece in enumerate(pieces))
