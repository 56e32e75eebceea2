"""The values of the catalogue: a pipeline class, a parameter of its call, a scheduler class."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from farm.errors import BadInput
from farm.pipelines.checks import Unfit, coerce, parse
from farm.pipelines.granularity import Granularity


class Media(StrEnum):
    """What an input or an output is."""

    IMAGE = "image"
    VIDEO = "video"
    AUDIO = "audio"
    OTHER = "other"  #: tensors, text, meshes, proteins: nothing that the farm delivers


class Form(StrEnum):
    """The Python value that a pipeline takes for an input."""

    PIL = "pil"  #: a `PIL.Image`, or a list of them for a video
    NUMPY = "numpy"
    TENSOR = "tensor"
    PATH = "path"  #: the name of a file


class Internal(StrEnum):
    """Why a request cannot give a parameter."""

    WORKER = "worker"  #: the worker sets it: generator, callbacks, the kind of output
    TENSOR = "tensor"
    CALLABLE = "callable"
    OBJECT = "object"  #: a Python object, or a dict whose keys only the pipeline's code knows
    FILE = "file"  #: names a file on the worker
    MODEL = "model"  #: of a scheduler: a property of the model's training


class Kind(StrEnum):
    """How a class is loaded and called."""

    PIPELINE = "pipeline"  #: a `DiffusionPipeline`
    MODULAR = "modular"  #: a `ModularPipeline` with its default blocks


class Formulation(StrEnum):
    """The noise process that a scheduler integrates; models of one do not run with schedulers of another."""

    BETA = "beta"  #: a schedule of betas (DDPM and all that derives from it)
    EDM = "edm"  #: preconditioning by ``sigma_data`` (Karras et al. 2022)
    FLOW = "flow"  #: flow matching
    OWN = "own"  #: made for one family


@dataclass(frozen=True, slots=True)
class PipelineInput:
    """What an input parameter takes."""

    media: Media
    many: bool  #: whether one job may give several: reference images, one control image for each ControlNet
    form: Form


@dataclass(frozen=True, slots=True)
class PipelineParameter:
    """One parameter of a pipeline's call, or one option of a scheduler."""

    name: str
    schema: Mapping[str, Any]  #: JSON Schema of a value; empty for inputs and internal parameters
    default: Any  #: as JSON; None where there is none, or where it is no JSON
    required: bool  #: the call fails without it
    description: str  #: one sentence; may be empty
    input: PipelineInput | None = None
    internal: Internal | None = None

    @property
    def offered(self) -> bool:
        """Whether a request may give it as a JSON value."""
        return self.internal is None and self.input is None

    def check(self, value: object) -> Any:
        """The value in the type that the pipeline expects.

        Raises:
            Unfit: what is allowed.
        """
        return coerce(self.schema, value)

    def parse(self, text: str) -> Any:
        """The value that a text means, as it stands in a CSV file or on a command line.

        Raises:
            Unfit: what is allowed.
        """
        return parse(self.schema, text)

    def json_schema(self) -> dict[str, Any]:
        """The schema with the description and the default."""
        schema = dict(self.schema)
        if self.description:
            schema["description"] = self.description
        if self.default is not None:
            schema["default"] = self.default
        return schema


@dataclass(frozen=True, slots=True)
class SchedulerSpec:
    """A scheduler class."""

    name: str
    formulation: Formulation
    options: Mapping[str, PipelineParameter]  #: of its config, by name
    compatibles: tuple[str, ...]  #: what diffusers declares
    features: frozenset[str]  #: attributes, config keys and arguments, of those that some pipeline uses
    flow_options: Mapping[str, Any]  #: options with which it integrates a flow; empty where it has none
    order: int  #: denoiser calls for one step
    random: bool  #: whether a step may draw noise
    packages: tuple[str, ...]  #: needed beside torch, numpy and transformers
    unfit: str = ""  #: why it is offered for no pipeline but those that declare it

    def takes(self, argument: str) -> bool:
        """Whether ``set_timesteps`` takes the argument: ``sigmas``, ``timesteps`` or ``mu``."""
        return f"set_timesteps.{argument}" in self.features


@dataclass(frozen=True, slots=True)
class SchedulerUse:
    """What a pipeline expects of its scheduler."""

    formulation: Formulation
    needs: frozenset[str]  #: features that the call uses whatever the request says
    only_declared: bool  #: its source does not tell what other schedulers it runs with
    spares_sigmas: bool  #: passes no sigmas of its own to a scheduler that is made with `use_flow_sigmas`


@dataclass(frozen=True, slots=True)
class Guidance:
    """When a pipeline uses its negative prompt."""

    scale: str  #: the parameter that switches classifier-free guidance on
    above: float  #: the value that it has to exceed
    needs_negative: bool  #: whether guidance is off without a negative prompt, too


