"""The parameters of a pipeline's call: types, defaults, bounds, inputs, and what a request cannot give."""

from __future__ import annotations

import ast
import inspect
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from farm.pipelines.spec import Form, Internal, Media, PipelineInput, PipelineParameter
from workers.catalogue.annotations import Shape, json_default, schema_of, shape_of
from workers.catalogue.bounds import checked_bounds, known_bounds, needed
from workers.catalogue.docstrings import Entry, parse
from workers.catalogue.sources import called_methods, docstring, method, methods, nodes

#: What the worker sets, in any pipeline: randomness, the kind of output, callbacks.
_SET_BY_WORKER: Final = frozenset(
    {
        "callback_on_step_end_tensor_inputs",
        "callback_steps",
        "dtype",
        "generator",
        "output_type",
        "prior_callback_on_step_end_tensor_inputs",
        "return_dict",
        "return_index",
        "step_generator",
    }
)
#: A tensor under such a name is an image, a video or a sound; under any other it is an intermediate result.
_MEDIA_NAME: Final = re.compile(r"(\w+_)?(image|images|video|videos|audio|audios|waveforms?|frames)|hint|depth_map")
_INTERMEDIATE: Final = re.compile(
    r"\w*(latents?|embeds?|embeddings|hidden_states?|conditions?)(_\w+)?|control_camera_video"
)
_EMBEDDING: Final = re.compile(r"\w*(latents|embeds|embeddings)")
_TEXT: Final = re.compile(r"(negative_)?prompt(_\d)?")
#: Parameters whose name or type says something else than what they take.
_MEDIA: Final = {"controls": Media.VIDEO, "driving_video": Media.VIDEO, "hint": Media.IMAGE}
_PATH: Final = re.compile(r"(The )?paths? (of|to)\b", re.IGNORECASE)
_PATHS: Final = {"audio_file": Media.AUDIO}
#: An image for each loaded adapter.
_FOR_EACH_ADAPTER: Final = re.compile(r"(negative_)?ip_adapter_image")
#: Texts of which one job may give several.
_LISTS_OF_TEXTS: Final = frozenset({"editing_prompt", "fonts", "complete_track_classes"})


def call_parameters(cls: type) -> dict[str, PipelineParameter]:
    """The parameters of a pipeline's call, in the order of its signature."""
    call = cls.__call__
    module = getattr(inspect.unwrap(call), "__module__", "")
    entries = parse(docstring(call))
    loops, preprocessed = _iterated(cls), _preprocessed(cls)
    found = {}
    for parameter in inspect.signature(call).parameters.values():
        name = parameter.name
        if name == "self" or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        shape = shape_of(parameter.annotation, module)
        entry = entries.get(name, Entry("", ""))
        # What goes through an image processor may be an image, whatever the annotation says.
        if shape.leaf("tensor") or shape.leaf("numpy"):
            shape.pil = shape.pil or (not shape.leaf("pil") and (name in preprocessed or "PIL.Image" in entry.type))
        found[name] = declare(
            name,
            shape,
            None if parameter.default is parameter.empty else parameter.default,
            required=parameter.default is parameter.empty,
            description=entry.sentence,
            many=name in loops,
        )
    return with_checks(cls, found, module)


def declare(
    name: str, shape: Shape, default: object, *, required: bool, description: str, many: bool = False
) -> PipelineParameter:
    """One parameter, without the bounds of its pipeline's checks.

    Args:
        name: of the parameter.
        shape: what its annotation allows.
        default: of the signature; None without one.
        required: whether the signature has no default.
        description: one sentence.
        many: whether the pipeline goes through it item by item.
    """
    internal = _internal(name, shape, description)
    given = None if internal else _input(name, shape, many=many)
    schema: Mapping[str, Any] = {}
    if internal is None and given is None:
        found = (
            {"type": "string"}
            if _TEXT.fullmatch(name) and shape.leaf("pil")
            else schema_of(shape, default, batched=name not in _LISTS_OF_TEXTS)
        )
        if found is None:
            internal = Internal.TENSOR if shape.leaf("tensor") or shape.leaf("numpy") else Internal.OBJECT
        else:
            schema = bounded(found, known_bounds(name))
    return PipelineParameter(
        name=name,
        schema=schema,
        default=json_default(default) if internal is None and given is None else None,
        required=required,
        description="" if internal else description,
        input=given,
        internal=internal,
    )


def _internal(name: str, shape: Shape, description: str) -> Internal | None:
    if name in _SET_BY_WORKER or name.startswith("_") or shape.generator:
        return Internal.WORKER
    if shape.leaf("callable"):
        return Internal.CALLABLE
    if _EMBEDDING.fullmatch(name) or (_INTERMEDIATE.fullmatch(name) and (shape.leaf("tensor") or shape.leaf("pil"))):
        return Internal.TENSOR
    if _PATH.match(description) and "string" in (shape.scalars | (shape.items.scalars if shape.items else set())):
        return Internal.FILE
    if shape.leaf("objects") and not shape.leaf("pil"):
        return Internal.OBJECT
    return None


