"""Turns what a job gives into the arguments of its pipeline.

Only what the job gives is passed: what it leaves open is decided by the pipeline's own defaults, and ``None`` stays
``None``. A parameter that the class lacks is refused before the first step, with what the class takes.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from PIL import Image

from farm.errors import UnsupportedParameter
from farm.pipelines import prompt_weighting
from farm.pipelines.checks import Unfit
from farm.pipelines.spec import Kind, Media, PipelineParameter, PipelineSpec
from workers.media.artifacts import Artifact, Clip, Sound
from workers.pipelines.families import quirks_of
from workers.pipelines.forms import sample_rate_of, to_form

#: Common parameters that a pipeline without them leaves to the worker: the frame rate of the file.
_OF_THE_FILE: Final = {"fps": Media.VIDEO}
_SIDES: Final = ("width", "height")
#: Inputs whose edges must stay edges when they are resized.
_MASKS: Final = frozenset({"mask", "mask_image", "mask_video", "control_mask"})


@dataclass
class BoundCall:
    """One call of a pipeline."""

    pipeline: Any  #: the loaded pipeline; the call uses a copy of it
    spec: PipelineSpec
    common: Mapping[str, Any]  #: what the job gives, by the tasks' names
    arguments: dict[str, Any] = field(default_factory=dict)  #: of the pipeline, by its own names
    warnings: list[str] = field(default_factory=list)

    def warn(self, message: str) -> None:
        """Say something about the result."""
        self.warnings.append(message)

    @property
    def size(self) -> tuple[int, int] | None:
        """The width and height that the job gives, in pixels."""
        width, height = (self.common.get(side) for side in _SIDES)
        return (width, height) if width and height else None


def bind(
    spec: PipelineSpec,
    pipeline: Any,
    common: Mapping[str, Any],
    parameters: Mapping[str, Any],
    inputs: Mapping[str, Sequence[Artifact]],
    seed: int,
) -> BoundCall:
    """The call of a pipeline for one output.

    Args:
        spec: The pipeline's entry in the catalogue.
        pipeline: The loaded pipeline, which is not changed.
        common: The task's parameters that the job gives, by the tasks' names.
        parameters: What only this class takes, by its own names.
        inputs: The decoded inputs by role.
        seed: Of the output. The noise is drawn on the CPU whatever the device: one seed gives one noise everywhere.

    Raises:
        UnsupportedParameter: The class lacks a parameter or an input that the job gives, or needs one that it does not
            give.
    """
    call = BoundCall(pipeline, spec, common)
    resized = _bind_common(call, inputs)
    for name, value in parameters.items():
        parameter = spec.parameters.get(name)
        if parameter is None or not parameter.offered:
            raise UnsupportedParameter(_refusal(spec, f"parameters.{name}", name))
        call.arguments[name] = _typed(call, parameter, value, f"parameters.{name}")
    for role, values in inputs.items():
        if values:
            _bind_input(call, role, values, resized)
    missing = [
        name
        for name, parameter in spec.parameters.items()
        if parameter.required and parameter.internal is None and name not in call.arguments
    ]
    if missing:
        raise UnsupportedParameter(f"{spec.name} needs {', '.join(missing)}, which the job does not give")
    if spec.takes("generator") or spec.kind is Kind.MODULAR:
        call.arguments["generator"] = torch.Generator("cpu").manual_seed(seed)
    for quirk in quirks_of(spec):
        if quirk.adjust is not None:
            quirk.adjust(call)
    return call


def _bind_common(call: BoundCall, inputs: Mapping[str, Sequence[Artifact]]) -> tuple[int, int] | None:
    """Bind the task's parameters; returns the size to which the inputs must be brought."""
    spec = call.spec
    resized: dict[str, int] = {}
    for name, value in call.common.items():
        own = spec.own_name(name)
        if name == prompt_weighting.NAME:  # done with the bound call
            if value == "a1111" and not prompt_weighting.weighs_prompts(spec):
                raise UnsupportedParameter(f"{name}: {spec.name} takes no weights in its prompts")
        elif own is not None and spec.parameters[own].input is None:
            call.arguments[own] = _typed(call, spec.parameters[own], value, name)
        elif value is None or _OF_THE_FILE.get(name) is spec.output:
            continue  # nothing is asked for, or the encoder does it
        elif name in _SIDES and any(not _is_sound(one) for values in inputs.values() for one in values):
            resized[name] = value  # the output has the size of the input
        else:
            raise UnsupportedParameter(_refusal(spec, name, name))
    if not resized:
        return None
    width, height = (resized.get(side) or call.common.get(side) for side in _SIDES)
    if not width or not height:
        raise UnsupportedParameter(f"{spec.name} takes no {' or '.join(resized)}: give both, and its input is resized")
    return width, height


