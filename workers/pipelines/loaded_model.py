"""A model in the device's memory: its pipelines, which share the weights, its LoRAs and schedulers."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import diffusers
import torch
import transformers

from farm.domain.job_spec import Lora
from farm.domain.model import Model
from farm.domain.worker import Device
from farm.errors import MissingPackage, ModelUnavailable
from farm.pipelines.catalogue import catalogue
from farm.pipelines.spec import PipelineSpec
from workers import previews
from workers.compilation import Compilation
from workers.device_errors import is_device_failure, is_out_of_memory
from workers.pipelines.encoder_cache import EncoderCache
from workers.pipelines.failures import first_line, missing_package
from workers.pipelines.families import quirks_of
from workers.pipelines.files import file_digest, lora_file
from workers.pipelines.isolation import ClassIsolation
from workers.pipelines.running_call import check_finite, watch
from workers.pipelines.schedulers import make_scheduler

#: The parts of an autoencoder that a pipeline's calls run: it never calls the forward of the autoencoder itself.
HALVES: Final = ("encoder", "decoder")


class ParkingModule(NamedTuple):
    """A module whose calls may share forwards."""

    component: str  #: of the pipeline
    half: str  #: of an autoencoder; empty for a module that is a component itself
    module: torch.nn.Module

    @property
    def name(self) -> str:
        """For the log and for what is measured on it."""
        return f"{self.component}.{self.half}" if self.half else self.component


@dataclass
class LoadedModel:
    """A model in the device's memory."""

    model: Model
    dtype: str  #: of its weights in memory
    revision: str | None  #: the commit of a Hub model
    fingerprint: str  #: of the weights: see `workers.pipelines.files.fingerprint`
    bytes: int  #: of all weights and buffers, each counted once
    _base: Any  # the pipeline that the folder names
    _others: dict[str, Any] = field(default_factory=dict)  # by class: made of the same components, or loaded beside it
    _compilation: Compilation | None = None  # see `compile`
    isolation: dict[str, ClassIsolation] = field(default_factory=dict)  #: by pipeline class
    _by_task: dict[str, Any] = field(default_factory=dict)
    _active_loras: tuple[int, tuple[Lora, ...]] | None = None  # the denoiser's id, and its active LoRAs
    _adapters: dict[tuple[int, str], str] = field(default_factory=dict)  # by denoiser and LoRA: the loaded adapter
    _lora_fingerprints: dict[str, str] = field(default_factory=dict)  # by name
    _preview_map: torch.Tensor | None = None
    _schedulers: dict[tuple[int, str | None, str], Any] = field(default_factory=dict)  # by the id of the model's own
    encoders: EncoderCache = field(init=False)

    def __post_init__(self) -> None:
        self.encoders = EncoderCache(lambda: self._active_loras)

    def pipeline(self, task: str) -> Any:
        """The model's pipeline for a task, with the components in memory; made when it is first asked for.

        Raises:
            ModelUnavailable: The model's class does not support the task, or its weights do not serve it.
            MissingPackage: The task's pipeline needs a package that is not installed.
        """
        if task not in self._by_task:
            self._by_task[task] = self._for_task(task)
            self.prepare(task)
        return self._by_task[task]

    def spec(self, task: str) -> PipelineSpec:
        """The catalogue's entry of the task's pipeline. Raises like `pipeline`."""
        return catalogue().pipeline(type(self.pipeline(task)).__name__)

    def prepare(self, task: str) -> None:
        """Bring the task's pipeline into the state in which its calls start."""
        pipeline, spec = self._by_task[task], self.spec(task)
        for part in _with_inner(pipeline):
            part.set_progress_bar_config(disable=True)
        for quirk in quirks_of(spec):
            if quirk.prepare is not None:
                quirk.prepare(pipeline)
        for part in _with_inner(pipeline):
            self.encoders.watch(part)
        for name in spec.denoisers:
            module = getattr(pipeline, name, None)
            if isinstance(module, torch.nn.Module):
                watch(module)
        for name in spec.decoders:
            decoder = getattr(getattr(pipeline, name, None), "decoder", None)
            if isinstance(decoder, torch.nn.Module):
                check_finite(decoder)

    def parking_modules(self, task: str) -> Iterator[ParkingModule]:
        """The modules of the task's pipeline whose calls may share forwards with those of other calls."""
        # of all classes: they share the autoencoder
        unparked = {name for known in self.isolation.values() for name in known.unparked}
        return (one for one in parking_modules(self.pipeline(task)) if not (one.half and one.component in unparked))

    def isolation_of(self, task: str) -> ClassIsolation:
        """What is known about the calls of the task's pipeline class."""
        return self.isolation.setdefault(type(self.pipeline(task)).__name__, ClassIsolation())

    def _for_task(self, task: str) -> Any:
        base = type(self._base).__name__
        spec = catalogue().pipeline(base)
        # as `Model.pipeline_for` decides at submission, so that parameters are checked against the class that gets them
        name = self.model.pipelines.get(task) or (base if task in spec.tasks else spec.same_weights.get(task))
        reason = self.model.unfit_for(task)
        if reason:
            raise ModelUnavailable(f"model {self.model.id} does not support {task}: {reason}")
        for loaded in (self._base, *self._others.values()):
            of_loaded = type(loaded).__name__
            if of_loaded == name or (name is None and task in catalogue().pipeline(of_loaded).tasks):
                return loaded
        if name is None:
            able = [*spec.tasks, *spec.same_weights]
            reason = spec.no_task or f"it does {', '.join(sorted(able))}"
            hint = f"; load it as {spec.combined}" if spec.no_task and spec.combined else ""
            raise ModelUnavailable(f"model {self.model.id} is a {base}, which does not support {task}: {reason}{hint}")
        try:
            self._others[name] = derive(self._base, getattr(diffusers, name))
        except ImportError as error:
            raise MissingPackage(f"{name} needs the package {missing_package(error)}") from error
        except Exception as error:  # whatever a class makes of components that do not fit
            if is_out_of_memory(error) or is_device_failure(error):
                raise
            raise ModelUnavailable(
                f"model {self.model.id} does not support {task}: {name} cannot be made from its parts: "
                f"{first_line(error)}"
            ) from error
        return self._others[name]

    def scheduler(self, task: str, name: str | None, options: Mapping[str, Any]) -> Any:
        """A new scheduler for one call of the task's pipeline; None if the pipeline has none.

        Raises what `make_scheduler` raises.
        """
        pipeline = self.pipeline(task)
        own = getattr(pipeline, "scheduler", None)
        if name is None and not options:
            return None if own is None else copy.deepcopy(own)
        key = id(own), name, json.dumps(dict(options), sort_keys=True)
        unused = self._schedulers.get(key)
        if unused is None:
            unused = self._schedulers[key] = make_scheduler(pipeline, name, options)
        # a copy: making one takes milliseconds, in which no other thread of the process runs
        return copy.deepcopy(unused)

    def activate_loras(self, task: str, loras: tuple[Lora, ...]) -> None:
        """Activate LoRAs for a task, and no others; loads each at its first use. Cheap if they are active already.

        Raises `ModelUnavailable` for one that is missing, is not a safetensors file, or does not fit the model.
        """
        pipeline = self.pipeline(task)
        denoiser = self.denoiser_id(task)
        if self._active_loras == (denoiser, loras) or not (loras or self._adapters):
            return
        names = [self._load_lora(pipeline, denoiser, lora.name) for lora in loras]
        if names:
            pipeline.enable_lora()
            pipeline.set_adapters(names, [lora.scale for lora in loras])
        else:
            pipeline.disable_lora()
        self._active_loras = denoiser, loras

    def denoiser_id(self, task: str) -> int:
        """Identifies the module that the task's pipeline calls at every step."""
        return id(denoiser_of(self.pipeline(task), self.spec(task)))

    def _load_lora(self, pipeline: Any, denoiser: int, name: str) -> str:
        known = self._adapters.get((denoiser, name))
        if known is not None:
            return known
        entry = self.model.lora(name)
        if entry is None:
            raise ModelUnavailable(f"model {self.model.id} has no LoRA {name} in the models file of this worker")
        path = lora_file(self.model, entry)
        if not hasattr(pipeline, "load_lora_weights"):
            raise ModelUnavailable(f"model {self.model.id} is a {type(pipeline).__name__}, which takes no LoRAs")
        adapter = f"{name}-{len(self._adapters)}"  # unique: a text encoder may have those of several denoisers
        try:
            pipeline.load_lora_weights(path.parent, weight_name=path.name, adapter_name=adapter, use_safetensors=True)
        except Exception as error:  # whatever an invalid file makes the loader raise
            if is_out_of_memory(error) or is_device_failure(error):
                raise
            raise ModelUnavailable(f"LoRA {name} does not fit model {self.model.id}: {first_line(error)}") from error
        if adapter not in {one for names in pipeline.get_list_adapters().values() for one in names}:
            raise ModelUnavailable(f"LoRA {name} has no weights for model {self.model.id}: it is for another model")
        self._adapters[denoiser, name] = adapter
        self._lora_fingerprints[name] = file_digest(path)
        self._active_loras = None  # loading activates it
        return adapter

    def move(self, device: str) -> None:
        """Move all weights to a device."""
        for pipeline in self._pipelines():
            pipeline.to(device)

    def modules(self) -> list[torch.nn.Module]:
        """The components with weights, each once; the pipelines share them."""
        found = {
            id(component): component
            for pipeline in self._pipelines()
            for component in pipeline.components.values()
            if isinstance(component, torch.nn.Module)
        }
        return list(found.values())

    def _pipelines(self) -> tuple[Any, ...]:
        return self._base, *self._others.values()

    def compile(self, problem: str | None = None) -> None:
        """Let torch compile the repeated blocks of the denoisers, at their first forwards.

        A module whose class names no such blocks is not compiled. The kernels are kept in ``TORCHINDUCTOR_CACHE_DIR``.
        With a ``problem`` nothing is compiled, and recipes say so.
        """
        self._compilation = Compilation(self.model.id, problem)
        for module in self.modules():
            self._compilation.compile(module)

    @property
    def compiled(self) -> bool | None:
        """Whether a part of it runs compiled, as far as is known; None: nobody asked for that."""
        return None if self._compilation is None else self._compilation.compiled

    def compiled_fact(self) -> dict[str, object]:
        """The part of a recipe about that, which is only certain after a forward."""
        return {} if self.compiled is None else {"compiled": self.compiled}  # other kernels round differently

    def preview_map(self, task: str) -> torch.Tensor | None:
        """The map from latents to colours, fitted at its first use; None for a model without an `AutoencoderKL`."""
        vae = getattr(self.pipeline(task), "vae", None)
        if self._preview_map is None and isinstance(vae, diffusers.AutoencoderKL):
            self._preview_map = previews.fit(vae)
        return self._preview_map

    def made_with(self, device: Device, loras: tuple[Lora, ...] = ()) -> dict[str, object]:
        """What a recipe contains about the model and the libraries. It does not depend on the worker or the time."""
        found: dict[str, object] = {
            "model": self.model.id,
            "weights": self.fingerprint,
            "dtype": self.dtype,
            "device": device.kind,
            "torch": str(torch.__version__),
            "diffusers": diffusers.__version__,
            "transformers": transformers.__version__,
        }
        if self.revision is not None:
            found["revision"] = self.revision
        found |= self.compiled_fact()
        if loras:
            found["loras"] = {lora.name: self._lora_fingerprints.get(lora.name) for lora in loras}
        return found


