"""Write `farm/api_types.py`: what the client and the command line send, as Python types, from the API's own document.

    python -m tools.api_types

A test compares the file to what this program writes, so the two cannot drift apart.
"""

from __future__ import annotations

import keyword
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from farm.dashboard.app import create_app
from farm.domain.parameters import PARAMETERS, ParameterKind
from farm.settings import Settings
from farm.tasks import TASKS

TARGET: Final = Path(__file__).parents[1] / "farm" / "api_types.py"

_HEADER: Final = '''"""What is sent to the API, as types. Written by `python -m tools.api_types`.

None, where it is allowed, is the same as leaving the argument out. The file is long because it names every parameter.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol, TypeAlias, TypedDict

if TYPE_CHECKING:
    from PIL.Image import Image


class Named(Protocol):
    """An uploaded file, or a job whose first output is meant."""

    @property
    def id(self) -> str:
        """Its id."""


class OutputOfJob(Protocol):
    """An output of a job."""

    @property
    def job_id(self) -> str:
        """The job's id."""

    @property
    def index(self) -> int:
        """Its position among the job's outputs, from 0."""


#: A file: a path, encoded bytes, a Pillow image, a reference (``file_…``, ``sha256:…``, ``job_…``, a URL), an uploaded
#: file, a job whose first output it is, or an output of a job.
FileInput: TypeAlias = "str | os.PathLike[str] | bytes | Image | Named | OutputOfJob"


class ParameterInfo(NamedTuple):
    """A parameter of jobs."""

    kind: str  #: of its value
    description: str
    aliases: tuple[str, ...] = ()  #: its other names
    many: bool = False  #: of an ``input``: whether some task takes several files
'''

Schema = Mapping[str, Any]


@dataclass(frozen=True)
class Class:
    """One class of keyword arguments."""

    name: str
    doc: str
    method: str  #: of the operation that takes them
    path: str
    without: frozenset[str] = frozenset()  #: what the client's method has a parameter of its own for
    nullable: bool = True  #: whether None means to leave it out; in a change it may be a value


_PAGE: Final = frozenset({"limit", "cursor"})

CLASSES: Final = (
    Class("JobParameters", "A job's parameters; what is left out is decided by the model's defaults.",
          "post", "/v1/jobs", frozenset({"task", "prompt", "image"})),
    Class("BatchDefaults", "Parameters of a batch, and those that its jobs leave open.",
          "post", "/v1/batches", frozenset({"name", "on_error", "dry_run"})),
    Class("BatchChanges", "What may be changed of a batch.", "patch", "/v1/batches/{batch_id}", nullable=False),
    Class("JobFilters", "Which jobs are meant; what is left out does not filter.", "get", "/v1/jobs", _PAGE),
    Class("OutputFilters", "Which outputs are meant; what is left out does not filter.", "get", "/v1/outputs", _PAGE),
    Class("LabelChanges", "What is changed on outputs.", "post", "/v1/outputs/labels", frozenset({"outputs"})),
    Class("EndpointChanges", "What may be changed of a webhook endpoint.",
          "patch", "/v1/webhooks/endpoints/{endpoint_id}", nullable=False),
    Class("DeliveryFilters", "Which webhook deliveries are meant; what is left out does not filter.",
          "get", "/v1/webhooks/deliveries", _PAGE),
    Class("ResendFilters", "Which dead deliveries are sent again; what is left out does not filter.",
          "post", "/v1/webhooks/deliveries/resend"),
    Class("TenantLimits", "A tenant's weight and limits.", "post", "/v1/tenants", frozenset({"name"})),
    Class("TenantChanges", "What may be changed of a tenant; None removes a limit.",
          "patch", "/v1/tenants/{tenant_id}", nullable=False),
    Class("ModelFields", "What is stated of a model; its files or the farm decide what is left out.",
          "post", "/v1/models", frozenset({"id", "source"})),
    Class("ModelChanges", "What may be changed of a model; None removes `memory_bytes`.",
          "patch", "/v1/models/{model_id}", nullable=False),
)  # fmt: skip


