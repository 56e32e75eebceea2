"""``torch.compile`` with a proof: what is not compiled runs as it is, and the log, the recipe and the metric say so.

Used by the engine's thread only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import structlog
import torch
from torch._dynamo.exc import TorchDynamoException
from torch._dynamo.utils import counters

from farm import metrics
from farm.domain.worker import Device
from farm.local import compilers
from workers.device import torch_device

log = structlog.stdlib.get_logger()

_PROBE: Final = 64  #: elements of what the probe computes


def _graphs() -> int:
    """Graphs that this process has compiled."""
    return int(counters["stats"]["unique_graphs"])


def problem(device: Device, folder: Path) -> str | None:
    """Why this machine cannot compile for its device; None if it can, which a small function has proved.

    Args:
        device: As torch described it.
        folder: Where compiled kernels are kept.
    """
    found = compilers.missing(device.kind, folder)
    if found is not None:
        return found
    given = torch.ones(_PROBE, device=torch_device(device))
    before = _graphs()
    try:
        made = torch.compile(_probe)(given)
    except Exception as error:  # noqa: BLE001 - whatever it is, kernels cannot be compiled
        return summary(error)
    if _graphs() == before:
        return "torch compiled nothing (TORCH_COMPILE_DISABLE or TORCHDYNAMO_DISABLE may be set)"
    return None if bool(torch.allclose(made, _probe(given))) else "what torch compiles computes something else"


def _probe(values: torch.Tensor) -> torch.Tensor:
    return torch.sin(values) * 2 + values


def summary(error: BaseException) -> str:
    """The first line of an error, of what the compiler raised if torch wraps that."""
    inner = getattr(error, "inner_exception", None) or error
    text = str(inner).strip() or type(inner).__name__
    return text.splitlines()[0][:300]


class Compilation:
    """What of one model is compiled."""

    def __init__(self, model: str, problem: str | None = None) -> None:
        """``model``: its id, for the log and the metric. ``problem``: why nothing can be compiled here."""
        self._model = model
        self._blocks: list[Any] = []
        self._checked = False
        self.failure = problem  #: why nothing is
        if problem is not None:
            metrics.MODEL_COMPILED.labels(model).set(0)

    @property
    def compiled(self) -> bool:
        """Whether forwards run compiled code; before the first one: whether they are going to."""
        return bool(self._blocks) and self.failure is None

    def compile(self, module: Any) -> None:
        """Have a module's repeated blocks compiled at their first forward. Does nothing for one that has none."""
        if self.failure is not None or not getattr(module, "_repeated_blocks", None):
            return
        # dynamic: otherwise each number of rows would be compiled separately
        module.compile_repeated_blocks(dynamic=True)
        for block in module.modules():
            compiled = getattr(block, "_compiled_call_impl", None)
            if compiled is not None:
                block._compiled_call_impl = self._guarded(block, compiled)  # noqa: SLF001 - torch offers no other place
                self._blocks.append(block)

    def _guarded(self, block: Any, compiled: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            if self.failure is not None:
                return block._call_impl(*arguments, **named)  # noqa: SLF001
            try:
                result = compiled(*arguments, **named)
            except TorchDynamoException as error:  # raised before anything was computed
                self._fail(summary(error))
                return block._call_impl(*arguments, **named)  # noqa: SLF001
            if not self._checked:
                self._checked = True
                # not "more than before": another model of the same class may have had these blocks compiled
                if _graphs() == 0:
                    self._fail("torch compiled nothing")
                else:
                    metrics.MODEL_COMPILED.labels(self._model).set(1)
            return result

        return call

    def _fail(self, why: str) -> None:
        self.failure = why
        metrics.MODEL_COMPILED.labels(self._model).set(0)
        for block in self._blocks:
            block._compiled_call_impl = None  # noqa: SLF001
        log.warning(
            "not compiled: its forwards run as they are",
            action="compile_failed",
            model=self._model,
            reason=why,
        )