def _bind_input(call: BoundCall, role: str, values: Sequence[Artifact], size: tuple[int, int] | None) -> None:
    spec = call.spec
    own = spec.own_name(role)
    parameter = spec.parameters.get(own) if own is not None else None
    if parameter is None or parameter.input is None:
        known = sorted({_role_of(spec, name) for name in spec.inputs})
        raise UnsupportedParameter(f"{spec.name} takes no {role}; its inputs are {', '.join(known) or 'none'}")
    given = [_in_media(one, parameter, role) for one in values]
    own_form = next((quirk.inputs[parameter.name] for quirk in quirks_of(spec) if parameter.name in quirk.inputs), None)
    if len(given) > 1 and not parameter.input.many:
        raise UnsupportedParameter(f"{spec.name} takes one {role}; the job gives {len(given)}")
    if own_form is not None:
        formed = [own_form(one) for one in given]
    else:
        formed = [to_form(parameter.input.form, _resize(role, one, size), call.pipeline) for one in given]
        if role in _MASKS:
            formed = [one[:, :1] if isinstance(one, torch.Tensor) else one for one in formed]  # of one channel
    call.arguments[parameter.name] = formed if len(formed) > 1 or _wants_a_list(call, parameter) else formed[0]
    rate = spec.parameters.get(f"{parameter.name.removesuffix('_waveforms')}_sampling_rate")
    if rate is not None and isinstance(given[0], Sound):
        call.arguments[rate.name] = sample_rate_of(call.pipeline) or given[0].sample_rate


def _in_media(value: Artifact, parameter: PipelineParameter, role: str) -> Artifact:
    """The input in the medium that the parameter takes: one image is a clip of one frame."""
    assert parameter.input is not None
    wanted = parameter.input.media
    if wanted is Media.VIDEO and isinstance(value, Image.Image):
        return Clip([value], 1.0)
    if wanted is Media.IMAGE and isinstance(value, Clip) and len(value) == 1:
        return value.frames[0]
    if (wanted is Media.AUDIO) is not _is_sound(value) or (wanted is Media.IMAGE and isinstance(value, Clip)):
        raise UnsupportedParameter(f"{role} must be {_NOUNS[wanted]}")
    return value


_NOUNS: Final = {Media.IMAGE: "an image", Media.VIDEO: "a video", Media.AUDIO: "a sound", Media.OTHER: "a file"}


def _wants_a_list(call: BoundCall, parameter: PipelineParameter) -> bool:
    """Whether a parameter takes a list even of one: its annotation allows nothing else, or there are several nets."""
    assert parameter.input is not None
    if not parameter.input.many:
        return False
    annotation = _annotation(call.pipeline, parameter.name)
    only_lists = annotation.startswith(("list", "List")) and "|" not in _outside_brackets(annotation)
    nets = getattr(getattr(call.pipeline, "controlnet", None), "nets", None)
    return only_lists or (nets is not None and parameter.name == call.spec.own_name("control_image"))


def _outside_brackets(annotation: str) -> str:
    """An annotation without what stands in brackets: `list[int | str] | None` becomes `list | None`."""
    depth, kept = 0, []
    for letter in annotation.replace("| None", "").replace("None |", ""):
        depth += (letter == "[") - (letter == "]")
        if depth == 0:
            kept.append(letter)
    return "".join(kept)


def _annotation(pipeline: Any, name: str) -> str:
    parameter = inspect.signature(type(pipeline).__call__).parameters.get(name)
    if parameter is None or parameter.annotation is inspect.Parameter.empty:
        return ""
    annotation = parameter.annotation
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _typed(call: BoundCall, parameter: PipelineParameter, value: Any, field_name: str) -> Any:
    """A JSON value in the type that the call expects: a list is a tuple where only a tuple is declared."""
    if value is not None and parameter.offered:
        try:
            value = parameter.check(value)
        except Unfit as problem:
            raise UnsupportedParameter(f"{field_name} {problem}") from None
    if isinstance(value, list):
        annotation = _annotation(call.pipeline, parameter.name)
        if "tuple[" in annotation.lower() and "list[" not in annotation.lower():
            return tuple(value)
    return value


def _resize(role: str, value: Artifact, size: tuple[int, int] | None) -> Artifact:
    if size is None or _is_sound(value):
        return value
    method = Image.Resampling.NEAREST if role in _MASKS else Image.Resampling.LANCZOS

    def resized(image: Image.Image) -> Image.Image:
        return image if image.size == size else image.resize(size, method)

    if isinstance(value, Clip):
        return Clip([resized(_as_image(frame)) for frame in value.frames], value.fps, value.sound)
    assert isinstance(value, Image.Image)
    return resized(value)


def _as_image(frame: Any) -> Image.Image:
    return frame if isinstance(frame, Image.Image) else Image.fromarray(frame)


def _is_sound(value: Artifact) -> bool:
    return not isinstance(value, (Image.Image, Clip))


def _role_of(spec: PipelineSpec, name: str) -> str:
    """The tasks' name of an input."""
    return next((role for role, own in spec.aliases.items() if own == name), name)


def _refusal(spec: PipelineSpec, field_name: str, name: str) -> str:
    known = sorted(spec.offered)
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}? " if close and close[0] != name else ""
    return f"{field_name}: {spec.name} has no such parameter; {hint}it takes {', '.join(known) or 'none'}"