def derive(base: Any, kind: Any) -> Any:
    """A pipeline of another class with the components of ``base``.

    ``from_pipe`` would cast the shared weights to one type.

    Raises:
        ValueError: ``base`` lacks a component that the class needs.
    """
    components, config = base.components, base.config
    given: dict[str, Any] = {}
    missing: list[str] = []
    for name, parameter in inspect.signature(kind.__init__).parameters.items():
        if name == "self" or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if name in components:
            given[name] = components[name]
        elif name in config and name not in kind._optional_components:  # noqa: SLF001 - where the class lists them
            given[name] = config[name]
        elif parameter.default is parameter.empty:
            if name in kind._optional_components:  # noqa: SLF001
                given[name] = None
            else:
                missing.append(name)
    if missing:
        raise ValueError(f"the model has no {', '.join(missing)}")
    left_out = [
        name
        for name in catalogue().pipeline(type(base).__name__).denoisers
        if name not in given and components.get(name) is not None
    ]
    if left_out:
        raise ValueError(f"{kind.__name__} has no {', '.join(left_out)}, without which the model is another")
    return kind(**given)


def parking_modules(pipeline: Any) -> Iterator[ParkingModule]:
    """The modules of a pipeline whose calls may share forwards with those of other calls."""
    spec = catalogue().pipeline(type(pipeline).__name__)
    for name in (*spec.denoisers, *(name for name in spec.components if name.startswith("controlnet"))):
        module = getattr(pipeline, name, None)
        if isinstance(module, torch.nn.Module):
            yield ParkingModule(name, "", module)
    for name in spec.decoders:
        component = getattr(pipeline, name, None)
        if _is_upcast(component):
            continue
        for half in HALVES:
            module = getattr(component, half, None)
            if isinstance(module, torch.nn.Module):
                yield ParkingModule(name, half, module)


def denoiser_of(pipeline: Any, spec: PipelineSpec) -> Any:
    """The module that a pipeline calls at every step; None if it has none."""
    found = (getattr(pipeline, name, None) for name in spec.denoisers)
    return next((module for module in found if isinstance(module, torch.nn.Module)), None)


def _is_upcast(autoencoder: Any) -> bool:
    """Whether pipelines cast this autoencoder to float32 while they use it, in the sight of other calls."""
    config = getattr(autoencoder, "config", None)
    return bool(getattr(config, "force_upcast", False)) and autoencoder.dtype is not torch.float32


def _with_inner(pipeline: Any) -> Iterator[Any]:
    """A pipeline and those that it contains."""
    yield pipeline
    for value in vars(pipeline).values():
        if isinstance(value, diffusers.DiffusionPipeline):
            yield from _with_inner(value)
