"""Loads the diffusers pipelines of a model, and turns a job's spec into one call of a pipeline.

The pipelines are diffusers' own, unmodified. The pipelines of one model share its components, so a model is in memory
once whatever its tasks. A scheduler keeps the state of its run, so every run gets a new one. Weights come from
safetensors files only, and no code of a model's repository is run. No safety checker is loaded: what may be rendered is
the operator's policy, and the black images of a checker would be failures that look like successes.
"""

from __future__ import annotations

import copy
import hashlib
import json
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import diffusers
import huggingface_hub
import numpy as np
import torch
import transformers
from PIL import Image

from farm.domain.cost import steps_run
from farm.domain.job_spec import JobSpec, Lora
from farm.domain.model import LoraFile, Model
from farm.domain.schedulers import class_of, listed
from farm.domain.worker import Device
from farm.errors import JobCanceled, ModelUnavailable, NanOutput, UnsuitableInput
from farm.pipelines.catalogue import catalogue
from workers import device_errors, previews
from workers.device import torch_device

BUILTIN: Final = "builtin:"

_FOR_TASK: Final[dict[str, Any]] = {
    "text-to-image": diffusers.AutoPipelineForText2Image,
    "image-to-image": diffusers.AutoPipelineForImage2Image,
    "inpainting": diffusers.AutoPipelineForInpainting,
}

_DTYPES: Final = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

#: How much of a weights file is hashed at its start, middle and end: all of a small file, and of a large one enough to
#: distinguish two trainings without reading the file twice.
_SAMPLE_BYTES: Final = 8 * 2**20


def silence_libraries() -> None:
    """Keep the libraries' progress bars and warnings out of the log."""
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    # the depth pipeline asks for autocast in the dtype that it uses already
    warnings.filterwarnings("ignore", message=r"In (CPU|MPS) autocast, but the target dtype is not supported")


