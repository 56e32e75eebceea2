"""Other services' APIs on the same farm, so that their unmodified clients work against it.

Each adapter is an app of its own under a path of its own: what a client calls its base URL. It turns a foreign request
into the farm's own, hands it to the same functions as the native routes, and answers in the foreign shape, errors too.
They are not part of the OpenAPI document: their contracts are other people's.
"""

from __future__ import annotations

from typing import Final

from fastapi import FastAPI

from farm.api.body_limits import BodyLimit
from farm.api.compat import a1111, fal, openai, replicate
from farm.settings import Settings

#: Limits of bodies by path, where they differ from those of other paths.
LIMITS: Final = {f"{openai.PREFIX}/files": BodyLimit(openai.MAX_FILE_BYTES, on_disk=True)}


def mount(app: FastAPI, settings: Settings) -> None:
    """Put every adapter that the settings allow under its path."""
    for adapter in (openai, replicate, a1111):
        app.mount(adapter.PREFIX, adapter.application(app))
    if settings.compat_fal:
        app.mount(fal.PREFIX, fal.application(app))
