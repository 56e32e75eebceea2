"""Step-level continuous batching: stock pipelines that share the forwards of their denoiser and VAE.

Each image is one call of an unmodified diffusers pipeline in a greenlet of its own, all on one thread. A hooked
module does not compute when a pipeline calls it: the call parks, and the hub runs the calls that fit together as ONE
forward, each row at its own timestep, and hands every pipeline its rows. So images join at any step and leave when
they are done, and no pipeline needs code of its own.

    image 1   encode ─► unet ─ park ┐             ┌─ rows 0:2 ─► scheduler step ─► unet ─ park …
    image 2   encode ─► unet ─ park ├─► forward ──┼─ rows 2:4 ─► scheduler step ─► unet ─ park …
    image 3   encode ─► unet ─ park ┘             └─ rows 4:5 ─► …

What one image does stays its own: an exception, a cancel or a NaN ends it alone, and a forward that runs out of
memory is split. Float kernels may round differently for another number of rows; `Sharing` says what is kept of that,
and an image chooses. How many rows pay, and which numbers of rows give equal bits, is tried on the device the first
time that a module is called with a size, and remembered (`workers.batch_profiles`).

(Orca, OSDI 2022, schedules language models at the granularity of iterations; this is the same for diffusion.)
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, TypeAlias

import structlog
import torch
from greenlet import getcurrent, greenlet  # type: ignore[import-untyped, unused-ignore]
from torch.utils.weak import WeakIdKeyDictionary

from farm import metrics
from farm.errors import NanOutput
from workers.batch_profiles import Lesson, Lessons

log = structlog.stdlib.get_logger()

#: Arguments without a row for each sample: position ids and rotary embeddings, which are the same for one size.
BATCH_FREE: Final = frozenset({"img_ids", "txt_ids", "image_rotary_emb", "freqs_cis"})
#: By how much a shared forward may differ from one alone, relative to the largest value: rounding does, a module that
#: mixes its rows does not.
TOLERANCE: Final = {torch.float32: 1e-3, torch.float64: 1e-6}
TOLERANCE_HALF: Final = 5e-2
#: Rows up to which `Sharing.EXACT` looks for equal ones. Fixed, because what it finds decides pixels.
EXACT_ROWS: Final = 8
#: A processor is filled by one row of a larger module, and looking for equal rows would take minutes: it runs alone.
EXACT_PARAMETERS_ON_CPU: Final = 200_000_000
MEMORY_SHARE: Final = 0.8  #: of the device's free memory, for one forward
MOST_ROWS_ON_DEVICE: Final = 64  #: more never paid: the device is full long before
#: Of the VAE, which is a small part of the work and takes much memory.
MOST_ROWS_BESIDE: Final = 4
TRY_SECONDS: Final = 4.0  #: for finding out how many rows pay; the forward at hand ends
WORTH: Final = 1.05  #: more rows must take less time each by this factor

Outcome: TypeAlias = Any  #: what a module returns: a tensor, or tensors in tuples, lists and output classes


class Sharing(StrEnum):
    """What is promised of images whose forwards are shared."""

    #: Every call is a forward of its own: the bytes of the stock pipeline, whatever the neighbours.
    ALONE = "alone"
    #: Forwards have numbers of rows that give equal bits, found by a test; too few are padded. The bytes do not depend
    #: on the neighbours, but may differ from the stock pipeline's in the last place.
    EXACT = "exact"
    #: Rows as they come: within 1/255 of the stock pipeline.
    THROUGHPUT = "throughput"


class Unshareable(Exception):
    """A call whose state is not all in tensors of one row for each sample."""


@dataclass(frozen=True)
class Setting:
    """A state of the modules that an image wants, such as LoRAs; calls of one setting may share."""

    key: Hashable
    apply: Callable[[], None] = field(compare=False)  #: cheap when it is applied already


@dataclass(eq=False)
class Run:
    """One pipeline call in its greenlet."""

    sharing: Sharing
    urgent: bool  #: a person waits for it
    setting: Setting | None = None
    result: Any = None
    error: BaseException | None = None
    ended: bool = False
    _greenlet: greenlet | None = None
    _call: Call | None = None  #: where it is parked


@dataclass(eq=False)
class Form:
    """What is known of calls that differ in values and rows alone."""

    most: int  #: rows of one forward
    #: For `Sharing.EXACT`, by the rows of a call: the least and most rows of its forwards.
    spans: dict[int, tuple[int, int]] = field(default_factory=dict)
    shared: bool = True  #: whether they may share at all
    tested: bool = False  #: whether a shared forward has been compared with ones alone
    learnt: bool = False  #: whether `most` and `spans` have been found out


@dataclass(eq=False)
class Call:
    """A parked call of a hooked module."""

    hook: Hook
    run: Run
    args: tuple[Any, ...]  #: as the pipeline gave them
    kwargs: dict[str, Any]
    arguments: dict[str, Any]  #: the same by name
    rows: int  #: 0 for a call that cannot share
    key: Hashable  #: equal for calls that fit into one forward
    form: Form
    turn: int  #: when it parked

    @property
    def span(self) -> tuple[int, int]:
        """The least rows of its forward, which a smaller one is padded to, and the most; (0, 0): it runs alone."""
        if not self.rows or not self.form.shared:
            return 0, 0
        if self.run.sharing is Sharing.EXACT:
            return self.form.spans.get(self.rows, (0, 0))
        return (1, self.form.most) if self.rows <= self.form.most else (0, 0)


class Hook:
    """Stands in for one module's ``forward``."""

    def __init__(
        self, hub: Hub, module: torch.nn.Module, name: str, weights: str, *, denoiser: bool, checked: bool
    ) -> None:
        """``denoiser``: whether it is called at every step; ``checked``: whether what it gives must be finite."""
        self.name = name
        self.weights = weights
        self.denoiser = denoiser
        self.checked = checked
        self.real: Callable[..., Outcome] = module.forward
        self.forms: dict[Hashable, Form] = {}
        self.refused: str | None = None  #: why calls do not share, once that was seen
        self._module = module
        self._before = module.__dict__.get("forward")
        self._signature = inspect.signature(self.real)
        kinds = {parameter.kind for parameter in self._signature.parameters.values()}
        self._named = not kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
        self._first = next(iter(self._signature.parameters), "")

        @functools.wraps(self.real)  # pipelines look at the signature
        def forward(*args: Any, **kwargs: Any) -> Outcome:
            return hub.park(self, args, kwargs)

        module.forward = forward

    def remove(self) -> None:
        """Give the module its own ``forward`` back."""
        if self._before is None:
            self._module.__dict__.pop("forward", None)
        else:
            self._module.forward = self._before

    def shares(self, sharing: Sharing) -> bool:
        """Whether calls of that promise may share at all."""
        if sharing is Sharing.ALONE:
            return False
        if sharing is Sharing.THROUGHPUT:
            return True
        return self.denoiser and not self._fills_a_processor

    @functools.cached_property
    def _fills_a_processor(self) -> bool:
        parameters = list(self._module.parameters())
        return (
            all(one.device.type == "cpu" for one in parameters)
            and sum(one.numel() for one in parameters) > EXACT_PARAMETERS_ON_CPU
        )

    def read(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], digests: Digests
    ) -> tuple[dict[str, Any], int, Hashable, Hashable]:
        """A call's arguments by name, its rows, its form, and its content. Raises `Unshareable`."""
        if not self._named:
            raise Unshareable("its forward takes arguments without names")
        arguments = dict(self._signature.bind(*args, **kwargs).arguments)
        sample = arguments.get(self._first)
        if not isinstance(sample, torch.Tensor) or sample.ndim == 0 or sample.shape[0] == 0:
            raise Unshareable(f"{self._first} is not a batch of samples")
        rows = int(sample.shape[0])
        if _is_one_timestep(arguments.get("timestep"), rows):
            arguments["timestep"] = _for_each_row(arguments["timestep"], rows, sample.device)
        form = tuple((name, _form_of(name, value, rows)) for name, value in sorted(arguments.items()))
        same = tuple((name, digests.of(name, value, rows)) for name, value in sorted(arguments.items()))
        return arguments, rows, form, same

    def alone(self, call: Call) -> Outcome:
        """The call as the pipeline made it."""
        return self.real(*call.args, **call.kwargs)

    def together(self, calls: Sequence[Call], pad_to: int = 0) -> list[Outcome]:
        """Calls of one key as one forward, of at least ``pad_to`` rows; to each its rows."""
        counts = [call.rows for call in calls]
        names = calls[0].arguments
        joined = {name: _joined(name, [call.arguments[name] for call in calls], counts, pad_to) for name in names}
        out = self.real(**joined)
        total = max(sum(counts), pad_to)
        parts, begin = [], 0
        for count in counts:
            parts.append(_rows_of(out, begin, begin + count, total))
            begin += count
        return parts