#: Names for types that the document has none for, by the field that has them first.
ALIASES: Final = {
    ("JobParameters", "output_format"): "OutputFormat",
    ("BatchDefaults", "task"): "Task",
    ("EndpointChanges", "events"): "EventType",
    ("DeliveryFilters", "type"): "DeliveryType",
}
#: Types that the document names and no class above has.
OTHERS: Final = ("Scope",)


#: How the client takes files, by the parameter's kind and whether there may be several.
_FILES: Final = {
    (ParameterKind.INPUT, False): "FileInput",
    (ParameterKind.INPUT, True): "FileInput | Sequence[FileInput]",
    (ParameterKind.INPUTS, False): "Mapping[str, FileInput | Sequence[FileInput]]",
}


def tables() -> Iterator[str]:
    """The lines that say what tasks and parameters there are, as data."""
    inputs = {name: {role: (one.min, one.max) for role, one in spec.inputs.items()} for name, spec in TASKS.items()}
    yield "#: By task and role: how many input files it takes, at least and at most."
    yield f"TASK_INPUTS: Final[Mapping[Task, Mapping[str, tuple[int, int]]]] = {inputs!r}"
    yield "#: The parameters of jobs by name."
    yield "PARAMETERS: Final[Mapping[str, ParameterInfo]] = {"
    for one in PARAMETERS.values():
        more = [f"aliases={one.aliases!r}"] if one.aliases else []
        more += ["many=True"] if one.many else []
        given = ", ".join([repr(one.kind.value), repr(_sentence(one.description)), *more])
        yield f"    {one.name!r}: ParameterInfo({given}),"
    yield "}"


def _sentence(text: str) -> str:
    """The first sentence."""
    first, dot, _ = text.partition(". ")
    return first + dot.strip()


