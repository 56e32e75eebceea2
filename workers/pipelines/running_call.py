"""One call of a pipeline while it runs: its steps, its warnings, and whether it must stop.

Every call runs in a context of its own (a greenlet, or the engine's thread), so the hooks on the denoisers and the
handler of diffusers' log find the call that they belong to in a context variable.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, Self

import diffusers
import torch

from farm.errors import JobCanceled, NanOutput

MAX_WARNINGS: Final = 10  #: of one call
MAX_WARNING: Final = 300  #: characters of one

_CURRENT: ContextVar[RunningCall | None] = ContextVar("current call", default=None)
_WATCHED: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()


class RunningCall:
    """Counts the steps of one call, ends it when its job is stopped, and collects its warnings."""

    def __init__(
        self,
        total_steps: int,
        on_step: Callable[[int], None],
        stop: threading.Event,
        on_progress: Callable[[], None] = lambda: None,
        recorded: bool = False,
    ) -> None:
        """Start without steps.

        Args:
            total_steps: Denoising steps of the call.
            on_step: Gets the steps done, 1 to ``total_steps``, never fewer than before.
            stop: Ends the call before its next denoiser call.
            on_progress: Called after every denoiser call.
            recorded: Whether its denoiser calls are recorded: then ``stop`` ends it while it waits for a forward, so
                that its record ends in front of that one.
        """
        self._recorded = recorded
        self.warnings: list[str] = []
        self.forwards = 0  #: denoiser calls that returned
        self._total_steps = total_steps
        self._on_step = on_step
        self._stop = stop
        self._on_progress = on_progress
        self.steps_done = 0
        self._has_bar = False  # whether the pipeline says itself when a step ends

    def before_forward(self) -> None:
        """A denoiser is about to be called. Raises `JobCanceled`."""
        if self._stop.is_set() and not self._recorded:
            raise JobCanceled("the job was stopped")

    def after_forward(self) -> None:
        """A denoiser has returned."""
        self.forwards += 1
        self._on_progress()
        if not self._has_bar:
            self._report(self.forwards)

    def progress_bar(self, iterable: Iterable[Any] | None = None, total: int | None = None, **_: object) -> ProgressBar:
        """What the pipeline uses as its progress bar, in the place of ``DiffusionPipeline.progress_bar``."""
        self._has_bar = True
        length = total if total is not None else len(iterable) if hasattr(iterable, "__len__") else self._total_steps  # type: ignore[arg-type]
        return ProgressBar(lambda done: self._report(done * self._total_steps // max(1, length)), iterable)

    def silent_bar(self, iterable: Iterable[Any] | None = None, **_: object) -> ProgressBar:
        """The progress bar of a part of the call whose steps are not the job's: a prior that draws an embedding."""
        return ProgressBar(lambda _: None, iterable)

    def finish(self) -> None:
        """The call has returned: all steps are done, whatever was counted."""
        self._report(self._total_steps)

    def warn(self, message: str) -> None:
        """Add a warning that the job's result carries."""
        text = " ".join(message.split())
        text = text if len(text) <= MAX_WARNING else text[: MAX_WARNING - 1] + "…"
        if text not in self.warnings and len(self.warnings) < MAX_WARNINGS:
            self.warnings.append(text)

    def _report(self, done: int) -> None:
        done = min(done, self._total_steps)
        if done > self.steps_done:
            self.steps_done = done
            self._on_step(done)


class ProgressBar:
    """The part of tqdm's interface that pipelines use."""

    def __init__(self, on_update: Callable[[int], None], iterable: Iterable[Any] | None = None) -> None:
        """``on_update`` gets the steps done so far; ``iterable`` is what `__iter__` passes on."""
        self.n = 0
        self._on_update = on_update
        self._iterable = iterable

    def update(self, n: int = 1) -> None:
        """Count ``n`` more steps."""
        self.n += n
        self._on_update(self.n)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def __iter__(self) -> Iterator[Any]:
        for item in () if self._iterable is None else self._iterable:
            yield item
            self.update()

    def close(self) -> None:
        """Nothing is shown, so nothing is closed."""

    def set_description(self, *_: object, **__: object) -> None:
        """Nothing is shown."""

    set_postfix = set_description
    set_postfix_str = set_description
    refresh = close


def current_call() -> RunningCall | None:
    """The call that runs in this context."""
    return _CURRENT.get()


@contextmanager
def running(call: RunningCall) -> Iterator[RunningCall]:
    """Let the hooks of this context report to a call."""
    token = _CURRENT.set(call)
    try:
        yield call
    finally:
        _CURRENT.reset(token)


def watch(denoiser: torch.nn.Module) -> None:
    """Let a denoiser report its calls; once for each module, for as long as it lives."""
    if denoiser in _WATCHED:
        return
    _WATCHED.add(denoiser)

    def before(_module: torch.nn.Module, _arguments: Any) -> None:
        call = _CURRENT.get()
        if call is not None:
            call.before_forward()

    def after(_module: torch.nn.Module, _arguments: Any, _output: Any) -> None:
        call = _CURRENT.get()
        if call is not None:
            call.after_forward()

    denoiser.register_forward_pre_hook(before)
    denoiser.register_forward_hook(after)


def check_finite(decoder: torch.nn.Module) -> None:
    """Let a decoder raise `NanOutput` instead of returning NaN; once for each module, for as long as it lives.

    A pipeline would make a black image of it.
    """
    if decoder in _WATCHED:
        return
    _WATCHED.add(decoder)

    def after(_module: torch.nn.Module, _arguments: Any, output: Any) -> None:
        sample = output[0] if isinstance(output, tuple) else getattr(output, "sample", output)
        if _CURRENT.get() is not None and isinstance(sample, torch.Tensor) and not torch.isfinite(sample).all():
            raise NanOutput("the output contains NaN")

    decoder.register_forward_hook(after)


class _ToRunningCall(logging.Handler):
    """Gives what diffusers' pipelines log to the call that runs."""

    def emit(self, record: logging.LogRecord) -> None:
        call = _CURRENT.get()
        if call is not None and ".pipelines." in f".{record.name}.":
            call.warn(record.getMessage())


_HANDLER: Final = _ToRunningCall(logging.WARNING)


def collect_warnings() -> None:
    """Send the warnings that diffusers' pipelines log to the running calls instead of the standard error stream."""
    diffusers.utils.logging.set_verbosity_warning()
    logger = logging.getLogger("diffusers")
    if _HANDLER not in logger.handlers:
        diffusers.utils.logging.disable_default_handler()
        logger.addHandler(_HANDLER)