def _input(name: str, shape: Shape, *, many: bool) -> PipelineInput | None:
    if name in _PATHS:
        return PipelineInput(media=_PATHS[name], many=False, form=Form.PATH)
    tensors = shape.leaf("tensor") or shape.leaf("numpy")
    mislabelled = name == "image" and shape.scalars == {"string"}  # one class has its text and its image the wrong way
    if _TEXT.fullmatch(name) or not (shape.leaf("pil") or mislabelled or (tensors and _MEDIA_NAME.fullmatch(name))):
        return None
    media = _MEDIA.get(name) or (Media.VIDEO if name == "mask" and not shape.pil else _media_of_name(name))
    form = Form.PIL if shape.leaf("pil") or mislabelled else Form.NUMPY if shape.leaf("numpy") else Form.TENSOR
    several = many or name.endswith("images") or shape.nested_pil > 1 or bool(_FOR_EACH_ADAPTER.fullmatch(name))
    return PipelineInput(media=media, many=several and media is Media.IMAGE, form=form)


def _media_of_name(name: str) -> Media:
    words = name.split("_")
    if {"video", "videos", "frames"} & {*words}:
        return Media.VIDEO
    if {"audio", "audios", "waveform", "waveforms"} & {*words}:
        return Media.AUDIO
    return Media.IMAGE


def _iterated(cls: type) -> set[str]:
    """The parameters that the call goes through in a loop of statements: several of them belong to one job."""
    call, found = method(cls, "__call__"), set[str]()
    for node in nodes(call) if call else ():
        match node:
            case ast.For(iter=ast.Name(id=name)):
                found.add(name)
            case ast.For(iter=ast.Call(func=ast.Name(id="enumerate"), args=[ast.Name(id=name), *_])):
                found.add(name)
    return found


def _preprocessed(cls: type) -> set[str]:
    """The parameters that go through a processor of images or videos."""
    return {
        node.args[0].id
        for function in called_methods(cls)
        for node in nodes(function)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr.startswith("preprocess")
        and node.args
        and isinstance(node.args[0], ast.Name)
    }


def _filled(cls: type) -> set[str]:
    """The parameters to which the call gives a value where the caller gave none."""
    call = method(cls, "__call__")
    return {
        target.id
        for node in (nodes(call) if call else ())
        if isinstance(node, ast.If)
        for name in [_compared_with_none(node.test)]
        for statement in node.body
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        if isinstance(target, ast.Name) and target.id == name
    }


def _compared_with_none(test: ast.expr) -> str | None:
    match test:
        case ast.Compare(left=ast.Name(id=name), ops=[ast.Is()], comparators=[ast.Constant(value=None)]):
            return name
    return None


def bounded(schema: Mapping[str, Any], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """The schema with more keywords, on the numbers or texts that it allows, in lists too."""
    kinds = {schema["type"]} if isinstance(schema.get("type"), str) else set(schema.get("type", ()))
    fitting = {
        keyword: value
        for keyword, value in keywords.items()
        if (keyword == "enum" and kinds == {"string"}) or (keyword != "enum" and kinds & {"integer", "number"})
    }
    if kinds == {"integer"} and "exclusiveMinimum" in fitting:
        above = math.floor(fitting.pop("exclusiveMinimum")) + 1
        fitting["minimum"] = max(above, schema.get("minimum", above))
    if "enum" in fitting:
        return {"enum": fitting["enum"]}
    narrowed = {**schema, **fitting}
    if fitting and "items" in schema:
        narrowed["items"] = {**schema["items"], **fitting}
    return narrowed


def with_checks(cls: type, parameters: Mapping[str, PipelineParameter], module: str) -> dict[str, PipelineParameter]:
    """The parameters with what the class's own checks refuse, and those that they demand."""
    functions = [
        function
        for name, function in methods(cls).items()
        if name == "__call__" or name.lstrip("_").startswith("check")
    ]
    bounds = checked_bounds(functions, parameters, module)
    given = [name for name, parameter in parameters.items() if parameter.internal is None]
    hidden = [name for name in parameters if name not in given]
    demanded = needed(functions, given, hidden) - _filled(cls)
    return {
        name: replace(
            parameter,
            schema=bounded(parameter.schema, bounds[name])
            if name in bounds and parameter.offered
            else parameter.schema,
            required=parameter.required or (name in demanded and parameter.default is None),
        )
        for name, parameter in parameters.items()
    }