class Hub:
    """Runs pipelines in greenlets and their hooked calls in shared forwards. Everything happens on one thread."""

    def __init__(
        self, most_rows: int, is_out_of_memory: Callable[[BaseException], bool], lessons: Lessons | None = None
    ) -> None:
        """``most_rows``: of one forward that may be tried, where the device's memory does not say."""
        self.forwards = 0  #: run so far
        self.rows = 0  #: in them, without padding
        self._most_rows = most_rows
        self._is_out_of_memory = is_out_of_memory
        self._lessons = lessons or Lessons(None)
        self._hooks: dict[int, Hook] = {}  # by the module's id; a hook holds its module
        self._parked: list[Call] = []
        self._ended: list[Run] = []
        self._digests = Digests()
        self._turn = 0
        self._favoured = False  # whether the last forward was led by an urgent call before its turn
        self._home: greenlet | None = None  # where greenlets return to when they park
        self._runs: dict[greenlet, Run] = {}

    # -- modules ------------------------------------------------------------------------------------------------------

    def hook(
        self, module: torch.nn.Module, name: str, *, weights: str = "", denoiser: bool = True, checked: bool = False
    ) -> None:
        """Let calls of a module park. Once for each module, while it is loaded.

        ``weights``: what tells its weights from others, for what is learnt of it; see `Hook` for the rest.
        """
        if id(module) not in self._hooks:
            self._hooks[id(module)] = Hook(self, module, name, weights, denoiser=denoiser, checked=checked)

    def refused(self, module: torch.nn.Module) -> str | None:
        """Why a module's calls do not share, if that has been seen."""
        hook = self._hooks.get(id(module))
        return None if hook is None else hook.refused

    def unhook(self, module: torch.nn.Module) -> None:
        """The module computes by itself again; pipelines that still use it go on with that."""
        hook = self._hooks.pop(id(module), None)
        if hook is not None:
            hook.remove()

    # -- pipelines ----------------------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether any run has not ended."""
        return bool(self._parked)

    def start(
        self, work: Callable[[], Any], sharing: Sharing, *, urgent: bool = False, setting: Setting | None = None
    ) -> Run:
        """Run a pipeline up to its first parked call."""
        run = Run(sharing, urgent, setting)

        def body() -> None:
            try:
                run.result = work()
            except BaseException as error:  # noqa: BLE001 - one image's end is no other's
                run.error = error
            run.ended = True

        run._greenlet = greenlet(body)  # noqa: SLF001 - the two classes are one mechanism
        self._runs[run._greenlet] = run  # noqa: SLF001
        self._go_on(run, None)
        return run

    def stop(self, run: Run, error: BaseException) -> None:
        """Unwind a pipeline by an exception at the call where it is parked."""
        call = run._call  # noqa: SLF001
        if run.ended or call is None:
            return
        self._parked.remove(call)
        self._go_on(run, error=error)

    def take_ended(self) -> list[Run]:
        """The runs that ended since the last time."""
        ended, self._ended = self._ended, []
        return ended

    def advance(self) -> bool:
        """One forward for the group whose turn it is, and its pipelines up to where they park again; False if idle."""
        if not self._parked:
            return False
        group = self._choose()
        for call in group:
            self._parked.remove(call)
        self._serve(group)
        return True

    def park(self, hook: Hook, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Outcome:
        """What a hooked module does instead of computing, when one of the hub's pipelines calls it."""
        run = self._runs.get(getcurrent())
        # gradients and autocast are the caller's context, which a shared forward would not have
        if run is None or torch.is_grad_enabled() or torch.is_autocast_enabled(_kind_of(args, kwargs)):
            return hook.real(*args, **kwargs)
        call = self._call(hook, run, args, kwargs)
        run._call = call  # noqa: SLF001
        self._parked.append(call)
        assert self._home is not None  # it started this greenlet
        return self._home.switch()

    # -- inside -------------------------------------------------------------------------------------------------------

    def _call(self, hook: Hook, run: Run, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        self._turn += 1
        if hook.shares(run.sharing):
            try:
                arguments, rows, form_key, same = hook.read(args, kwargs, self._digests)
            except Unshareable as reason:
                _refuse(hook, str(reason))
            else:
                form_key = run.sharing, run.setting is not None, form_key
                form = hook.forms.setdefault(form_key, Form(self._most_rows))
                key = id(hook), form_key, same, run.setting
                call = Call(hook, run, args, kwargs, arguments, rows, key, form, self._turn)
                if not form.learnt:
                    with torch.no_grad():
                        self._learn(call, form_key)
                return call
        return Call(hook, run, args, kwargs, {}, 0, object(), Form(0, shared=False), self._turn)

    def _learn(self, call: Call, form_key: Hashable) -> None:
        """Find out once how many rows pay, and for `Sharing.EXACT` which numbers of rows give equal bits."""
        form, hook = call.form, call.hook
        form.learnt = True
        name = f"{hook.name}|{hook.weights}|{form_key!r}"
        lesson = self._lessons.recall(name)
        if lesson is None:
            try:
                lesson = self._find_out(call)
            except Exception as error:  # noqa: BLE001 - what the test cannot do, the calls need not do
                if not self._is_out_of_memory(error):
                    _refuse(hook, f"{type(error).__name__}: {error}"[:200])
                    form.shared = False
                    return
                error.__traceback__ = None
                lesson = Lesson(most=call.rows)
            else:
                self._lessons.keep(name, lesson)
        form.most, form.spans = lesson.most, lesson.spans
        log.info(
            "rows learnt",
            action="rows_learnt",
            module=hook.name,
            sharing=call.run.sharing.value,
            most=form.most,
            spans=lesson.spans,
        )

    def _find_out(self, call: Call) -> Lesson:
        hook = call.hook
        if call.run.sharing is Sharing.EXACT:
            made, seconds = _equal_rows(call)
            spans = {rows: span for rows in range(1, EXACT_ROWS + 1) if (span := span_for(rows, made)) is not None}
            if not spans:
                _refuse(hook, "no numbers of rows give equal bits", promise=True)
            # What pays may only take rows away: within a span the bits are equal.
            return Lesson(rows_that_pay(seconds), spans)
        limit = _limit_of(call, self._most_rows)
        return Lesson(rows_that_pay(_seconds_by_rows(call, limit, self._is_out_of_memory)))

    def _choose(self) -> list[Call]:
        """The oldest call and those that fit to it; an urgent one first, but not twice past an older one."""
        oldest = self._parked[0]
        urgent = next((call for call in self._parked if call.run.urgent), None)
        if urgent is not None and urgent is not oldest and not self._favoured:
            lead, self._favoured = urgent, True
        else:
            lead, self._favoured = oldest, False
        span = lead.span
        group, rows = [lead], lead.rows
        most = min(span[1], max(lead.form.most, span[0]))
        rest = sorted(self._parked, key=lambda call: (not call.run.urgent, call.turn))
        for call in rest:
            if call is not lead and call.key == lead.key and rows + call.rows <= most and call.span == span:
                group.append(call)
                rows += call.rows
        return group

    def _serve(self, group: list[Call]) -> None:
        """Compute the group's calls and let their pipelines go on; what fails is made smaller first."""
        lead = group[0]
        short = False  # of memory
        failure: BaseException | None = None
        outcomes: list[Outcome] = []
        try:
            with torch.no_grad():
                outcomes = self._compute(group)
        except Exception as error:  # noqa: BLE001 - sorted out below, where its frames hold no tensors any more
            short = self._is_out_of_memory(error)
            failure = error
        if failure is None:
            for call, outcome in zip(group, outcomes, strict=True):
                self._hand_over(call, outcome)
            return
        if len(group) == 1:
            self._go_on(lead.run, error=failure)
            return
        failure.__traceback__ = None
        if short:
            rows = sum(call.rows for call in group)
            lead.form.most = max(lead.rows, min(lead.form.most, rows // 2))
            log.warning("split for lack of memory", action="group_split", module=lead.hook.name, rows=rows)
            _give_memory_back(lead)
            middle = len(group) // 2
            self._serve(group[:middle])
            self._serve(group[middle:])
            return
        # One of them is at fault, or this module cannot share: alone it shows.
        for call in group:
            self._serve([call])
        if not any(isinstance(call.run.error, type(failure)) for call in group):
            lead.form.shared = False
            _refuse(lead.hook, f"{type(failure).__name__}: {failure}"[:200])

    def _compute(self, group: list[Call]) -> list[Outcome]:
        lead = group[0]
        hook, form = lead.hook, lead.form
        self.forwards += 1
        rows = max(1, sum(call.rows for call in group))
        self.rows += rows
        metrics.FORWARD_ROWS.observe(rows)
        if lead.run.setting is not None:
            lead.run.setting.apply()
        least, _ = lead.span
        if lead.run.sharing is Sharing.EXACT and least:
            return hook.together(group, least)
        if len(group) == 1:
            return [hook.alone(lead)]
        if form.tested:
            return hook.together(group)
        together = hook.together(group)
        alone = [hook.alone(call) for call in group]
        form.tested = True
        if not all(_is_close(one, other) for one, other in zip(together, alone, strict=True)):
            form.shared = False
            _refuse(hook, "a shared forward gives something else than one alone")
        return alone

    def _hand_over(self, call: Call, outcome: Outcome) -> None:
        if call.hook.checked and not _is_finite(outcome):
            self._go_on(call.run, error=NanOutput("the image came out as NaN"))
        else:
            self._go_on(call.run, outcome)

    def _go_on(self, run: Run, outcome: Outcome = None, *, error: BaseException | None = None) -> None:
        """Switch to a pipeline until it parks or ends."""
        task = run._greenlet  # noqa: SLF001
        assert task is not None
        run._call = None  # noqa: SLF001
        before, self._home = self._home, getcurrent()
        task.parent = self._home
        if run.setting is not None:  # the text encoder, which does not park, has it too
            run.setting.apply()
        # Pipelines switch gradients off for themselves, but that is the thread's: one that ends would switch them on
        # for those that are parked.
        with torch.no_grad():
            if error is not None:
                task.throw(error)
            elif task:
                task.switch(outcome)
            else:
                task.switch()
        self._home = before
        if run.ended:
            del self._runs[task]
            run._greenlet = None  # noqa: SLF001
            self._ended.append(run)


class Digests:
    """Content of tensors that calls must have in common, read once for each tensor."""

    def __init__(self) -> None:
        self._known: Any = WeakIdKeyDictionary()

    def of(self, name: str, value: Any, rows: int) -> Hashable:
        """What of an argument is no row of a sample: equal for calls that may share. None if all of it is rows."""
        if isinstance(value, torch.Tensor):
            return None if _is_rows(name, value, rows) else self._of_tensor(value)
        if isinstance(value, dict):
            return tuple(self.of(name, part, rows) for _, part in sorted(value.items()))
        if isinstance(value, (list, tuple)):
            return tuple(self.of(name, part, rows) for part in value)
        return None

    def _of_tensor(self, value: torch.Tensor) -> bytes:
        # the pipeline gives the same tensor at every step: ask the device once
        version, digest = self._known.get(value, (-1, b""))
        if version != value._version:  # noqa: SLF001 - torch's own count of writes
            data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            version, digest = value._version, hashlib.sha256(data.numpy().tobytes()).digest()  # noqa: SLF001
            self._known[value] = (version, digest)
        return bytes(digest)


# -- reading and joining calls -----------------------------------------------------------------------------------------


def _is_rows(name: str, value: torch.Tensor, rows: int) -> bool:
    return value.ndim > 0 and value.shape[0] == rows and name not in BATCH_FREE


def _is_one_timestep(value: Any, rows: int) -> bool:
    if isinstance(value, torch.Tensor):
        return value.ndim == 0 or (value.numel() == 1 and rows != 1)
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _for_each_row(timestep: Any, rows: int, device: torch.device) -> torch.Tensor:
    """One timestep as a vector (rows,), as models make of it themselves."""
    return torch.as_tensor(timestep, device=device).reshape(-1).expand(rows)


def _form_of(name: str, value: Any, rows: int) -> Hashable:
    """What must be alike in calls of one forward, beside content. Raises `Unshareable`."""
    if isinstance(value, torch.Tensor):
        # schedulers differ in the type of their timesteps; models turn all into float32
        kind = None if name == "timestep" else value.dtype
        if _is_rows(name, value, rows):
            return "rows", tuple(value.shape[1:]), kind, value.device
        return "same", tuple(value.shape), kind, value.device
    if isinstance(value, dict):
        return tuple((key, _form_of(name, part, rows)) for key, part in sorted(value.items()))
    if isinstance(value, (list, tuple)):
        return type(value), tuple(_form_of(name, part, rows) for part in value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return type(value), value
    raise Unshareable(f"{name} is a {type(value).__name__}")


def _joined(name: str, values: list[Any], counts: list[int], pad_to: int) -> Any:
    """One argument of several calls as the argument of one forward."""
    first = values[0]
    if isinstance(first, torch.Tensor):
        if not _is_rows(name, first, counts[0]):
            return first
        if len({value.dtype for value in values}) > 1:  # timesteps: see `_form_of`
            values = [value.to(torch.float32) for value in values]
        missing = pad_to - sum(counts)
        if missing > 0:
            values = [*values, values[-1][-1:].expand(missing, *first.shape[1:])]
        # in one memory layout, because kernels round differently in another, and a neighbour could bring it
        return torch.cat([value.contiguous() for value in values]).contiguous()
    if isinstance(first, dict):
        return {key: _joined(name, [value[key] for value in values], counts, pad_to) for key in first}
    if isinstance(first, (list, tuple)):
        return type(first)([_joined(name, list(parts), counts, pad_to) for parts in zip(*values, strict=True)])
    return first


def _rows_of(out: Outcome, begin: int, end: int, total: int) -> Outcome:
    """The rows of what a module returned. Raises `Unshareable` if it has not a row for each sample."""
    if isinstance(out, torch.Tensor):
        if out.ndim == 0 or out.shape[0] != total:
            raise Unshareable("what it returns has not a row for each sample")
        return out[begin:end]
    if isinstance(out, dict):  # diffusers' output classes are ordered dicts with fields
        return type(out)(**{key: _rows_of(part, begin, end, total) for key, part in out.items()})
    if isinstance(out, (list, tuple)):
        return type(out)([_rows_of(part, begin, end, total) for part in out])
    if out is None:
        return None
    raise Unshareable(f"it returns a {type(out).__name__}")


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


def _kind_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    first = next(iter(_tensors([*args, *kwargs.values()])), None)
    return "cpu" if first is None else first.device.type


# -- what was computed -------------------------------------------------------------------------------------------------


def _is_finite(outcome: Outcome) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in _tensors(outcome))


def _is_close(one: Outcome, other: Outcome) -> bool:
    """Whether two results differ by rounding alone; what is not finite says nothing."""
    for here, there in zip(_tensors(one), _tensors(other), strict=True):
        if not (torch.isfinite(here).all() and torch.isfinite(there).all()):
            continue
        allowed = TOLERANCE.get(there.dtype, TOLERANCE_HALF) * max(float(there.abs().max()), 1e-6)
        if float((here - there).abs().max()) > allowed:
            return False
    return True


def _equal_rows(call: Call) -> tuple[dict[int, bytes | None], dict[int, float]]:
    """For each number of rows: what one row gives in it, None where that depends on its place; and the seconds.

    The rows are made up from a fixed seed, not the call's, so every process finds the same on the same machine.
    """
    made: dict[int, bytes | None] = {}
    seconds: dict[int, float] = {}
    for rows in range(1, EXACT_ROWS + 1):
        found = set()
        for others in (False, True):  # the row at every place, and among others
            out, took = _tried(call, rows, others=others)
            seconds[rows] = min(took, seconds.get(rows, took))
            for place in range(1 if others else rows):
                row = _tensors(_rows_of(out, place, place + 1, rows))
                data = b"".join(part.cpu().contiguous().view(torch.uint8).numpy().tobytes() for part in row)
                found.add(hashlib.sha256(data).digest())
        made[rows] = found.pop() if len(found) == 1 else None
    return made, seconds


def span_for(rows: int, made: dict[int, bytes | None]) -> tuple[int, int] | None:
    """Least and most rows of forwards for calls of ``rows``: the longest span of equal results, the first of such.

    It must hold two of them, and may pad one of them to no more than twice its rows. None equals nothing.
    """
    best: tuple[int, int] | None = None
    begin = 1
    for count in sorted(made):
        if count > 1 and (made[count] is None or made[count] != made[count - 1]):
            begin = count
        fits = made[count] is not None and begin <= 2 * rows <= count
        if fits and (best is None or count - begin > best[1] - best[0]):
            best = begin, count
    return best


def rows_that_pay(seconds: dict[int, float]) -> int:
    """The least number of rows that takes, for each row, about the least time; from the seconds of forwards."""
    best = min(took / rows for rows, took in seconds.items())
    return min(rows for rows, took in seconds.items() if took / rows <= WORTH * best)


def _seconds_by_rows(call: Call, limit: int, is_out_of_memory: Callable[[BaseException], bool]) -> dict[int, float]:
    """What forwards of 1, 2, 4 … rows take, up to what fits the device and the time there is for trying."""
    seconds: dict[int, float] = {}
    counts = [2**power for power in range(limit.bit_length())]
    begun = time.monotonic()
    for _ in range(3):  # all of them in turn, so that a busy moment of the machine is not one count's alone
        for rows in counts:
            if len(seconds) > 1 and time.monotonic() - begun > TRY_SECONDS:
                return seconds
            try:
                took = _tried(call, rows, others=True)[1]
            except Exception as error:
                if not is_out_of_memory(error) or not seconds:
                    raise
                _give_memory_back(call)
                counts = counts[: counts.index(rows)]
                break
            seconds[rows] = min(took, seconds.get(rows, took))
    return seconds


def _tried(call: Call, rows: int, *, others: bool) -> tuple[Outcome, float]:
    """A forward of made-up rows, and its seconds."""
    arguments = {name: _made_up(name, value, call.rows, rows, others) for name, value in call.arguments.items()}
    if call.run.setting is not None:
        call.run.setting.apply()
    _wait_for(call)
    begun = time.perf_counter()
    out = call.hook.real(**arguments)
    _wait_for(call)
    return out, time.perf_counter() - begun


def _made_up(name: str, value: Any, call_rows: int, rows: int, others: bool) -> Any:
    """An argument for ``rows`` samples, made up: the same one for all of them, or for the first among ``others``."""
    if isinstance(value, torch.Tensor):
        if not _is_rows(name, value, call_rows):
            return value
        if not value.is_floating_point():
            return value[:1].expand(rows, *value.shape[1:]).contiguous()
        shape = tuple(value.shape[1:])
        made = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(0)).repeat(rows, *[1] * len(shape))
        if others:
            made[1:] = torch.randn((rows - 1, *shape), generator=torch.Generator("cpu").manual_seed(rows))
        return made.to(device=value.device, dtype=value.dtype)
    if isinstance(value, dict):
        return {key: _made_up(name, part, call_rows, rows, others) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)([_made_up(name, part, call_rows, rows, others) for part in value])
    return value


# -- the device's memory --------------------------------------------------------------------------------------------


def rows_that_fit(peak_bytes: int, rows: int, free_bytes: int) -> int:
    """Rows of one forward, from what a forward of ``rows`` took at its peak and what is free."""
    each = max(1, -(-peak_bytes // rows))
    return max(1, min(MOST_ROWS_ON_DEVICE, int(free_bytes * MEMORY_SHARE) // each))


def _limit_of(call: Call, otherwise: int) -> int:
    """Rows to try at most: by the memory that one row takes of a CUDA device, else ``otherwise``."""
    limit = otherwise
    sample = next(iter(_tensors(call.arguments)))
    if sample.device.type == "cuda":
        where = sample.device
        _tried(call, 1, others=True)  # the first one allocates what stays
        torch.cuda.reset_peak_memory_stats(where)
        before = torch.cuda.memory_allocated(where)
        _tried(call, 1, others=True)
        peak = torch.cuda.max_memory_allocated(where) - before
        kept = torch.cuda.memory_reserved(where) - torch.cuda.memory_allocated(where)
        limit = rows_that_fit(peak, 1, torch.cuda.mem_get_info(where)[0] + kept)
    return limit if call.hook.denoiser else min(limit, MOST_ROWS_BESIDE)


def _wait_for(call: Call) -> None:
    """Let a CUDA device finish, so that a clock says what it took."""
    if any(tensor.device.type == "cuda" for tensor in _tensors(call.arguments)):
        torch.cuda.synchronize()


def _give_memory_back(call: Call) -> None:
    if any(tensor.device.type == "cuda" for tensor in _tensors(call.arguments)):
        torch.cuda.empty_cache()


def _refuse(hook: Hook, reason: str, *, promise: bool = False) -> None:
    """Say once for each module that its calls run alone; ``promise``: only those that must be exact."""
    if hook.refused is None and not promise:
        hook.refused = reason
        log.warning("runs alone", action="batching_refused", module=hook.name, reason=reason)
    elif promise:
        log.info("exact images run alone", action="exact_alone", module=hook.name, reason=reason)