@dataclass
class LoadedModel:
    """A model in the device's memory."""

    model: Model
    dtype: str  #: of its weights in memory
    revision: str | None  #: the commit of a Hub model
    fingerprint: str  #: of the weights: see :func:`fingerprint`
    bytes: int  #: of all weights and buffers, each counted once
    _pipelines: dict[str, Any] = field(default_factory=dict)
    compiled: bool = False  #: whether a part of it is, see `compile`
    _active_loras: tuple[int, tuple[Lora, ...]] | None = None  # the denoiser's id, and its active LoRAs
    _adapters: dict[tuple[int, str], str] = field(default_factory=dict)  # by denoiser and LoRA: the loaded adapter
    _lora_fingerprints: dict[str, str] = field(default_factory=dict)  # by name
    _preview_map: torch.Tensor | None = None
    _schedulers: dict[tuple[int, str | None, str], Any] = field(default_factory=dict)  # by the pipeline's own, too

    def pipeline(self, task: str) -> Any:
        """The model's pipeline for a task, with the components in memory.

        Raises `ModelUnavailable` if the model does not support the task.
        """
        if task not in self._pipelines:
            self._pipelines[task] = _derive(self.model, next(iter(self._pipelines.values())), task)
        return self._pipelines[task]

    def scheduler(self, task: str, name: str | None, options: Mapping[str, Any] | None = None) -> Any:
        """A new scheduler for the task's pipeline. Raises `ModelUnavailable`, see `make_scheduler`."""
        pipeline = self.pipeline(task)
        key = id(pipeline.scheduler), name, json.dumps(options or {}, sort_keys=True)
        unused = self._schedulers.get(key)
        if unused is None:
            unused = self._schedulers[key] = make_scheduler(pipeline, name, options or {})
        # a copy: making one takes milliseconds, in which no other thread of the process runs
        return copy.deepcopy(unused)

    def activate_loras(self, task: str, loras: tuple[Lora, ...]) -> None:
        """Activate LoRAs for a task, and no others; loads each at its first use. Cheap if they are active already.

        Raises `ModelUnavailable` for one that is missing, is not a safetensors file, or does not fit the model.
        """
        pipeline = self.pipeline(task)
        denoiser = id(denoiser_of(pipeline))
        if self._active_loras == (denoiser, loras) or not (loras or self._adapters):
            return
        names = [self._load_lora(pipeline, denoiser, lora.name) for lora in loras]
        if names:
            pipeline.enable_lora()
            pipeline.set_adapters(names, [lora.scale for lora in loras])
        else:
            pipeline.disable_lora()
        self._active_loras = denoiser, loras

    def _load_lora(self, pipeline: Any, denoiser: int, name: str) -> str:
        known = self._adapters.get((denoiser, name))
        if known is not None:
            return known
        entry = self.model.lora(name)
        if entry is None:
            raise ModelUnavailable(f"model {self.model.id} has no LoRA {name} in the models file of this worker")
        path = lora_file(self.model, entry)
        adapter = f"{name}-{len(self._adapters)}"  # unique: a text encoder may have those of several denoisers
        try:
            pipeline.load_lora_weights(path.parent, weight_name=path.name, adapter_name=adapter, use_safetensors=True)
        except Exception as error:  # whatever an invalid file makes the loader raise
            if device_errors.is_out_of_memory(error) or device_errors.is_device_failure(error):
                raise
            raise ModelUnavailable(f"LoRA {name} does not fit model {self.model.id}: {_short(error)}") from error
        if adapter not in {one for names in pipeline.get_list_adapters().values() for one in names}:
            raise ModelUnavailable(f"LoRA {name} has no weights for model {self.model.id}: it is for another model")
        self._adapters[denoiser, name] = adapter
        self._lora_fingerprints[name] = _digest_of(path)
        self._active_loras = None  # loading activates it
        return adapter

    def move(self, device: str) -> None:
        """Move all weights to a device."""
        for pipeline in self._pipelines.values():
            pipeline.to(device)

    def modules(self) -> list[torch.nn.Module]:
        """The components with weights, each once; the pipelines share them."""
        found = {
            id(component): component
            for pipeline in self._pipelines.values()
            for component in pipeline.components.values()
            if isinstance(component, torch.nn.Module)
        }
        return list(found.values())

    def compile(self) -> None:
        """Let torch compile the repeated blocks of the denoisers, at their first forwards.

        A module whose class names no such blocks is not compiled. The kernels are kept in ``TORCHINDUCTOR_CACHE_DIR``.
        """
        torch._dynamo.config.suppress_errors = True  # noqa: SLF001 - what cannot be compiled runs uncompiled
        for module in self.modules():
            if getattr(module, "_repeated_blocks", None):
                # dynamic: otherwise each number of rows would be compiled separately
                module.compile_repeated_blocks(dynamic=True)  # type: ignore[operator]
                self.compiled = True

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
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "transformers": transformers.__version__,
        }
        if self.revision is not None:
            found["revision"] = self.revision
        if self.compiled:  # other kernels round differently
            found["compiled"] = True
        if loras:
            found["loras"] = {lora.name: self._lora_fingerprints.get(lora.name) for lora in loras}
        return found


def load(model: Model, device: Device) -> LoadedModel:
    """Load a model into the device's memory.

    Raises:
        ModelUnavailable: The model is missing or broken; the message says how.
        torch.OutOfMemoryError: It does not fit the device. On a processor: `MemoryError`, `RuntimeError`.
    """
    dtype = _dtype(model, device)
    try:
        if model.source.startswith(BUILTIN):
            folder, pipelines = _load_builtin(model, dtype)
        else:
            folder, pipelines = _load_folder(model, dtype)
        for pipeline in pipelines.values():
            pipeline.to(torch_device(device))
            pipeline.set_progress_bar_config(disable=True)
            if device.kind == "cuda":
                _use_channels_last(pipeline)
    except Exception as error:  # whatever a broken repository makes the loaders raise
        if (
            isinstance(error, ModelUnavailable)
            or device_errors.is_out_of_memory(error)
            or device_errors.is_device_failure(error)
        ):
            raise
        raise ModelUnavailable(f"model {model.id} cannot be loaded from {model.source}: {_short(error)}") from error
    revision = folder.name if folder.parent.name == "snapshots" else None
    size = _bytes_of(pipelines.values())
    return LoadedModel(model, str(dtype).removeprefix("torch."), revision, fingerprint(folder), size, pipelines)


