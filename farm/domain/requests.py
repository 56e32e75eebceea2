"""What may be asked of the farm: one request shape per task, derived from `farm.tasks`.

A request says what the client wants and leaves the rest open; `resolve` adds what the model's entry decides, draws a
seed, checks everything and gives the `JobSpec` that is stored, rendered and, later, reproduced.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Union, cast

from pydantic import AliasChoices, BeforeValidator, ConfigDict, Field, StringConstraints, create_model

from farm.domain.job_spec import Lora
from farm.domain.media import input_formats, output_formats, titles
from farm.domain.numerics import CLASS_PATTERN
from farm.domain.states import Priority
from farm.fields import (
    MAX_FILES,
    MAX_LORAS,
    MAX_OUTPUTS,
    Count,
    CustomId,
    FrozenValue,
    JsonObject,
    Metadata,
    Moment,
    NoNul,
    ParameterName,
    Seed,
    Storable,
)
from farm.tasks import TASKS
from farm.tasks.spec import InputSpec, TaskSpec

NumericsClass = Annotated[str, StringConstraints(pattern=CLASS_PATTERN)]
#: What a reference to an output of another line of the same batch begins with, as text: ``from:base-17/0``.
LINE: Final = "from:"


class LineOutput(FrozenValue):
    """An output of another job of the same batch."""

    from_: Annotated[str, StringConstraints(min_length=1, max_length=200), Storable, NoNul] = Field(
        alias="from", description="The `custom_id` of that job; its line may come later."
    )
    output: int = Field(0, strict=True, ge=0, lt=MAX_OUTPUTS, description="Which output, from 0.")


def _as_text(value: object) -> object:
    """A reference to another line as text."""
    if not isinstance(value, Mapping):
        return value
    named = LineOutput.model_validate(value)
    return f"{LINE}{named.from_}/{named.output}"


def line_of(reference: str) -> tuple[str, int]:
    """The ``custom_id`` and the output of a reference to another line: ``from:base-17`` or ``from:base-17/1``."""
    name, _, output = reference.removeprefix(LINE).rpartition("/")
    if name and output.isascii() and output.isdigit() and len(output) <= len(str(MAX_OUTPUTS)):
        return name, int(output)
    return reference.removeprefix(LINE), 0


#: One reference to an input file, where only text can be given.
TextReference = Annotated[str, StringConstraints(min_length=1)]  # the API limits the whole request
#: One reference to an input file.
Reference = Annotated[TextReference, BeforeValidator(_as_text, json_schema_input_type=TextReference | LineOutput)]


def _as_list(value: object) -> object:
    """One reference stands for a list of one."""
    return (value,) if isinstance(value, str | Mapping) else value


#: One reference, or several.
References = Annotated[
    tuple[Reference, ...],
    Field(min_length=1, max_length=MAX_FILES),
    BeforeValidator(_as_list, json_schema_input_type=Reference | list[Reference]),
]


def _add_aliases(schema: dict[str, Any], request: type[JobRequest]) -> None:
    """Add the other names of parameters to a request's JSON Schema, which has only the stored ones."""
    for name, field in request.model_fields.items():
        if isinstance(field.validation_alias, AliasChoices):
            for alias in map(str, field.validation_alias.choices):
                if alias != name:
                    schema["properties"][alias] = schema["properties"][name] | {
                        "description": f"Another name of `{name}`.",
                        "title": alias.capitalize(),
                    }


