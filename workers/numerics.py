"""Makes a worker's arithmetic repeatable, and computes its numerics class.

Two workers of one class give the same bytes for the same exact job. The class is a hash of the facts that decide the
bits of a forward. Two of these facts are themselves hashes of the results of a few small operations: they cover what no
version number names, such as the kernels that a library chooses for a processor.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - as everywhere
from PIL import Image

from farm import processors
from farm.domain.numerics import Numerics
from farm.domain.worker import Device
from workers.device import torch_device

#: Libraries whose code decides an output's bytes. Those that are not installed are left out.
LIBRARIES: Final = ("diffusers", "transformers", "torchvision", "peft", "numpy", "pillow")
#: Environment variables with which an operator changes which kernels the libraries use.
VARIABLES: Final = (
    "ATEN_CPU_CAPABILITY",
    "CUBLAS_WORKSPACE_CONFIG",
    "DIFFUSERS_ATTN_BACKEND",
    "DNNL_MAX_CPU_ISA",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "NVIDIA_TF32_OVERRIDE",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "ONEDNN_MAX_CPU_ISA",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
)
_WORD: Final = re.compile(r"[A-Za-z0-9_,:]{1,40}", re.ASCII)
#: What extensions of the instruction set that change sums are called.
_INSTRUCTIONS: Final = re.compile(r"(avx|amx|fma|f16c|sve|neon|asimd|bf16|dot)")
_DTYPES: Final = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def make_deterministic(threads: int) -> None:
    """Make the same call give the same bytes on this machine: fixed threads, no autotuning, no atomic adds.

    ``threads``: of torch's CPU kernels; 0: torch's choice, but not more than the processors that this process may use.
    The order of a sum depends on it, so it must not change later.
    """
    # set in any case: that also ends MKL's freedom to use fewer threads for a small operation
    torch.set_num_threads(threads or min(torch.get_num_threads(), processors.available()))
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    # TF32 keeps 10 bits of a float32: a shared forward could then differ by more than 1/255 from one alone
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    backends: Any = torch.backends.cuda
    backends.enable_cudnn_sdp(False)  # its attention may differ from run to run; the other kernels do not
    # only warn: some attention kernels have no deterministic implementation, and must work all the same
    torch.use_deterministic_algorithms(True, warn_only=True)
    # a debugging aid of that mode: it writes all memory that an operation allocates once more, 1,642 times in a forward
    # of SDXL, and decides no bit of what a pipeline returns
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def describe(device: Device, *, compiled: bool, environment: Mapping[str, str] = os.environ) -> Numerics:
    """The numerics class of this process on its device; call it after `make_deterministic`.

    Args:
        device: The device as torch described it.
        compiled: Whether denoisers are compiled.
        environment: The process's environment variables.
    """
    return Numerics.of(device.kind, dict(sorted(_facts(device, compiled=compiled, environment=environment))))


def _facts(device: Device, *, compiled: bool, environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    yield "device", device.name
    yield "dtype", device.dtype
    yield "torch", str(torch.__version__)
    for name in LIBRARIES:
        version = _version(name)
        if version is not None:
            yield name, version
    for name in VARIABLES:
        if value := environment.get(name):
            yield (
                name,
                value if _WORD.fullmatch(value) else _digest(iter([value.encode("utf-8", "replace")])),
            )
    yield "deterministic", str(torch.are_deterministic_algorithms_enabled()).lower()
    yield "matmul_precision", torch.get_float32_matmul_precision()
    yield "attention", _attention()
    yield "compiled", _compiler() if compiled else "no"
    match device.kind:
        case "cuda":
            yield from _cuda_facts()
        case "mps":
            yield "macos", platform.mac_ver()[0]
        case _:
            yield from _processor_facts()
    yield "host_operations_sha256", _digest(_host_operations())
    yield "operations_sha256", _digest(_operations(torch_device(device), _DTYPES[device.dtype]))


def _processor_facts() -> Iterator[tuple[str, str]]:
    yield "threads", str(torch.get_num_threads())
    found: Mapping[str, Any] = torch.cpu.get_capabilities()
    names = sorted(name for name, value in found.items() if value is True and _INSTRUCTIONS.match(name))
    yield "instructions", " ".join([torch.backends.cpu.get_cpu_capability(), *names])
    # matrix libraries choose the blocks of a sum by the sizes of the caches
    caches = [f"{level} {found[key] // 1024} KiB" for level in ("l1d", "l2") if (key := f"{level}_cache_size") in found]
    if caches:
        yield "caches", ", ".join(caches)
    about = torch.__config__.show()
    for name, pattern in (
        ("mkl", r"Math Kernel Library Version (\S+?)-"),
        ("onednn", r"MKL-DNN v(\S+)"),
        ("blas", r"BLAS_INFO=(\w+)"),
    ):
        if match := re.search(pattern, about):
            yield name, match[1]


def _cuda_facts() -> Iterator[tuple[str, str]]:
    about = torch.cuda.get_device_properties(0)
    yield "capability", f"{about.major}.{about.minor}"
    yield "multiprocessors", str(about.multi_processor_count)  # a part of a GPU has fewer, and other kernels
    yield "cuda", str(torch.version.cuda or torch.version.hip)
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    if cudnn is not None:
        yield "cudnn", str(cudnn)
    cublas = next(
        (
            f"{name} {distribution.version}"
            for distribution in importlib.metadata.distributions()
            if (name := str(distribution.metadata["Name"])).startswith("nvidia-cublas")
        ),
        None,
    )
    if cublas is not None:
        yield "cublas", cublas
    matmul = torch.backends.cuda.matmul
    for name, on in (
        ("tf32_matmul", matmul.allow_tf32),
        ("tf32_convolution", torch.backends.cudnn.allow_tf32),
        ("float16_reduction", matmul.allow_fp16_reduced_precision_reduction),
        ("bfloat16_reduction", matmul.allow_bf16_reduced_precision_reduction),
    ):
        yield name, "on" if on else "off"


def _attention() -> str:
    """The kernels that torch may choose for attention; `VARIABLES` has the choice of diffusers."""
    backends: Any = torch.backends.cuda
    enabled = {
        "cudnn": backends.cudnn_sdp_enabled(),
        "flash": backends.flash_sdp_enabled(),
        "math": backends.math_sdp_enabled(),
        "memory_efficient": backends.mem_efficient_sdp_enabled(),
    }
    return " ".join(name for name, on in enabled.items() if on)


def _compiler() -> str:
    triton = _version("triton")
    return "inductor" if triton is None else f"inductor, triton {triton}"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


# -- operations --------------------------------------------------------------------------------------------------------


def _ramp(*shape: int, scale: float = 1.0) -> torch.Tensor:
    """Numbers from -scale to scale in a fixed order, float32: the same bits everywhere, because each is exact."""
    count = int(np.prod(shape))
    # products below 2^63, and quotients by a power of two
    values = (np.arange(count, dtype=np.int64) * 7_919) % 1_009 - 504
    return torch.from_numpy((values / 512.0 * scale).astype(np.float32).reshape(shape))


def _operations(device: str, dtype: torch.dtype) -> Iterator[bytes]:
    """The results of the operations that pipelines consist of, on the device, in the dtype of its models."""

    def ramp(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return _ramp(*shape, scale=scale).to(device, dtype)

    image = ramp(2, 64, 32, 32)
    tokens = ramp(2, 256, 320)
    query, key = ramp(2, 8, 256, 40), ramp(2, 8, 77, 40)
    operations: tuple[Callable[[], torch.Tensor], ...] = (
        lambda: F.conv2d(image, ramp(96, 64, 3, 3, scale=1 / 16), padding=1),
        lambda: F.conv2d(image, ramp(64, 64, 3, 3, scale=1 / 16), padding=1, stride=2),
        lambda: F.conv2d(image, ramp(64, 64, 1, 1, scale=1 / 8)),
        lambda: F.linear(tokens, ramp(640, 320, scale=1 / 16), ramp(640)),
        lambda: F.linear(tokens[:, 0], ramp(1280, 320, scale=1 / 16)),
        lambda: tokens.reshape(-1) @ ramp(tokens.numel()),  # one long sum
        lambda: F.scaled_dot_product_attention(query, query.flip(2), query),
        lambda: F.scaled_dot_product_attention(query, key, key.flip(2)),
        lambda: F.group_norm(image, 8, eps=1e-5),
        lambda: F.layer_norm(tokens, (320,)),
        lambda: F.interpolate(image, scale_factor=2.0, mode="nearest"),
        lambda: F.interpolate(image, scale_factor=1.5, mode="bilinear"),
        lambda: torch.softmax(tokens, -1),
        lambda: F.silu(image) + torch.tanh(image) + torch.exp(image),
        lambda: F.gelu(tokens),
        lambda: image.float().sum(),
    )
    with torch.inference_mode():
        for operation in operations:
            yield operation().float().cpu().contiguous().numpy().tobytes()


def _host_operations() -> Iterator[bytes]:
    """The results of what the processor computes whatever the device: noise, schedules, and resized images."""
    yield torch.randn(2, 4, 32, 32, generator=torch.Generator("cpu").manual_seed(7)).numpy().tobytes()
    yield torch.randn(5, generator=torch.Generator("cpu").manual_seed(7)).numpy().tobytes()
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1_000) ** 2
    yield torch.cumprod(1.0 - betas, 0).numpy().tobytes()
    steps = np.arange(1, 1_001, dtype=np.float64)
    yield (np.log(steps) + np.exp(-steps / 100) + np.sin(steps) + steps**0.3).tobytes()
    yield (np.log(steps.astype(np.float32)) + np.exp(-steps.astype(np.float32) / 100)).tobytes()
    pixels = ((np.arange(48 * 48 * 3) * 7_919) % 256).astype(np.uint8).reshape(48, 48, 3)
    yield Image.fromarray(pixels).resize((64, 40), Image.Resampling.LANCZOS).tobytes()


def _digest(results: Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    for result in results:
        digest.update(result)
    return digest.hexdigest()[:16]