def _use_channels_last(pipeline: Any) -> None:
    """Store the weights of convolutions in channels-last order, which tensor cores read without conversion."""
    for name in ("unet", "vae", "controlnet"):
        module = getattr(pipeline, name, None)
        if isinstance(module, torch.nn.Module):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it


def _load_builtin(model: Model, dtype: torch.dtype) -> tuple[Path, dict[str, Any]]:
    name = model.source.removeprefix(BUILTIN)
    if name != "starter":
        raise ModelUnavailable(f"model {model.id} has the source {model.source}; only {BUILTIN}starter is built in")
    from workers import starter  # noqa: PLC0415 - only if it is used
    from workers.starter.load import load as load_starter  # noqa: PLC0415

    return Path(starter.WEIGHTS), dict(load_starter(dtype))


def fetch(model: Model) -> int:
    """Download a model's files and read them into the page cache, so that loading does not wait for them.

    Uses neither torch nor the device, so any thread may call it. Returns the bytes read. Raises what the Hub raises.
    """
    if model.source.startswith(BUILTIN):
        return 0
    read = 0
    for path in sorted(_folder_of(model).rglob("*.safetensors")):
        with path.open("rb", buffering=0) as file:
            while part := file.read(_SAMPLE_BYTES):
                read += len(part)
    return read


def _folder_of(model: Model) -> Path:
    """The directory of a model's files, downloaded if the model is on the Hub."""
    folder = Path(model.source)
    if not folder.is_dir():
        if folder.is_absolute() or model.source.startswith("."):
            raise ModelUnavailable(f"model {model.id}: there is no directory {model.source}")
        folder = Path(
            diffusers.DiffusionPipeline.download(
                model.source,
                revision=model.revision,
                variant=model.variant,
                use_safetensors=True,
                trust_remote_code=False,
            )
        )
    return folder


def _load_folder(model: Model, dtype: torch.dtype) -> tuple[Path, dict[str, Any]]:
    folder = _folder_of(model)
    if not any(folder.rglob("*.safetensors")):
        raise ModelUnavailable(
            f"model {model.id} has no .safetensors files in {model.source}; other formats can contain code"
        )
    base = diffusers.DiffusionPipeline.from_pretrained(
        folder,
        dtype=dtype,
        variant=model.variant,
        use_safetensors=True,
        trust_remote_code=False,
        safety_checker=None,
        requires_safety_checker=False,
    )
    loaded: dict[str, Any] = {}
    for task in model.tasks:
        loaded[task] = _derive(model, base, task)
    return folder, loaded


def _derive(model: Model, base: Any, task: str) -> Any:
    """The pipeline for another task with the same components."""
    if task == "depth-to-image":
        if isinstance(base, diffusers.StableDiffusionDepth2ImgPipeline):
            return base
        raise ModelUnavailable(f"model {model.id} has no depth estimator, so it does not support {task}")
    try:
        pipeline = _FOR_TASK[task].from_pipe(base)
    except (ValueError, TypeError) as error:
        raise ModelUnavailable(f"model {model.id} is a {type(base).__name__}, which does not support {task}") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _dtype(model: Model, device: Device) -> torch.dtype:
    if device.kind == "cpu":
        return torch.float32  # half precision is slow on a processor, and some operators lack it
    return _DTYPES[device.dtype if model.dtype == "auto" else model.dtype]


def _bytes_of(pipelines: Any) -> int:
    seen: dict[int, int] = {}
    for pipeline in pipelines:
        for component in pipeline.components.values():
            if isinstance(component, torch.nn.Module):
                for tensor in (*component.parameters(), *component.buffers()):
                    seen[tensor.data_ptr()] = tensor.nbytes
    return sum(seen.values())