class JobRequest(FrozenValue):
    """The parameters of every task. What is absent is decided by the model's defaults."""

    model_config = ConfigDict(json_schema_extra=_add_aliases)

    model: str | None = Field(
        None,
        max_length=200,
        description="A model id from `GET /v1/models`; the first model that does the task if absent.",
    )
    scheduler: ParameterName | None = Field(
        None,
        description="The sampling method: a name such as `euler`, or a class. `GET /v1/models/{id}` lists those of a "
        "model; its own if absent.",
    )
    scheduler_options: JsonObject = Field(
        default_factory=dict, description="Options of the scheduler, such as `use_karras_sigmas`."
    )
    parameters: JsonObject = Field(
        default_factory=dict,
        description="What only the model's pipeline takes, such as `clip_skip`. `GET /v1/models/{id}` has the schema.",
    )
    inputs: Annotated[dict[ParameterName, References], Field(max_length=MAX_FILES)] = Field(
        default_factory=dict,
        description=(
            "Files that only the model's pipeline takes, such as `ip_adapter_image`: by the pipeline's name, one "
            "reference or a list."
        ),
    )
    seed: Seed | None = Field(
        None, description="Output i of a job is rendered from seed + i; drawn at random if absent."
    )
    num_outputs: Count = Field(
        1,
        validation_alias=AliasChoices(
            "num_outputs", "num_images_per_prompt", "num_videos_per_prompt", "num_waveforms_per_prompt", "n"
        ),
        description="How many outputs.",
    )
    exact: bool | None = Field(
        None,
        strict=True,
        description=(
            "true: the same bytes for the same parameters, whatever else the device renders. false: faster where jobs "
            "share a device; a value may differ by 1/255."
        ),
    )
    loras: Annotated[tuple[Lora, ...], Field(max_length=MAX_LORAS)] = Field((), description="LoRAs of the model.")
    preview: bool = Field(
        False, strict=True, description="Whether the job's events carry small images while it is rendered."
    )
    fail_on_suspicious: bool = Field(
        False,
        strict=True,
        description="Whether an output of one colour, saturated or silent fails the job as `suspicious_output`.",
    )
    priority: Priority = Field(Priority.NORMAL, description="Jobs of a higher priority are dispatched first.")
    custom_id: CustomId | None = Field(None, description="Your own name for the job; results and webhooks carry it.")
    metadata: Metadata = Field(default_factory=dict, description="Your own texts by name; results carry them.")
    webhook: str | None = Field(None, max_length=2_000, description="A URL that is notified when the job is finished.")
    not_before: Moment | None = Field(None, description="The earliest time at which the job is dispatched to a worker.")
    deadline: Moment | None = Field(
        None,
        description="A job that still waits at this time fails as `deadline_exceeded`. A running job is not stopped.",
    )
    numerics: NumericsClass | None = Field(
        None,
        description=(
            "A numerics class (`GET /v1/numerics`): only its workers render the job. Exact jobs with the same "
            "parameters then have the same bytes. Any worker if absent."
        ),
    )

    if TYPE_CHECKING:  # each task's request has them
        task: str
        output_format: str

    @property
    def task_spec(self) -> TaskSpec:
        """What the task declares."""
        return TASKS[self.task]

    def common(self) -> dict[str, Any]:
        """The parameters of the task that the request gives. A null means nothing but where it is a value."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name in self.task_spec.params.model_fields
            if name in self.model_fields_set and ((value := getattr(self, name)) is not None or name in NULLABLE)
        }

    def references(self) -> dict[str, tuple[str, ...]]:
        """The references to input files: by role, and by the pipeline's name where only the pipeline takes them."""
        given = {**self.inputs, **{role: getattr(self, role) for role in self.task_spec.inputs}}
        return {role: (value,) if isinstance(value, str) else tuple(value) for role, value in given.items() if value}


#: The parameters of which a null is a value: None is passed to the pipeline.
NULLABLE: Final = frozenset({"negative_prompt"})


def _input_field(spec: InputSpec) -> Any:
    """The field of an input: one reference, or up to ``max`` in a list."""
    description = (
        f"{spec.description} The id of an uploaded file (`file_…`), the `sha256:…` of one, an https URL, a base64 data "
        'URL, or an output of another job (`job_…`, `job_…/1`; in a batch also `{"from": "CUSTOM_ID"}`). '
        f"{titles(input_formats(spec.media))}."
    )
    example = "file_0199d3f0c1de7c3c8f0b6a2d9a1f4e55"
    if spec.max == 1:
        kind: Any = Reference
        examples: list[Any] = [example]
    else:
        listed = Annotated[tuple[Reference, ...], Field(min_length=max(1, spec.min), max_length=spec.max)]
        kind = Annotated[listed, BeforeValidator(_as_list, json_schema_input_type=Reference | listed)]
        examples = [[example]]
    if spec.min:
        return kind, Field(description=description, examples=examples)
    return kind | None, Field(None, description=description, examples=examples)


def _request(spec: TaskSpec) -> type[JobRequest]:
    name = "".join(word.capitalize() for word in spec.name.split("-")) + "Request"
    formats = tuple(one.name for one in output_formats(spec.output))
    fields: dict[str, Any] = {
        "output_format": (Literal[formats], Field(formats[0], description="The file format.")),
        "task": (Literal[spec.name], Field()),
        **{role: _input_field(one) for role, one in spec.inputs.items()},
    }
    made: Any = create_model(name, __base__=(JobRequest, spec.params), __doc__=spec.title, **fields)
    return cast("type[JobRequest]", made)


#: The class of each task's requests.
REQUESTS: Final[Mapping[str, type[JobRequest]]] = {name: _request(spec) for name, spec in TASKS.items()}

if TYPE_CHECKING:
    AnyJobRequest = JobRequest
else:
    AnyJobRequest = Annotated[Union[tuple(REQUESTS.values())], Field(discriminator="task")]  # noqa: UP007 - of a tuple
