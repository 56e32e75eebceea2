"""How many jobs wait at a worker: by Little's law, from what it measures."""

from __future__ import annotations

from workers.prefetch import PrefetchControl


def settled(control: PrefetchControl, beside: float, on_device: float) -> int:
    for _ in range(200):
        control.record(beside=beside, on_device=on_device)
    return control.jobs


def test_the_prefetch_follows_from_the_measured_times() -> None:
    control = PrefetchControl(slots=4, least=2, most=32)
    assert control.jobs == 2
    assert settled(control, 0.03, 0.8) == 2  # beside its servers
    # 4 jobs in 0.8 s are 5 a second: in 1.2 s beside the device 6 jobs come and go
    assert settled(control, 1.2, 0.8) == 2 + 6
    assert settled(control, 3.2, 0.8) == 2 + 16
    assert settled(control, 0.03, 0.8) == 2  # the servers have moved near again


def test_an_outage_does_not_fill_the_worker() -> None:
    control = PrefetchControl(slots=4, least=2, most=32)
    settled(control, 0.03, 20.0)
    control.record(beside=300.0, on_device=20.0)  # the storage did not answer for five minutes
    assert control.jobs == 2
    assert settled(control, 300.0, 20.0) == 2 + 2
    assert settled(control, 3.0, 0.0) == 32


def test_no_more_than_the_least_is_a_fixed_prefetch() -> None:
    assert settled(PrefetchControl(slots=4, least=2, most=0), 9.0, 0.5) == 2