def fingerprint(folder: Path) -> str:
    """What identifies a model's weights: a SHA-256 over each safetensors file's name, size and content.

    Of a file above 24 MiB only the first (with its header), middle and last 8 MiB are read.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()}\0{size}\0".encode())
        with path.open("rb") as file:
            starts = (0, size // 2, size - _SAMPLE_BYTES) if size > 3 * _SAMPLE_BYTES else (0,)
            for start in starts:
                file.seek(start)
                digest.update(file.read(_SAMPLE_BYTES if len(starts) > 1 else size))
    return f"sha256:{digest.hexdigest()}"


def denoiser_of(pipeline: Any) -> Any:
    """The module that a pipeline calls at every step; None if the pipeline has another name for it."""
    return getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)


def lora_file(model: Model, entry: LoraFile) -> Path:
    """The safetensors file of a LoRA, downloaded if it is on the Hub. Raises `ModelUnavailable`."""
    path = Path(entry.source)
    if not (path.is_absolute() or entry.source.startswith(".") or path.suffix == ".safetensors"):
        if entry.weight_name is None or not entry.weight_name.endswith(".safetensors"):
            raise ModelUnavailable(
                f"LoRA {entry.name} of model {model.id} is on the Hub: weight_name must name a .safetensors file"
            )
        try:
            return Path(huggingface_hub.hf_hub_download(entry.source, entry.weight_name, revision=entry.revision))
        except Exception as error:  # whatever the network and the Hub raise
            raise ModelUnavailable(f"cannot download LoRA {entry.name} from {entry.source}: {_short(error)}") from error
    if path.is_dir() and entry.weight_name is not None:
        path /= entry.weight_name
    if path.suffix != ".safetensors":
        raise ModelUnavailable(
            f"LoRA {entry.name} of model {model.id} is {path.name}; only .safetensors is allowed, other formats can "
            "contain code"
        )
    if not path.is_file():
        raise ModelUnavailable(f"LoRA {entry.name} of model {model.id}: there is no such file {path}")
    return path


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def make_scheduler(pipeline: Any, name: str | None, options: Mapping[str, Any]) -> Any:
    """A new scheduler with the model's noise schedule.

    Args:
        pipeline: that it is for; its own scheduler has the schedule.
        name: a public name or a class; None: the class of the pipeline's own.
        options: of its config.

    Raises:
        ModelUnavailable: it does not run in the pipeline.
    """
    base = pipeline.scheduler
    own = type(base).__name__
    if name is None:
        return type(base).from_config(base.config, **options)
    choices = catalogue().schedulers_for(type(pipeline).__name__, own, dict(base.config))
    choice = next((one for one in choices if one.spec.name == class_of(name)), None)
    if choice is None:
        raise ModelUnavailable(
            f"the model's scheduler is a {own}, which {name} cannot replace; use one of {listed(choices)}"
        )
    if choice.spec.name == own:
        return type(base).from_config(base.config, **options)
    return getattr(diffusers, choice.spec.name).from_config(base.config, **choice.config, **options)


def render(
    loaded: LoadedModel,
    spec: JobSpec,
    index: int,
    inputs: Mapping[str, Image.Image],
    on_step: Callable[[int], None],
    stop: threading.Event,
    on_latents: Callable[[int, torch.Tensor], None] | None = None,
) -> Image.Image:
    """Render one output of a job by one call of the unmodified pipeline.

    Args:
        loaded: The model.
        spec: The job.
        index: Of the output; its seed is ``spec.seed + index``.
        inputs: The decoded input images by name.
        on_step: Gets the denoising steps done, 1 to `steps_run`.
        stop: Ends the run at its next step.
        on_latents: Gets the steps done and the latents, (1, C, H/8, W/8) where the pipeline does not pack them.

    Returns:
        RGB, (height, width) of the spec.

    Raises:
        NanOutput: The arithmetic overflowed.
        JobCanceled: ``stop`` was set.
        UnsuitableInput: The pipeline cannot use an input.
    """
    # A copy shares only the components, so a run leaves no state in the pipeline.
    pipeline = copy.copy(loaded.pipeline(spec.task))
    pipeline.scheduler = loaded.scheduler(spec.task, spec.scheduler, spec.scheduler_options)
    steps = steps_run(spec)

    def after_step(pipe: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if stop.is_set():
            raise JobCanceled("the job was stopped")
        # some schedulers call the denoiser twice for one step: count the requested steps
        done = min(steps, (step + 1) * steps // max(1, pipe.num_timesteps))
        on_step(done)
        latents = tensors.get("latents")
        if on_latents is not None and latents is not None:
            on_latents(done, latents)
        return {}

    if stop.is_set():
        raise JobCanceled("the job was stopped")
    given = _arguments(spec, inputs)
    called = pipeline(
        num_images_per_prompt=1,
        # on the CPU whatever the device: the same seed gives the same noise everywhere
        generator=torch.Generator("cpu").manual_seed(spec.seed_of(index)),
        callback_on_step_end=after_step,
        output_type="np",
        **given,
    )
    pixels = called.images
    if not np.isfinite(pixels).all():  # Pillow would make a black image of it
        raise NanOutput("the image contains NaN")
    image: Image.Image = diffusers.image_processor.VaeImageProcessor.numpy_to_pil(pixels)[0]
    if spec.task == "inpainting":
        image = _restore_outside_mask(image, given["image"], given["mask_image"])
    return image.convert("RGB")


def _arguments(spec: JobSpec, inputs: Mapping[str, Image.Image]) -> dict[str, Any]:
    """The arguments of the task's pipeline that the job decides. Resizes the inputs to the job's size."""
    found = dict(spec.common | spec.parameters)
    if spec.task in ("image-to-image", "depth-to-image"):  # their pipelines take the size of the image
        del found["width"], found["height"]
    if spec.task == "text-to-image":
        return found
    assert spec.width is not None
    assert spec.height is not None
    size = (spec.width, spec.height)
    image = inputs["image"]
    if image.size != size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    found["image"] = image
    if spec.task == "inpainting":
        mask = inputs["mask_image"]
        if mask.size != size:
            mask = mask.resize(size, Image.Resampling.NEAREST)  # a mask's edge stays an edge
        found["mask_image"] = mask
    if spec.task == "depth-to-image" and "depth_map" in inputs:
        found["depth_map"] = _depth(inputs["depth_map"])
    return found


def _restore_outside_mask(painted: Image.Image, image: Image.Image, mask: Image.Image) -> Image.Image:
    """The painted image where the mask is white, the input image elsewhere: all three of the job's size.

    The pipeline encodes and decodes the whole image, which changes the pixels outside the mask as well.
    """
    white = mask.convert("L").point(lambda value: 255 if value >= 128 else 0)  # the pipeline's threshold
    return Image.composite(painted.convert("RGB"), image.convert("RGB"), white)


def _depth(image: Image.Image) -> torch.Tensor:
    """A depth image, ``L`` or ``I;16``, as (1, H, W) in [0, 1]; brighter is nearer, as depth estimators define it."""
    low, high = image.getextrema()
    if low == high:
        raise UnsuitableInput("the depth map has the same value everywhere, so it contains no depth")
    width, height = image.size
    if image.mode == "I;16":
        # Pillow's 16 bit pixels are little-endian
        values = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint16).to(torch.float32)
        return values.reshape(1, height, width) / 65535.0
    values = torch.frombuffer(bytearray(image.convert("L").tobytes()), dtype=torch.uint8).to(torch.float32)
    return values.reshape(1, height, width) / 255.0


def set_vae_tiling(loaded: LoadedModel, task: str, *, on: bool) -> None:
    """Let the VAE work in slices and tiles, which needs far less memory and changes pixels a little."""
    vae = getattr(loaded.pipeline(task), "vae", None)
    for name in ("slicing", "tiling"):
        switch = getattr(vae, f"{'enable' if on else 'disable'}_{name}", None)
        if switch is not None:
            switch()


@contextmanager
def cpu_offload(loaded: LoadedModel, task: str, device: str) -> Iterator[None]:
    """Keep each component of a task's pipeline in main memory except while it computes.

    Slow, because weights are moved for every image; the pixels stay the same. No other run may use the model meanwhile.
    """
    pipeline = loaded.pipeline(task)
    pipeline.enable_model_cpu_offload(device=device)
    try:
        yield
    finally:
        pipeline.remove_all_hooks()
        loaded.move(device)


def _short(error: BaseException) -> str:
    """The first line of an error, at most 300 characters."""
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 300 else text[:299] + "…"
