"""The device that a worker owns: which one, how it is pinned, and what it can do.

Pinning sets environment variables before torch is imported, so that the process cannot use any other device.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
import structlog

import farm
from farm.domain.worker import Device
from farm.errors import MissingExtra, SetupError

log = structlog.stdlib.get_logger()

_NAMED: Final = re.compile(r"(?P<kind>cuda|cpu|mps)?:?(?P<index>\d*)")
#: A target of a CUDA build: ``sm_90a`` and ``sm_120f`` are for that very architecture, or its family.
_ARCHITECTURE: Final = re.compile(r"(?P<kind>sm|compute)_(?P<major>\d+)(?P<minor>\d)[af]?")
_UUID: Final = re.compile(r"(GPU|MIG)-[0-9A-Za-z/-]+")
#: What determines the pixels besides the model; the first thing to compare when two workers differ.
LIBRARIES: Final = ("torch", "diffusers", "transformers", "celery")


@dataclass(frozen=True)
class DeviceChoice:
    """The device that a worker is to own, before torch has looked at it."""

    kind: str  #: ``cuda``, ``mps`` or ``cpu``
    index: str  #: the second half of the worker's name: ``cuda:1``, ``GPU-…``, ``mps``, ``cpu0``
    visible: str | None  #: the value of ``CUDA_VISIBLE_DEVICES``; None on other kinds


def choose(wanted: str | None) -> DeviceChoice:
    """The device that ``FARM_DEVICE`` names: ``cuda:1``, an index, a ``GPU-…`` UUID, ``cpu``, ``cpu3`` or ``mps``.

    None or an empty text: the first CUDA device, else MPS, else the processor. Raises `SetupError` for any other text.
    """
    if wanted is None or not wanted.strip():
        return _best()
    text = wanted.strip()
    if _UUID.fullmatch(text):
        return DeviceChoice("cuda", text, text)
    match = _NAMED.fullmatch(text.lower())
    if match is None:
        raise SetupError(
            f"FARM_DEVICE is {wanted!r}; allowed are an index such as 0, cuda:0, a GPU-… UUID, cpu, cpu0 and mps"
        )
    kind, number = match["kind"] or "cuda", match["index"] or "0"
    if kind == "cuda":
        return DeviceChoice("cuda", f"cuda:{number}", number)
    return DeviceChoice(kind, "mps" if kind == "mps" else f"cpu{number}", None)


def _best() -> DeviceChoice:
    # Only torch knows. It may be imported before pinning here: counting devices does not initialise CUDA.
    import torch  # noqa: PLC0415

    if torch.cuda.device_count() > 0:
        return DeviceChoice("cuda", "cuda:0", "0")
    if torch.backends.mps.is_available():
        return DeviceChoice("mps", "mps", None)
    if torch.xpu.is_available():
        log.warning(
            "torch sees an XPU, which the farm does not use; this worker renders on the processor",
            action="device_unsupported",
            device=torch.xpu.get_device_name(0),
        )
    return DeviceChoice("cpu", "cpu0", None)


def pin(choice: DeviceChoice, environment: MutableMapping[str, str] = os.environ) -> None:
    """Hide every other device from this process, and silence the libraries. Call it before torch is imported.

    Raises `SetupError` if the index is not among those that ``CUDA_VISIBLE_DEVICES`` allows already.
    """
    environment.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    for library in ("DIFFUSERS", "TRANSFORMERS"):
        environment.setdefault(f"{library}_VERBOSITY", "error")  # they log warnings at import
    if choice.visible is None:
        environment["CUDA_VISIBLE_DEVICES"] = ""  # a CPU worker must not hold memory on a GPU
        # OpenMP's threads spin while they wait for each other. If another process uses a core, an image takes ten times
        # as long (measured on two cores: 10.5 s instead of 1.0 s); sleeping costs a few per cent at most.
        environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        return
    # cuBLAS reads it once: without a workspace of fixed size its sums differ from run to run
    environment.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # the order of nvidia-smi
    visible = choice.visible
    given = environment.get("CUDA_VISIBLE_DEVICES")
    if given and visible.isdigit():
        # a container or a batch system allows some devices only: the index counts within them
        allowed = [part.strip() for part in given.split(",") if part.strip()]
        if int(visible) >= len(allowed):
            raise SetupError(
                f"FARM_DEVICE is {visible}, but CUDA_VISIBLE_DEVICES={given} allows {len(allowed)} device(s)"
            )
        visible = allowed[int(visible)]
    environment["CUDA_VISIBLE_DEVICES"] = visible


def require_libraries() -> None:
    """Raise `SetupError` if libraries that a worker needs are not installed."""
    missing = [name for name in ("torch", "diffusers", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtra("a worker", ", ".join(missing), "worker")


def describe(choice: DeviceChoice) -> Device:
    """What the pinned device is and can do; imports torch. Raises `SetupError` if it is missing."""
    import torch  # noqa: PLC0415

    if choice.kind == "cuda":
        if not torch.cuda.is_available():
            raise SetupError(
                f"FARM_DEVICE is {choice.index}, but torch {torch.__version__} sees no such CUDA device"
                f"{_why_no_cuda()}; check the driver, the torch build and the index, or set FARM_DEVICE=cpu"
            )
        about = torch.cuda.get_device_properties(0)
        if torch.version.cuda is not None:
            require_architecture(about.name, (about.major, about.minor), torch.cuda.get_arch_list(), torch.__version__)
        # bfloat16 has float32's range, so nothing overflows; tensor cores for it came with compute capability 8.0
        dtype = "bfloat16" if about.major >= 8 else "float16" if (about.major, about.minor) >= (7, 0) else "float32"
        return Device("cuda", choice.index, about.name, int(about.total_memory), dtype)
    if choice.kind == "mps":
        if not torch.backends.mps.is_available():
            raise SetupError("FARM_DEVICE is mps, which this torch does not support; set FARM_DEVICE=cpu")
        return Device("mps", choice.index, f"Apple {platform.machine()}", main_memory(), "float16")
    return Device("cpu", choice.index, _processor(), main_memory(), "float32")


def _why_no_cuda() -> str:
    """What torch says when CUDA is initialised without a usable device: no driver, or one that is too old."""
    import torch  # noqa: PLC0415

    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        first = " ".join(str(error).split()).partition(". ")[0]
        return f" ({first})" if first else ""
    return ""


def require_architecture(
    name: str, capability: tuple[int, int], architectures: Sequence[str], torch_version: str
) -> None:
    """Raise `SetupError` if a build of torch has no kernels for a CUDA device: its first operation would fail.

    Args:
        name: The device's.
        capability: Its compute capability, major and minor.
        architectures: What the build was compiled for: ``sm_86`` runs on 8.6 to 8.9, ``compute_90`` on 9.0 and above.
        torch_version: The build's.
    """
    built = [match for one in architectures if (match := _ARCHITECTURE.fullmatch(one))]
    kernels = {(int(one["major"]), int(one["minor"])) for one in built if one["kind"] == "sm"}
    portable = {(int(one["major"]), int(one["minor"])) for one in built if one["kind"] == "compute"}
    runs = any(major == capability[0] and minor <= capability[1] for major, minor in kernels)
    if not built or runs or any(one <= capability for one in portable):
        return
    wanted = ".".join(map(str, capability))
    shown = ", ".join(f"{major}.{minor}" for major, minor in sorted(kernels | portable))
    raise SetupError(
        f"{name} has compute capability {wanted}, and torch {torch_version} has kernels for {shown} only; "
        "install a torch build for it, or set FARM_DEVICE=cpu"
    )


def torch_device(device: Device) -> str:
    """The device as torch names it; a pinned CUDA device is the only one that the process sees."""
    return "cuda:0" if device.kind == "cuda" else device.kind


def main_memory() -> int:
    """Bytes of memory that this process may use: the machine's, or its container's limit."""
    total = int(psutil.virtual_memory().total)
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limit = Path(name).read_text().strip()
        except OSError:
            continue
        if limit.isdigit():
            return min(total, int(limit))
    return total


def versions() -> dict[str, str]:
    """The versions of the libraries that render here, without importing them."""
    found = {"farm": farm.__version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
