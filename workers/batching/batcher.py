"""Runs pipelines in greenlets, and the calls of their hooked modules in shared forwards."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import structlog
import torch
from greenlet import getcurrent, greenlet  # type: ignore[import-untyped, unused-ignore]

from farm import metrics
from farm.errors import JobCanceled, NanOutput
from workers import device_errors
from workers.batch_profiles import BatchProfile, BatchProfiles
from workers.batching.calls import (
    BatchMode,
    ExactPlan,
    ExactSharing,
    ModuleHook,
    ModuleState,
    NotBatchable,
    Output,
    ParkedCall,
    PipelineRun,
    SignatureState,
    TensorDigests,
    tensors_in,
)
from workers.batching.exact import ExactCalls, same_bits
from workers.batching.row_selection import empty_cache, measure_profile
from workers.checkpoints.record import MISSING, Moment, OutputRecord, Recording

log = structlog.stdlib.get_logger()

#: By how much a shared forward may differ from a separate one, relative to the largest value. Rounding stays below it;
#: a module that mixes its rows does not.
TOLERANCE: Final = {torch.float32: 1e-3, torch.float64: 1e-6}
TOLERANCE_HALF: Final = 5e-2


class ContinuousBatcher:
    """Runs pipelines and forwards, all on one thread.

    The oldest parked call leads the next forward, so every call is served. An interactive call goes before older ones,
    but not twice in a row.
    """

    def __init__(
        self,
        max_rows: int,
        profiles: BatchProfiles | None = None,
    ) -> None:
        """Start without pipelines.

        Args:
            max_rows: Of one forward, on a device whose memory is not measured.
            profiles: What was measured before; None: profiles are not kept.
        """
        self.forwards = 0  #: run so far
        self.rows = 0  #: in them, without padding
        self._max_rows = max_rows
        self._profiles = profiles or BatchProfiles(None)
        self._hooks: dict[int, ModuleHook] = {}  # by the module's id; a hook holds its module
        self._parked: list[ParkedCall] = []
        self._finished: list[PipelineRun] = []
        self._digests = TensorDigests()
        self._sequence = 0
        self._interactive_led = False  # whether an interactive call led the last forward, before older ones
        self._resumer: greenlet | None = None  # which resumed the current pipeline, and continues when that parks
        self._runs: dict[greenlet, PipelineRun] = {}
        self._forward_ended_at: float | None = None  # while jobs are on the device
        self._measured: ParkedCall | None = None  # whose exact sharing is measured, a few forwards at a time

    # -- modules ------------------------------------------------------------------------------------------------------

    def hook(
        self,
        module: torch.nn.Module,
        name: str,
        *,
        weights: str = "",
        denoiser: bool = True,
        check_finite: bool = False,
        recording: Recording = Recording.NOTHING,
    ) -> None:
        """Let calls of a module park; once for each module, while it is loaded. See `ModuleHook` for the arguments."""
        if id(module) not in self._hooks:
            self._hooks[id(module)] = ModuleHook(
                module,
                name,
                self._call,
                weights=weights,
                denoiser=denoiser,
                check_finite=check_finite,
                recording=recording,
            )

    def unhook(self, module: torch.nn.Module) -> None:
        """Let the module compute by itself again; pipelines that still use it continue that way."""
        hook = self._hooks.pop(id(module), None)
        if hook is not None:
            hook.remove()
            if self._measured is not None and self._measured.hook is hook:
                self._measured = None

    def refusal(self, module: torch.nn.Module) -> str | None:
        """Why a module's calls run alone, if that is known."""
        hook = self._hooks.get(id(module))
        return None if hook is None else hook.refusal

    # -- pipelines ----------------------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether any run is unfinished."""
        return bool(self._parked)

    def start(
        self,
        pipeline: Callable[[], Any],
        mode: BatchMode,
        *,
        interactive: bool = False,
        state: ModuleState | None = None,
        on_park: Callable[[torch.nn.Module], None] | None = None,
        record: OutputRecord | None = None,
        stop: threading.Event | None = None,
    ) -> PipelineRun:
        """Run a pipeline up to its first parked call.

        Args:
            pipeline: Calls the pipeline.
            mode: What is guaranteed for its forwards.
            interactive: Whether its calls go before others.
            state: That its modules need.
            on_park: Called each time the pipeline is about to wait in a hooked module. Then no other run is beside it,
                and its modules compute nothing but its calls.
            record: Answers its first denoiser calls, and gets the others; None: nothing is recorded.
            stop: Ends it before a call that does not wait.
        """
        run = PipelineRun(mode, interactive, state, on_park, record, stop)

        def body() -> None:
            try:
                run.result = pipeline()
            except BaseException as error:  # noqa: BLE001 - it ends this image only
                run.error = error
            run.finished = True

        run.greenlet = greenlet(body)
        self._runs[run.greenlet] = run
        self._resume(run)
        return run

    def stop(self, run: PipelineRun, error: BaseException) -> None:
        """Raise an error in a pipeline at its parked call."""
        call = run.parked_call
        if run.finished or call is None:
            return
        self._parked.remove(call)
        self._resume(run, error=error)

    def moment_of(self, run: PipelineRun) -> Moment | None:
        """Where a parked run is: in front of which recorded call; None if it is in front of another one."""
        call = run.parked_call
        if call is None or call.hook.recording is Recording.NOTHING or run.random_state is None:
            return None
        return Moment(call.hook.name, call.hook.sample_of(call.args, call.kwargs), run.random_state)

    def take_finished(self) -> list[PipelineRun]:
        """The runs that finished since the last call."""
        finished, self._finished = self._finished, []
        return finished

    def advance(self) -> bool:
        """Run one forward for the next group of calls, and their pipelines until they park again; False if idle."""
        if not self._parked:
            return False
        group = self._next_group()
        for call in group:
            self._parked.remove(call)
        started = time.monotonic()
        self._run_group(group)
        self._measure_exact(time.monotonic() - started)
        if not self._runs:
            self._forward_ended_at = None  # from here on the device is idle because nothing is to be done
        return True

    # -- calls --------------------------------------------------------------------------------------------------------

    def _call(self, hook: ModuleHook, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Output:
        """Called in place of a hooked module's forward: answers from the run's record, or computes."""
        run = self._runs.get(getcurrent())
        record = None if run is None or hook.recording is Recording.NOTHING else run.record
        if run is None or record is None:
            return self._park(run, hook, args, kwargs)
        answer = record.answer(hook.name, hook.sample_of(args, kwargs))
        if answer is not MISSING:
            return answer
        output = self._park(run, hook, args, kwargs)
        record.add(hook.name, output, hook.recording)
        return output

    def _park(self, run: PipelineRun | None, hook: ModuleHook, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Output:
        """In a pipeline's greenlet, wait until a forward has computed the call; elsewhere compute it."""
        # gradients and autocast belong to the caller's context, which a shared forward would not have
        if run is None or torch.is_grad_enabled() or torch.is_autocast_enabled(_device_type(args, kwargs)):
            if run is not None and run.stop is not None and run.stop.is_set():
                raise JobCanceled("the job was stopped")
            return hook.original(*args, **kwargs)
        if run.on_park is not None:
            run.on_park(hook.module)
        call = self._parked_call(hook, run, args, kwargs)
        run.parked_call = call
        self._parked.append(call)
        assert self._resumer is not None
        return self._resumer.switch()

    def _parked_call(
        self, hook: ModuleHook, run: PipelineRun, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> ParkedCall:
        self._sequence += 1
        if hook.allows(run.mode):
            try:
                found = hook.signature_of(args, kwargs, self._digests, exact=run.mode is BatchMode.EXACT)
            except NotBatchable as reason:
                hook.refuse(str(reason))
            else:
                shapes = run.mode, run.state is not None, found.shapes
                signature = hook.signatures.setdefault(shapes, SignatureState(self._max_rows))
                key = id(hook), shapes, found.content, run.state
                call = ParkedCall(hook, run, args, kwargs, found.arguments, found.rows, key, signature, self._sequence)
                if run.mode is BatchMode.EXACT:
                    call.exact = self._exact_calls(call, shapes)
                elif not signature.profiled and run.on_park is None:  # else the module may hold the call's state
                    with torch.random.fork_rng(devices=()), torch.no_grad():
                        self._profile(call, shapes)
                return call
        never = SignatureState(0, batchable=False)
        return ParkedCall(hook, run, args, kwargs, {}, 0, object(), never, self._sequence)

    def _profile(self, call: ParkedCall, shapes: Hashable) -> None:
        """Load or measure, once for each signature, how many rows its forwards get."""
        signature, hook = call.signature, call.hook
        signature.profiled = True
        name = f"{hook.name}|{hook.weights}|{shapes!r}"
        profile = self._profiles.load(name)
        if profile is None:
            try:
                profile = measure_profile(call, self._max_rows)
            except Exception as error:
                if device_errors.is_device_failure(error):
                    raise
                if not device_errors.is_out_of_memory(error):
                    hook.refuse(f"{type(error).__name__}: {error}"[:200])
                    signature.batchable = False
                    return
                error.__traceback__ = None
                profile = BatchProfile(max_rows=call.rows)
            else:
                self._profiles.save(name, profile)
        signature.max_rows = profile.max_rows
        log.info("batch profile", action="batch_profile_ready", module=hook.name, max_rows=profile.max_rows)

    def _exact_calls(self, call: ParkedCall, shapes: Hashable) -> ExactSharing:
        """What is known about the exact sharing of calls like this one."""
        state = None if call.run.state is None else call.run.state.key  # LoRAs add modules
        key = call.rows, state
        if key not in call.signature.exact:
            profile = self._profiles.load(_exact_name(call, shapes))
            known = None if profile is None else ExactPlan(profile.calls, frozenset(profile.modules))
            call.signature.exact[key] = ExactCalls(call.hook, call.rows, self._max_rows, known)
        return call.signature.exact[key]

    def _measure_exact(self, seconds: float) -> None:
        """Measure how calls share exactly, for about as long as the last forward took.

        Until that is known they run alone, with the same bits, so no job waits for the measurement.
        """
        call = self._measured
        if call is None or call.exact is None:
            return
        try:
            with torch.no_grad():
                call.apply_state()
                call.exact.measure(call, seconds)
        except Exception as error:
            if device_errors.is_device_failure(error):
                raise
            error.__traceback__ = None
            call.exact.refuse()
            if device_errors.is_out_of_memory(error):
                empty_cache(call)
            else:
                call.hook.refuse(f"{type(error).__name__}: {error}"[:200])
        if not call.exact.finished:
            return
        self._measured = None
        plan = call.exact.plan
        if plan is not None:
            shapes = call.key[1] if isinstance(call.key, tuple) else None
            self._profiles.save(_exact_name(call, shapes), BatchProfile(0, plan.calls, tuple(sorted(plan.modules))))
        log.info(
            "exact sharing",
            action="exact_sharing_ready",
            module=call.hook.name,
            rows=call.rows,
            calls=() if plan is None else plan.calls,  # that may share a forward; none: they run alone
            chunked=0 if plan is None else len(plan.modules),  # modules that run in chunks of one call
        )

    def _next_group(self) -> list[ParkedCall]:
        """The oldest call and those that fit it; an interactive one first, but not twice before an older one."""
        oldest = self._parked[0]
        interactive = next((call for call in self._parked if call.run.interactive), None)
        if interactive is not None and interactive is not oldest and not self._interactive_led:
            lead, self._interactive_led = interactive, True
        else:
            lead, self._interactive_led = oldest, False
        group, rows = [lead], lead.rows
        for call in sorted(self._parked, key=lambda call: (not call.run.interactive, call.sequence)):
            if call is lead or not call.fits(lead):
                continue
            if lead.exact is not None and not lead.exact.finished and self._measured is None:
                self._measured = lead  # another call could have shared this forward
            if rows + call.rows <= lead.max_rows:
                group.append(call)
                rows += call.rows
        return group if lead.exact is None else group[: lead.exact.count_of(len(group))]

    # -- forwards -----------------------------------------------------------------------------------------------------

    def _run_group(self, group: list[ParkedCall]) -> None:
        """Compute the group's calls and resume their pipelines; a forward that fails is split first.

        Raises what means that the device failed.
        """
        lead = group[0]
        out_of_memory = False
        failure: BaseException | None = None
        outputs: list[Output] = []
        try:
            with self._random_state_of(lead.run), torch.no_grad():
                before = torch.get_rng_state()
                outputs = self._compute(group)
                draws = len(group) > 1 and not torch.equal(before, torch.get_rng_state())
                if draws:
                    torch.set_rng_state(before)
            if draws:  # then a row depends on those beside it
                lead.signature.batchable = False
                if lead.exact is not None:
                    lead.exact.refuse()
                lead.hook.refuse("it draws random numbers")
                for call in group:
                    self._run_group([call])
                return
        except Exception as error:
            out_of_memory = device_errors.is_out_of_memory(error)
            if device_errors.is_device_failure(error):
                raise  # every further forward would fail, too
            failure = error
        if failure is None:
            for call, output in zip(group, outputs, strict=True):
                self._return_output(call, output)
            return
        if len(group) == 1:
            self._resume(lead.run, error=failure)
            return
        failure.__traceback__ = None
        if out_of_memory:
            rows = sum(call.rows for call in group)
            lead.signature.max_rows = max(lead.rows, min(lead.signature.max_rows, rows // 2))
            metrics.FORWARD_SPLITS.inc()
            log.warning("out of memory: splitting a forward", action="forward_split", module=lead.hook.name, rows=rows)
            empty_cache(lead)
            middle = len(group) // 2
            self._run_group(group[:middle])
            self._run_group(group[middle:])
            return
        # Either one of the calls is invalid or the module cannot be batched: separate forwards show which.
        for call in group:
            self._run_group([call])
        if not any(isinstance(call.run.error, type(failure)) for call in group):
            lead.signature.batchable = False
            lead.hook.refuse(f"{type(failure).__name__}: {failure}"[:200])

    def _compute(self, group: list[ParkedCall]) -> list[Output]:
        lead = group[0]
        self.forwards += 1
        rows = max(1, sum(call.rows for call in group))
        self.rows += rows
        metrics.FORWARD_ROWS.observe(rows)
        lead.apply_state()
        if self._forward_ended_at is not None:
            metrics.FORWARD_GAP_SECONDS.observe(time.perf_counter() - self._forward_ended_at)
        with metrics.timed(metrics.FORWARD_SECONDS):
            outputs = self._forward(group)
        self._forward_ended_at = time.perf_counter()
        return outputs

    def _forward(self, group: list[ParkedCall]) -> list[Output]:
        lead = group[0]
        hook, signature = lead.hook, lead.signature
        if len(group) == 1:
            return [hook.run_alone(lead)]
        if lead.exact is not None:
            return self._compute_exact(group, lead.exact)
        if signature.verified:
            return hook.run_together(group)
        together = hook.run_together(group)
        separate = [hook.run_alone(call) for call in group]
        signature.verified = True
        if not all(_is_close(one, other) for one, other in zip(together, separate, strict=True)):
            signature.batchable = False
            hook.refuse("a shared forward gives another result than separate ones")
        return separate

    def _compute_exact(self, group: list[ParkedCall], exact: ExactSharing) -> list[Output]:
        hook = group[0].hook
        together = hook.run_together(group)
        if not exact.is_check_due():
            return together
        separate = [hook.run_alone(call) for call in group]
        if not all(same_bits(one, other) for one, other in zip(together, separate, strict=True)):
            exact.refuse()
            hook.refuse("a shared forward gives other bits than separate ones")
        return separate

    @contextmanager
    def _random_state_of(self, run: PipelineRun) -> Iterator[None]:
        """Let torch's own generator on the CPU continue where the run left it."""
        outer = torch.get_rng_state()
        if run.random_state is not None:
            torch.set_rng_state(run.random_state)
        try:
            yield
        finally:
            run.random_state = torch.get_rng_state()
            torch.set_rng_state(outer)

    def _return_output(self, call: ParkedCall, output: Output) -> None:
        if call.hook.check_finite and not _is_finite(output):
            self._resume(call.run, error=NanOutput("the image contains NaN"))
        else:
            self._resume(call.run, output)

    def _resume(self, run: PipelineRun, output: Output = None, *, error: BaseException | None = None) -> None:
        """Switch to a pipeline until it parks or finishes."""
        task = run.greenlet
        assert task is not None
        run.parked_call = None
        before, self._resumer = self._resumer, getcurrent()
        task.parent = self._resumer
        if run.state is not None:  # the text encoder, which does not park, needs it, too
            run.state.apply()
        # A few pipelines draw from torch's own generator, so each run has a state of its own. And pipelines switch
        # gradients off, but for the whole thread: one that finishes would switch them on for those that are parked.
        with self._random_state_of(run), torch.no_grad():
            if error is not None:
                task.throw(error)
            elif task:
                task.switch(output)
            else:
                task.switch()
        self._resumer = before
        if run.finished:
            del self._runs[task]
            run.greenlet = None
            self._finished.append(run)


def _exact_name(call: ParkedCall, shapes: Hashable) -> str:
    state = None if call.run.state is None else call.run.state.key
    return f"{call.hook.name}|{call.hook.weights}|{shapes!r}|{call.rows}|{state!r}"


def _device_type(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    first = next(iter(tensors_in([*args, *kwargs.values()])), None)
    return "cpu" if first is None else first.device.type


def _is_finite(output: Output) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors_in(output))


def _is_close(one: Output, other: Output) -> bool:
    """Whether two outputs differ by rounding only; non-finite tensors are not compared."""
    for here, there in zip(tensors_in(one), tensors_in(other), strict=True):
        if not (torch.isfinite(here).all() and torch.isfinite(there).all()):
            continue
        allowed = TOLERANCE.get(there.dtype, TOLERANCE_HALF) * max(float(there.abs().max()), 1e-6)
        if float((here - there).abs().max()) > allowed:
            return False
    return True
