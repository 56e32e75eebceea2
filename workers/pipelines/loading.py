"""Loads models: a folder in diffusers' layout, a Hub repository, a single checkpoint file, or the built-in one.

The class of a folder is what its ``model_index.json`` names; there is no code for any one class. Weights come from
safetensors files only, and no code of a model's repository is run. No safety checker is loaded: what may be rendered is
the operator's policy, and the black images of a checker would be failures that look like successes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import diffusers
import torch

from farm.domain.model import Model
from farm.domain.worker import Device
from farm.errors import MissingPackage, ModelUnavailable, RenderError
from farm.pipelines.catalogue import catalogue
from farm.pipelines.spec import Kind, PipelineSpec
from workers.device import torch_device
from workers.device_errors import is_device_failure, is_out_of_memory
from workers.model_sources import config_folder
from workers.pipelines import model_index
from workers.pipelines.failures import first_line, missing_package
from workers.pipelines.families import quirks_of
from workers.pipelines.files import BUILTIN, fingerprint, locate, weight_files
from workers.pipelines.isolation import ClassIsolation, Sharing
from workers.pipelines.loaded_model import LoadedModel

_DTYPES: Final = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def load(model: Model, device: Device) -> LoadedModel:
    """Load a model into the device's memory.

    Raises:
        ModelUnavailable: The model is missing or broken; the message says how.
        MissingPackage: Its pipeline needs a package that is not installed.
        torch.OutOfMemoryError: It does not fit the device. On a processor: `MemoryError`, `RuntimeError`.
    """
    others: dict[str, Any] = {}
    try:
        if model.source.startswith(BUILTIN):
            path, base, others = _load_builtin(model, _dtype(model, device))
        else:
            path = locate(model)
            base = (_load_file if path.is_file() else _load_folder)(model, path, device)
        for pipeline in (base, *others.values()):
            pipeline.to(torch_device(device))
            for module in _modules(pipeline):
                module.eval()
                if device.kind == "cuda":
                    _use_channels_last(module)
    except ImportError as error:
        raise MissingPackage(f"model {model.id} needs the package {missing_package(error) or error}") from error
    except RenderError:
        raise
    except Exception as error:  # whatever a broken repository makes the loaders raise
        if is_out_of_memory(error) or is_device_failure(error):
            raise
        raise ModelUnavailable(f"model {model.id} cannot be loaded from {model.source}: {first_line(error)}") from error
    revision = path.name if path.parent.name == "snapshots" else None
    size = _bytes_of((base, *others.values()))
    loaded = LoadedModel(model, _dtype_name(base), revision, fingerprint(path), size, base, others)
    if model.source.startswith(BUILTIN):  # the tests compare its calls, so no job has to wait for that
        derived = catalogue().pipeline(type(base).__name__).same_weights.values()
        for name in (type(base).__name__, *others, *derived):
            loaded.isolation[name] = ClassIsolation(Sharing.SHARES)
    return loaded


def class_name(folder: Path) -> str:
    """The pipeline class that a folder's index names. Raises `ModelUnavailable`."""
    names = (model_index.INDEX, model_index.MODULAR_INDEX)
    index = next((folder / name for name in names if (folder / name).is_file()), None)
    if index is None:
        raise ModelUnavailable(f"{folder} has no {model_index.INDEX}, so it is no model in diffusers' layout")
    try:
        name = json.loads(index.read_text("utf-8"))["_class_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelUnavailable(f"{index} names no pipeline class: {first_line(error)}") from error
    if not isinstance(name, str) or name not in catalogue().pipeline_names:
        raise ModelUnavailable(
            f"a model cannot be loaded from {folder}: diffusers {catalogue().version} has no pipeline class {name}"
        )
    return name


def _load_folder(model: Model, folder: Path, device: Device) -> Any:
    spec = catalogue().pipeline(model.pipeline or class_name(folder))
    # the index of a modular pipeline may name other folders and repositories for its components
    if spec.kind is not Kind.MODULAR and not weight_files(folder):
        raise ModelUnavailable(
            f"model {model.id} has no .safetensors files in {model.source}; other formats can contain code"
        )
    kind = getattr(diffusers, spec.name)
    dtype = _dtype(model, device, spec)
    if spec.kind is Kind.MODULAR:
        pipeline = kind.from_pretrained(str(folder), trust_remote_code=False)
        pipeline.load_components(dtype=dtype, use_safetensors=True, trust_remote_code=False)
        absent = [
            name
            for name in pipeline.pretrained_component_names
            if getattr(pipeline, name, None) is None and not model_index.is_left_out(pipeline._component_specs[name])  # noqa: SLF001
        ]
        if absent:  # the loader only logs it
            raise ModelUnavailable(f"model {model.id}: cannot load {', '.join(sorted(absent))} from {model.source}")
        return pipeline
    given: dict[str, Any] = {}
    if "safety_checker" in spec.optional_components:
        given["safety_checker"] = None
        given["requires_safety_checker"] = False
    given |= model_index.absent_components(spec, folder)
    model_index.find_moved_packages(folder)
    for quirk in quirks_of(spec):
        given |= quirk.load
    return kind.from_pretrained(
        folder,
        dtype=dtype,
        variant=model.variant or model_index.only_variant(folder),
        use_safetensors=True,
        trust_remote_code=False,
        **given,
    )


def _load_file(model: Model, path: Path, device: Device) -> Any:
    """A checkpoint in one file, as civitai and the original repositories publish them."""
    if path.suffix != ".safetensors":
        raise ModelUnavailable(f"{path.name} is no .safetensors file; other formats can contain code")
    config = config_folder(model, path)
    spec = catalogue().pipeline(model.pipeline or class_name(config))
    given: dict[str, Any] = {"safety_checker": None} if "safety_checker" in spec.optional_components else {}
    kind = getattr(diffusers, spec.name)
    return kind.from_single_file(
        str(path), config=str(config), dtype=_dtype(model, device, spec), local_files_only=True, **given
    )


def _load_builtin(model: Model, dtype: torch.dtype) -> tuple[Path, Any, dict[str, Any]]:
    name = model.source.removeprefix(BUILTIN)
    if name != "starter":
        raise ModelUnavailable(f"model {model.id} has the source {model.source}; only {BUILTIN}starter is built in")
    from workers import starter  # noqa: PLC0415 - only if it is used
    from workers.starter.load import load as load_starter  # noqa: PLC0415

    pipelines = {type(pipeline).__name__: pipeline for pipeline in load_starter(dtype).values()}
    base = pipelines.pop("StableDiffusionPipeline")
    return Path(starter.WEIGHTS), base, pipelines


def _use_channels_last(module: torch.nn.Module) -> None:
    """Store the kernels of 2-D convolutions in channels-last order, which tensor cores read without conversion.

    Weights of other ranks stay: a 5-D one has no such order, and a module with one could not be converted as a whole.
    """
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, torch.nn.Conv2d) and part.weight.ndim == 4:
                part.weight.data = part.weight.data.contiguous(memory_format=torch.channels_last)