@dataclass(frozen=True, slots=True)
class Workflow:
    """One way to call a modular pipeline."""

    task: str
    inputs: tuple[str, ...]  #: the parameters that choose it
    fixed: Mapping[str, Any]  #: parameters that have to have a value: one frame makes a video an image


@dataclass(frozen=True, slots=True)
class PipelineSpec:
    """A pipeline class of diffusers: what it does, what it takes, what it gives."""

    name: str
    kind: Kind
    family: str  #: the package in diffusers: ``flux``, ``stable_diffusion_xl``
    deprecated: bool
    tasks: tuple[str, ...]  #: the Hub's names; empty where `no_task` says why
    no_task: str
    parameters: Mapping[str, PipelineParameter]  #: in the order of the signature
    aliases: Mapping[str, str]  #: common name → this class's name, where the two differ
    outputs: Mapping[str, Media]  #: fields of the output that are media, the main one first
    size: Granularity | None  #: of width and height; None where the class takes no size
    frames: Granularity | None  #: of the frame count
    components: Mapping[str, tuple[str, ...]]  #: name → the classes that its annotation accepts
    optional_components: frozenset[str]
    denoisers: tuple[str, ...]  #: components that are called in each step
    decoders: tuple[str, ...]  #: components between latents and media: VAE, VQ-VAE, vocoder
    pipelines: Mapping[str, str]  #: attribute → class of a pipeline that this one contains
    scheduler: SchedulerUse | None
    guidance: Guidance | None  #: None where the source does not tell
    packages: tuple[str, ...]  #: needed beside torch, numpy and transformers
    optional_packages: tuple[str, ...]  #: used where installed, or by some parameters
    same_weights: Mapping[str, str]  #: task → the class that does it with this class's weights
    combined: str  #: the class that runs this stage together with the others; may be empty
    workflows: Mapping[str, Workflow]  #: of a modular pipeline

    @property
    def output(self) -> Media:
        """The kind of the main output."""
        return next(iter(self.outputs.values()), Media.OTHER)

    @property
    def inputs(self) -> dict[str, PipelineParameter]:
        """The parameters that take images, videos or sounds."""
        return {name: parameter for name, parameter in self.parameters.items() if parameter.input is not None}

    @property
    def offered(self) -> dict[str, PipelineParameter]:
        """The parameters that a request may give as JSON values."""
        return {name: parameter for name, parameter in self.parameters.items() if parameter.offered}

    def takes(self, name: str) -> bool:
        """Whether the call has a parameter of that name."""
        return name in self.parameters

    def own_name(self, common: str) -> str | None:
        """The parameter that means what ``common`` means to the tasks; None where the class has none."""
        name = self.aliases.get(common, common)
        return name if name in self.parameters else None

    def json_schema(self, *, exclude: Collection[str] = ()) -> dict[str, Any]:
        """A JSON Schema of the parameters that a request may give.

        Args:
            exclude: names that the request gives elsewhere, as a task's common parameters.
        """
        shown = {name: parameter for name, parameter in self.offered.items() if name not in exclude}
        return {
            "type": "object",
            "properties": {name: parameter.json_schema() for name, parameter in shown.items()},
            "required": [name for name, parameter in shown.items() if parameter.required],
            "additionalProperties": False,
        }

    def check(self, name: str, value: object, *, exclude: Collection[str] = (), field: str | None = None) -> Any:
        """The value in the type that the pipeline expects.

        Args:
            name: of the parameter.
            value: from JSON.
            exclude: names that the request gives elsewhere.
            field: how the client wrote it; ``parameters.<name>`` if absent.

        Raises:
            BadInput: the class takes no such parameter, a request cannot give it, or the value does not fit.
        """
        where = field or f"parameters.{name}"
        parameter = self.parameters.get(name)
        if parameter is None or not parameter.offered or name in exclude:
            raise BadInput.of(where, value, self._refusal(name, parameter, exclude))
        try:
            return parameter.check(value)
        except Unfit as problem:
            raise BadInput.of(where, value, str(problem)) from None

    def _refusal(self, name: str, parameter: PipelineParameter | None, exclude: Collection[str]) -> str:
        names = [own for own in self.offered if own not in exclude]
        if parameter is not None and name in exclude:
            return "is a field of the request itself: give it there, not in parameters"
        if parameter is not None and parameter.input is not None:
            return f"is an input ({parameter.input.media}): give it as an input, not in parameters"
        if parameter is not None and parameter.internal is not None:
            return _WHY_INTERNAL[parameter.internal]
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        return f"{self.name} has no such parameter; {hint}it takes {', '.join(sorted(names)) or 'none'}"


_WHY_INTERNAL: Final = {
    Internal.WORKER: "is set by the worker",
    Internal.TENSOR: "is a tensor, which a request cannot carry",
    Internal.CALLABLE: "is a function, which a request cannot carry",
    Internal.OBJECT: "is a Python object, which a request cannot carry",
    Internal.MODEL: "is a property of the model",
    Internal.FILE: "names a file on the worker, which a request cannot do",
}
