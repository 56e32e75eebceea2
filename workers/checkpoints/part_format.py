"""The file format of a checkpoint's part: safetensors, with the structure of the outputs as JSON in its metadata.

A part that another farm, release or attacker wrote is refused or decodes to tensors: nothing in it is executed.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from typing import Any, Final

import safetensors.torch
import torch
from diffusers.utils import BaseOutput
from safetensors import SafetensorError

VERSION: Final = 1
_METADATA: Final = "farm"


class NotRecordable(Exception):
    """A module returns something that is not made of tensors, so its calls cannot be recorded."""


class InvalidPart(Exception):
    """The bytes are not a part of a checkpoint."""


def pack(header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> bytes:
    """A part's bytes. The tensors may be on any device; their layout in memory is kept."""
    orders: dict[str, list[int]] = {}
    dense: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        order = sorted(range(tensor.ndim), key=tensor.stride, reverse=True)
        if order != sorted(order):
            orders[name] = order
        dense[name] = tensor.detach().cpu().permute(order).contiguous()
    about = {"version": VERSION, "orders": orders, "header": header}
    return safetensors.torch.save(dense, {_METADATA: json.dumps(about, separators=(",", ":"))})


def unpack(body: bytes) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The header and the tensors of a part. Raises `InvalidPart`."""
    body = bytes(body)  # it may lie in shared memory
    try:
        length = int.from_bytes(body[:8], "little")
        about = json.loads(json.loads(body[8 : 8 + length])["__metadata__"][_METADATA])
        tensors = safetensors.torch.load(body)
        if about["version"] != VERSION:
            raise InvalidPart(f"it has version {about['version']}, not {VERSION}")
        for name, order in about["orders"].items():
            inverse = sorted(range(len(order)), key=order.__getitem__)
            tensors[name] = tensors[name].permute(inverse)
        return dict(about["header"]), tensors
    except (ValueError, KeyError, TypeError, IndexError, RuntimeError, SafetensorError) as error:
        raise InvalidPart(f"{type(error).__name__}: {error}"[:200]) from error


def describe(output: Any, keep: Callable[[torch.Tensor], Any]) -> Any:
    """The structure of a module's output as JSON; ``keep`` gives what stands for a tensor. Raises `NotRecordable`."""
    if isinstance(output, torch.Tensor):
        return keep(output)
    if output is None:
        return None
    if isinstance(output, BaseOutput):
        kind = f"{type(output).__module__}.{type(output).__qualname__}"
        return {"class": kind, "fields": {name: describe(part, keep) for name, part in output.items()}}
    if type(output) in (list, tuple):
        return {type(output).__name__: [describe(part, keep) for part in output]}
    raise NotRecordable(f"it returns a {type(output).__name__}")


def rebuild(structure: Any, tensor_of: Callable[[dict[str, Any]], torch.Tensor]) -> Any:
    """The output of which `describe` gave the structure. Raises `InvalidPart`."""
    match structure:
        case None:
            return None
        case {"class": str(kind), "fields": dict(fields)}:
            return _output_class(kind)(**{name: rebuild(part, tensor_of) for name, part in fields.items()})
        case {"list": list(parts)}:
            return [rebuild(part, tensor_of) for part in parts]
        case {"tuple": list(parts)}:
            return tuple(rebuild(part, tensor_of) for part in parts)
        case dict():
            return tensor_of(structure)
    raise InvalidPart("its structure is not one of tensors")


def _output_class(kind: str) -> Any:
    """One of diffusers' own output classes: a name in a file must not import or make anything else."""
    module, _, name = kind.rpartition(".")
    if not module.startswith("diffusers."):
        raise InvalidPart(f"{kind} is no output class of diffusers")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise InvalidPart(f"{kind} is not in this diffusers") from error
    if not (isinstance(found, type) and issubclass(found, BaseOutput)):
        raise InvalidPart(f"{kind} is no output class of diffusers")
    return found
