"""The device that a worker owns: which one, how it is pinned, and what it can do.

Pinning is done by the environment before torch is imported: a process that never sees the other devices cannot touch
them.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
from collections.abc import MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

import farm
from farm.domain.worker import Device
from farm.errors import SetupError

_NAMED: Final = re.compile(r"(?P<kind>cuda|cpu|mps)?:?(?P<index>\d*)")
_UUID: Final = re.compile(r"(GPU|MIG)-[0-9A-Za-z/-]+")
#: What decides the pixels beside the model, and what a person asks first when two workers differ.
LIBRARIES: Final = ("torch", "diffusers", "transformers", "celery")


@dataclass(frozen=True)
class Choice:
    """Which device a worker was told to own."""

    kind: str  #: ``cuda``, ``mps`` or ``cpu``
    index: str  #: as the worker is named after it: ``cuda:1``, ``GPU-…``, ``mps``, ``cpu0``
    visible: str | None  #: what ``CUDA_VISIBLE_DEVICES`` becomes; None on other kinds


@dataclass(frozen=True)
class Upkeep:
    """What the operator chose for the models of a device."""

    attic_bytes: int = 0  #: of page-locked main memory, see `workers.cpu_model_cache`
    compile_dir: Path | None = None  #: where compiled kernels are kept; None: nothing is compiled


NO_UPKEEP: Final = Upkeep()


def choose(wanted: str | None) -> Choice:
    """The device that ``FARM_DEVICE`` names: ``cuda:1``, an index, a ``GPU-…`` UUID, ``cpu``, ``cpu3`` or ``mps``.

    Without a name: the first CUDA device, or else MPS, or else the processor. Raises `SetupError` for any other text.
    """
    if wanted is None or not wanted.strip():
        return _best()
    text = wanted.strip()
    if _UUID.fullmatch(text):
        return Choice("cuda", text, text)
    match = _NAMED.fullmatch(text.lower())
    if match is None:
        raise SetupError(f"FARM_DEVICE is {wanted!r}; use an index such as 0, cuda:0, a GPU-… UUID, cpu, cpu0 or mps")
    kind, number = match["kind"] or "cuda", match["index"] or "0"
    if kind == "cuda":
        return Choice("cuda", f"cuda:{number}", number)
    return Choice(kind, "mps" if kind == "mps" else f"cpu{number}", None)


def _best() -> Choice:
    # Only torch can say. That it is imported before pinning does no harm: counting does not initialise CUDA.
    import torch  # noqa: PLC0415

    if torch.cuda.device_count() > 0:
        return Choice("cuda", "cuda:0", "0")
    if torch.backends.mps.is_available():
        return Choice("mps", "mps", None)
    return Choice("cpu", "cpu0", None)


def pin(choice: Choice, environment: MutableMapping[str, str] = os.environ) -> None:
    """Hide every other device from this process, and keep the libraries quiet. To be called before torch is imported.

    Raises `SetupError` if the index is not among those that the process may see.
    """
    environment.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    for library in ("DIFFUSERS", "TRANSFORMERS"):
        environment.setdefault(f"{library}_VERBOSITY", "error")  # they give advice as early as at import
    if choice.visible is None:
        environment["CUDA_VISIBLE_DEVICES"] = ""  # a CPU worker must not hold memory on a GPU
        # OpenMP's threads spin while they wait for each other, so one busy neighbour on a core costs ten times the time
        # (measured on two cores: 10.5 s an image instead of 1.0 s); sleeping costs a few per cent at worst.
        environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        return
    # cuBLAS reads it once: without a workspace of fixed size its sums come out differently from run to run
    environment.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # the order of nvidia-smi, which is what a person counts by
    visible = choice.visible
    given = environment.get("CUDA_VISIBLE_DEVICES")
    if given and visible.isdigit():
        # a container or a batch system has narrowed the view already: the index counts within it
        allowed = [part.strip() for part in given.split(",") if part.strip()]
        if int(visible) >= len(allowed):
            raise SetupError(
                f"FARM_DEVICE asks for device {visible}, but CUDA_VISIBLE_DEVICES={given} leaves {len(allowed)}"
            )
        visible = allowed[int(visible)]
    environment["CUDA_VISIBLE_DEVICES"] = visible


def require_libraries() -> None:
    """Raise `SetupError` unless the data plane's libraries are installed."""
    missing = [name for name in ("torch", "diffusers", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        raise SetupError(
            f"a worker needs {', '.join(missing)}, which this environment lacks: "
            'pip install "diffusion-render-farm[worker]"'
        )


def describe(choice: Choice) -> Device:
    """What the pinned device is and can do; imports torch. Raises `SetupError` if it is not there."""
    import torch  # noqa: PLC0415

    if choice.kind == "cuda":
        if not torch.cuda.is_available():
            raise SetupError(
                f"FARM_DEVICE asks for {choice.index}, but torch {torch.__version__} sees no such CUDA device; "
                "check the driver, the torch build and the index, or set FARM_DEVICE=cpu"
            )
        about = torch.cuda.get_device_properties(0)
        # bfloat16 has float32's range, so nothing overflows; tensor cores for it came with compute capability 8.0
        dtype = "bfloat16" if about.major >= 8 else "float16" if (about.major, about.minor) >= (7, 0) else "float32"
        return Device("cuda", choice.index, about.name, int(about.total_memory), dtype)
    if choice.kind == "mps":
        if not torch.backends.mps.is_available():
            raise SetupError("FARM_DEVICE asks for mps, which this torch does not have; set FARM_DEVICE=cpu")
        return Device("mps", choice.index, f"Apple {platform.machine()}", main_memory(), "float16")
    return Device("cpu", choice.index, _processor(), main_memory(), "float32")


def torch_device(device: Device) -> str:
    """The device as torch names it; a pinned CUDA device is always the first that the process sees."""
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
    """The versions of what renders here, without importing any of it."""
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
