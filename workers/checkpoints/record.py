"""Records what the denoisers of a job's pipeline calls return, and answers the same calls again from the record.

An attempt that goes on makes the same pipeline calls as the one before it. The first denoiser calls of each are
answered from the record instead of computed, so the scheduler, the generator and the pipeline's loop come to the state
in which the earlier attempt left them, whatever the pipeline. Nothing of a pipeline's own state is stored.

A record is checked where it ends: the first denoiser call that is computed must have the same input, and torch's own
generator the same state, as in the attempt that wrote the record. If not, `RecordMismatch` ends the call, and the job
begins anew without its record.

The engine's thread alone uses a `JobRecord`. A `Snapshot` is never changed after it was taken, so that another thread
can write it while the device goes on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, NamedTuple

import torch

from workers.checkpoints.part_format import InvalidPart, NotRecordable, describe, pack, rebuild, unpack

#: By how much the input of the first computed call may differ, relative to its largest value, if the job is not exact.
TOLERANCE: Final = 5e-2


class Recording(StrEnum):
    """What is recorded of a module's calls."""

    NOTHING = "nothing"
    VALUES = "values"
    #: Of a ControlNet: its large outputs go to the denoiser only, which is answered from the record, too.
    SHAPES = "shapes"


class RecordMismatch(Exception):
    """A call that continues a record is not the call that was recorded."""


class Call(NamedTuple):
    """One recorded call."""

    module: str
    structure: Any  #: of the output, as JSON; a tensor is ``{"at": i}``, or its shape and type
    tensors: tuple[torch.Tensor, ...]


class Moment(NamedTuple):
    """Where a pipeline call is: in front of its next denoiser call, which is not recorded."""

    module: str
    sample: torch.Tensor | None  #: the module's first input
    random_state: torch.Tensor  #: of torch's own generator on the CPU


@dataclass(frozen=True)
class Segment:
    """Successive calls of one output."""

    index: int  #: of the output
    first: int  #: how many calls were recorded before
    calls: tuple[Call, ...]
    then: Moment | None  #: what comes after them; None: no further denoiser call, or it is not known


@dataclass(frozen=True)
class Snapshot:
    """What was recorded since the last one, to be stored by another thread."""

    fingerprint: str
    steps: int  #: denoising steps of the whole job that are recorded up to here
    segments: tuple[Segment, ...]
    size: int  #: bytes of its tensors
    fresh: bool  #: whether it is the first of a record that continues no other one

    def to_bytes(self) -> bytes:
        """The file of this part. Takes time: not for the engine's thread."""
        tensors: dict[str, torch.Tensor] = {}

        def name_of(tensor: torch.Tensor) -> str:
            name = str(len(tensors))
            tensors[name] = tensor
            return name

        segments = []
        for one in self.segments:
            calls = [[call.module, call.structure, [name_of(tensor) for tensor in call.tensors]] for call in one.calls]
            then = None
            if one.then is not None:
                sample = None if one.then.sample is None else name_of(one.then.sample)
                then = [one.then.module, sample, name_of(one.then.random_state)]
            segments.append({"index": one.index, "first": one.first, "calls": calls, "then": then})
        return pack({"fingerprint": self.fingerprint, "steps": self.steps, "segments": segments}, tensors)


