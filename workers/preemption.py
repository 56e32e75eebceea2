"""Which bulk jobs on a device step back for interactive ones: a pure function of what is on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from farm.domain.cost import cost
from farm.domain.states import Priority
from workers.render_request import RenderRequest

#: A bulk job that will have left the device by then does not step back: it would not make room sooner.
MIN_SECONDS_LEFT: Final = 2.0


def choose(started: Sequence[RenderRequest], slots: int, *, held_up: bool) -> list[RenderRequest]:
    """The jobs that are to step back.

    Args:
        started: The jobs that the device has.
        slots: How many it renders at once.
        held_up: Whether an interactive job waits until the device is empty: until its model can be loaded, or until
            calls have ended beside which it may not run.

    Returns:
        All that are in its way, or none if one of these does not step back: the device would not become empty sooner.
        Else, for each interactive job that took a slot too many, the one that has done the least work.
    """
    staying = [request for request in started if not request.stop.is_set()]
    if not any(request.priority is Priority.INTERACTIVE for request in staying) and not held_up:
        return []
    lasting = [request for request in staying if not _ends_soon(request)]
    willing = [request for request in lasting if _may_step_back(request)]
    if held_up:
        in_the_way = [request for request in lasting if request.priority is not Priority.INTERACTIVE]
        return willing if len(willing) == len(in_the_way) else []
    too_many = min(len(staying) - slots, sum(request.priority is Priority.INTERACTIVE for request in staying))
    return sorted(willing, key=_work_done)[: max(0, too_many)]


def _ends_soon(request: RenderRequest) -> bool:
    left = request.speed.seconds_left
    return left is not None and left < MIN_SECONDS_LEFT


def _may_step_back(request: RenderRequest) -> bool:
    """Whether the job is one that steps back, and loses no work by it."""
    if request.on_step_back is None or request.priority is not Priority.BULK:
        return False
    return request.recorded or not request.steps_done


def _work_done(request: RenderRequest) -> float:
    return cost(request.spec) * request.steps_done / max(1, request.total_steps)
