"""The farm's worker with a renderer that returns noise: ``celery -A tests.noise_engine worker``.

All but the forward passes in the engine's process (`tests.noise_device`) is real.
"""

from __future__ import annotations

import os
import time

if clock := os.environ.get("FARM_CHAOS_CLOCK"):  # seconds, or seconds@when: from so many seconds after the start on
    # Everything in this process that asks Python for the time of day is told a wrong one, and so is what signs the
    # storage's requests. Not moved: the monotonic clock, as a clock that is set leaves it.
    import importlib
    from datetime import timedelta
    from typing import Any

    auth: Any = importlib.import_module("botocore.auth")
    _seconds, _, _when = clock.partition("@")
    _true, _signing, _jump = time.time, auth.get_current_datetime, time.monotonic() + float(_when or 0)

    def ahead() -> float:
        return float(_seconds) if time.monotonic() >= _jump else 0.0

    time.time = lambda: _true() + ahead()
    auth.get_current_datetime = lambda *more, **named: _signing(*more, **named) + timedelta(seconds=ahead())

from workers import engine_process

engine_process.MODULE = "tests.noise_device"

from workers.app import app  # noqa: E402, F401 - Celery finds it here