@dataclass
class OutputRecord:
    """The denoiser calls of one output."""

    index: int
    exact: bool
    answers: list[Call] = field(default_factory=list)  #: of an earlier attempt
    then: Moment | None = None  #: what came after them
    made: int = 0  #: calls so far, answered or computed
    pending: list[Call] = field(default_factory=list)  #: computed, and not in a snapshot yet
    size: int = 0  #: bytes of the pending ones
    enabled: bool = True

    def answer(self, module: str, sample: torch.Tensor | None) -> Any:
        """What the earlier attempt's call returned; `MISSING` if it is to be computed. Raises `RecordMismatch`."""
        if self.made < len(self.answers):
            call = self.answers[self.made]
            if call.module != module:
                raise RecordMismatch(f"call {self.made} is of {module}, and {call.module} was recorded")
            self.made += 1
            device = torch.device("cpu") if sample is None else sample.device
            return rebuild(call.structure, lambda found: _tensor(found, call.tensors, device))
        if self.then is not None:
            expected, self.then = self.then, None
            self.answers.clear()  # frees them: they are never asked for again
            self._check(expected, Moment(module, sample, torch.get_rng_state()))
        return MISSING

    def add(self, module: str, output: Any, recording: Recording) -> None:
        """Record a call that was computed."""
        self.made += 1
        if not self.enabled:
            return
        tensors: list[torch.Tensor] = []

        def keep(tensor: torch.Tensor) -> dict[str, Any]:
            if recording is Recording.SHAPES:
                return {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
            tensors.append(tensor.detach().clone())  # pipelines change what they get, and a row holds its whole forward
            return {"at": len(tensors) - 1}

        try:
            structure = describe(output, keep)
        except NotRecordable:
            self.disable()
            return
        self.pending.append(Call(module, structure, tuple(tensors)))
        self.size += sum(tensor.nbytes for tensor in tensors)

    def disable(self) -> None:
        """Record nothing more: a gap cannot be continued."""
        self.enabled = False
        self.pending.clear()
        self.size = 0

    def take(self, then: Moment | None) -> Segment:
        """What was recorded since the last time."""
        segment = Segment(self.index, self.made - len(self.pending), tuple(self.pending), then)
        self.pending.clear()
        self.size = 0
        return segment

    def _check(self, expected: Moment, now: Moment) -> None:
        if expected.module != now.module:
            raise RecordMismatch(f"call {self.made} is of {now.module}, and {expected.module} was recorded")
        if not torch.equal(expected.random_state, now.random_state):
            raise RecordMismatch("torch's generator is in another state than in the recorded call")
        if expected.sample is None or now.sample is None:
            return
        there, here = expected.sample, now.sample.detach().cpu()
        if there.shape != here.shape or there.dtype != here.dtype:
            raise RecordMismatch(f"call {self.made} has another shape or type than the recorded one")
        if not (torch.equal(there, here) if self.exact else _is_close(there, here)):
            raise RecordMismatch(f"the input of call {self.made} has other values than that of the recorded one")


MISSING: Final = object()


class JobRecord:
    """The record of one job's denoiser calls."""

    def __init__(self, fingerprint: str, *, exact: bool) -> None:
        """Start empty.

        Args:
            fingerprint: Of all that decides what the calls return, see `fingerprint_of`.
            exact: Whether the job is.
        """
        self._fingerprint = fingerprint
        self._exact = exact
        self._outputs: dict[int, OutputRecord] = {}
        self._fresh = True
        self.enabled = True  #: whether calls are recorded

    def load(self, parts: Iterable[bytes]) -> int:
        """Continue the record of an earlier attempt; returns how many steps of the job it has.

        Raises:
            InvalidPart: It is not a record, or has a gap.
            RecordMismatch: It was made under other conditions.
        """
        steps = 0
        loaded: dict[int, OutputRecord] = {}
        for body in parts:
            header, tensors = unpack(body)
            if header.get("fingerprint") != self._fingerprint:
                raise RecordMismatch("it was recorded with another recipe, model, library or numerics class")
            try:
                steps = int(header["steps"])
                for found in header["segments"]:
                    record = loaded.setdefault(int(found["index"]), OutputRecord(int(found["index"]), self._exact))
                    if int(found["first"]) != len(record.answers):
                        raise InvalidPart("calls are missing")
                    for module, structure, names in found["calls"]:
                        record.answers.append(Call(module, structure, tuple(tensors[name] for name in names)))
                    then = found["then"]
                    if then is None:
                        record.then = None
                    else:
                        sample = None if then[1] is None else tensors[then[1]]
                        record.then = Moment(then[0], sample, tensors[then[2]])
            except (KeyError, TypeError, ValueError) as error:
                raise InvalidPart(f"{type(error).__name__}: {error}"[:200]) from error
        self._outputs = loaded
        self._fresh = not loaded
        return steps

    def output(self, index: int) -> OutputRecord:
        """The record of one output."""
        if index not in self._outputs:
            self._outputs[index] = OutputRecord(index, self._exact)
        found = self._outputs[index]
        if not self.enabled:
            found.disable()
        return found

    def begin_anew(self) -> None:
        """Forget the earlier attempt's calls, and record nothing more in this one."""
        self.disable()
        for record in self._outputs.values():
            record.answers.clear()
            record.then = None
        self._outputs = {}

    def disable(self) -> None:
        """Record nothing more; what earlier snapshots have stays valid."""
        self.enabled = False
        for record in self._outputs.values():
            record.disable()

    @property
    def pending_bytes(self) -> int:
        """What is recorded and not in a snapshot yet, on the device."""
        return sum(record.size for record in self._outputs.values())

    def snapshot(self, steps: int, moments: Mapping[int, Moment | None]) -> Snapshot | None:
        """What was recorded since the last snapshot; None if that is nothing.

        Args:
            steps: Denoising steps of the job that are done.
            moments: By output that is being rendered: where its pipeline call is.
        """
        if any(not record.enabled for record in self._outputs.values()):
            self.disable()  # a job goes on as a whole
        if not self.enabled:
            return None
        size = self.pending_bytes
        segments = [record.take(_copy(moments.get(index))) for index, record in self._outputs.items() if record.pending]
        if not segments:
            return None
        fresh, self._fresh = self._fresh, False
        return Snapshot(self._fingerprint, steps, tuple(segments), size, fresh)


def fingerprint_of(spec: Mapping[str, Any], made_with: Mapping[str, object], numerics: str | None) -> str:
    """A hash of all that decides what the denoiser calls of a job return.

    Args:
        spec: The job's, as JSON, without what decides no pixel.
        made_with: Model, weights, LoRAs, dtype and libraries.
        numerics: The class in which it is rendered; None for a job that may go on in another one.
    """
    about = {"spec": spec, "made_with": made_with, "numerics": numerics}
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()


def _copy(moment: Moment | None) -> Moment | None:
    """A moment that does not change when the pipeline goes on."""
    if moment is None or moment.sample is None:
        return moment
    return moment._replace(sample=moment.sample.detach().clone(), random_state=moment.random_state.clone())


def _tensor(found: Mapping[str, Any], tensors: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
    if "at" in found:
        tensor: torch.Tensor = tensors[found["at"]].to(device, copy=True)  # pipelines change what they get
        return tensor
    nothing: torch.Tensor = torch.zeros((), dtype=getattr(torch, found["dtype"]), device=device)
    return nothing.expand(found["shape"])


def _is_close(one: torch.Tensor, other: torch.Tensor) -> bool:
    if not one.is_floating_point():
        return torch.equal(one, other)
    one, other = one.float(), other.float()
    return float((one - other).abs().max()) <= TOLERANCE * max(float(one.abs().max()), 1e-6)