@dataclass
class Writer:
    """Turns schemas of an OpenAPI document into annotations, and remembers the types that they name."""

    document: dict[str, Any]
    named: dict[str, str] = field(default_factory=dict)  #: definitions of named types, in the order of their first use

    def fields(self, one: Class) -> dict[str, Schema]:
        """What the operation takes: the properties of its body, or its query."""
        operation = self.document["paths"][one.path][one.method]
        query = {each["name"]: each for each in operation.get("parameters", ()) if each["in"] == "query"}
        found: dict[str, Schema] = {
            name: {"description": each.get("description"), **each["schema"]} for name, each in query.items()
        }
        if not found:
            body = operation["requestBody"]["content"]["application/json"]["schema"]
            for alternative in body.get("oneOf", [body]):
                for name, schema in self._resolved(alternative)["properties"].items():
                    found[name] = _widened(found[name], schema) if name in found else schema
        return {name: schema for name, schema in found.items() if name not in one.without}

    def annotation(self, schema: Schema) -> str:
        """The Python type of what a schema describes."""
        if "$ref" in schema:
            return self._name(schema["$ref"].rpartition("/")[2])
        if "anyOf" in schema:
            return " | ".join(dict.fromkeys(self.annotation(one) for one in schema["anyOf"]))
        if "enum" in schema:
            literal = f"Literal[{', '.join(map(repr, schema['enum']))}]"
            return next((name for name, text in self.named.items() if text.endswith(f" = {literal}")), literal)
        match schema.get("type"):
            case "string":
                return "str | datetime" if schema.get("format") == "date-time" else "str"
            case "array":
                return f"Sequence[{self.annotation(schema['items'])}]"
            case "object":
                (values,) = (schema.get("patternProperties") or {"": schema["additionalProperties"]}).values()
                return f"Mapping[str, {'Any' if values is True or not values else self.annotation(values)}]"
            case kind:
                return {"integer": "int", "number": "float", "boolean": "bool", "null": "None"}[str(kind)]

    def write(self, one: Class) -> Iterator[str]:
        """The lines of one class."""
        yield f"class {one.name}(TypedDict, total=False):"
        yield f'    """{one.doc}"""\n'
        for name, schema in self.fields(one).items():
            kind = self.annotation(schema)
            if one.name == "JobParameters" and (parameter := PARAMETERS.get(name)) is not None:
                kind = _FILES.get((parameter.kind, parameter.many), kind)
            if alias := ALIASES.get((one.name, name)):
                (literal,) = re.findall(r"Literal\[.*?\]", kind)
                self.named[alias] = f"{alias}: TypeAlias = {literal}"
                kind = kind.replace(literal, alias)
            if one.method == "get" and kind.startswith("Sequence["):  # a query repeats its name; once is enough
                kind = f"{kind[9:-1]} | {kind}"
            if one.nullable and not kind.endswith("None"):
                kind += " | None"
            yield from _comment(schema.get("description"))
            yield f"    {name}: {kind}"

    def _resolved(self, schema: Schema) -> Schema:
        reference = schema.get("$ref")
        found: Schema = self.document["components"]["schemas"][reference.rpartition("/")[2]] if reference else schema
        return found

    def _name(self, name: str) -> str:
        if name not in self.named:
            schema = self.document["components"]["schemas"][name]
            self.named[name] = ""  # its place, before what it names itself
            if any(map(keyword.iskeyword, schema.get("properties", ()))):
                members = ", ".join(f"{key!r}: {kind}" for key, kind in self._members(schema))
                self.named[name] = f"#: {schema['description']}\n{name} = TypedDict({name!r}, {{{members}}})"
            elif "properties" in schema:
                lines = [f"class {name}(TypedDict):", f'    """{schema["description"]}"""\n']
                for key, kind in self._members(schema):
                    lines += [*_comment(schema["properties"][key].get("description")), f"    {key}: {kind}"]
                self.named[name] = "\n".join(lines)
            else:
                self.named[name] = f"{name}: TypeAlias = {self.annotation(schema)}"
        return name

    def _members(self, schema: Schema) -> Iterator[tuple[str, str]]:
        """The keys of an object, and the type of each."""
        for key, value in schema["properties"].items():
            kind = self.annotation(value)
            yield key, kind if key in schema.get("required", ()) else f"NotRequired[{kind}]"


def _widened(first: Schema, other: Schema) -> Schema:
    """The schema that allows what either allows: tasks of other media have other choices."""
    if "enum" not in first:
        return first
    return {**first, "enum": list(dict.fromkeys((*first["enum"], *other["enum"])))}


def _comment(text: str | None) -> Iterator[str]:
    for line in (text or "").splitlines():
        words, width = line.split(" "), 0
        out = ""
        for word in words:
            if width + len(word) > 105:
                yield f"    #:{out}"
                out, width = "", 0
            out, width = f"{out} {word}", width + len(word) + 1
        yield f"    #:{out}"


def generate() -> str:
    """The module's text, formatted."""
    writer = Writer(create_app(Settings()).openapi())
    classes = ["\n".join(writer.write(one)) for one in CLASSES]
    for name in OTHERS:
        writer.annotation({"$ref": f"#/{name}"})
    text = "\n\n".join([_HEADER, *writer.named.values(), *classes, "\n".join(tables())]) + "\n"
    if "NotRequired[" in text:
        text = text.replace("NamedTuple, Protocol", "NamedTuple, NotRequired, Protocol")
    for command in (["check", "--fix-only", "--select", "I"], ["format"]):
        arguments = [sys.executable, "-m", "ruff", *command, "--quiet", "--stdin-filename", str(TARGET), "-"]
        done = subprocess.run(arguments, input=text, capture_output=True, text=True, check=True, cwd=TARGET.parents[1])  # noqa: S603 - the formatter
        text = done.stdout
    return text


if __name__ == "__main__":
    TARGET.write_text(generate())