def _dtype(model: Model, device: Device, spec: PipelineSpec | None = None) -> torch.dtype:
    needed = next((quirk.dtype for quirk in quirks_of(spec) if quirk.dtype), None) if spec else None
    if needed is not None:
        return _DTYPES[needed]
    if device.kind == "cpu":
        return torch.float32  # half precision is slow on a processor, and some operators lack it
    return _DTYPES[device.dtype if model.dtype == "auto" else model.dtype]


def _dtype_name(pipeline: Any) -> str:
    """The type of most weights: a few stay in float32 where a class says so."""
    counts: Counter[torch.dtype] = Counter()
    for module in _modules(pipeline):
        for parameter in module.parameters():
            counts[parameter.dtype] += parameter.numel()
    return str(max(counts, key=lambda dtype: counts[dtype], default=torch.float32)).removeprefix("torch.")


def _modules(pipeline: Any) -> Iterable[torch.nn.Module]:
    return (part for part in pipeline.components.values() if isinstance(part, torch.nn.Module))


def _bytes_of(pipelines: Iterable[Any]) -> int:
    seen: dict[int, int] = {}
    for pipeline in pipelines:
        for component in _modules(pipeline):
            for tensor in (*component.parameters(), *component.buffers()):
                seen[tensor.data_ptr()] = tensor.nbytes
    return sum(seen.values())
