"""A job as the device sees it: what goes into the engine, and what comes out."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Final

from PIL import Image

from farm.domain.cost import steps_run
from farm.domain.model import Model
from farm.domain.states import Priority
from farm.domain.tasks import JobSpec

#: Of a preview: with its base64 and its name it stays below the 8,000 bytes of a notification of PostgreSQL.
PREVIEW_BYTES: Final = 5_600


@dataclass(frozen=True)
class Rendered:
    """What came out for one job."""

    images: list[Image.Image]  #: RGB, (height, width) of the spec, in the order of the outputs
    made_with: dict[str, object]  #: model revision and weights, dtype, device kind, library versions


@dataclass(frozen=True)
class Preview:
    """What an image looks like on its way."""

    index: int  #: of the output
    step: int  #: denoising steps done of that output
    image: bytes  #: a JPEG of at most `PREVIEW_BYTES`

    @property
    def data_url(self) -> str:
        """As a page shows it."""
        return f"data:image/jpeg;base64,{base64.b64encode(self.image).decode()}"


@dataclass(eq=False)
class RenderWork:
    """One job as the device sees it."""

    spec: JobSpec
    model: Model
    inputs: Mapping[str, Image.Image]
    #: Both are called on the engine's thread and must not wait for anything.
    on_take_up: Callable[[], None]
    on_step: Callable[[int], None]  #: gets the denoising steps done over all outputs, 1 to `total_steps`
    stop: threading.Event  #: set from outside: the work ends at its next denoising step
    priority: Priority = Priority.NORMAL
    owner: Hashable = None  #: the job's right, which `Engine.leave` names
    suspect: bool = False  #: a worker died while it was on the device
    on_preview: Callable[[Preview], None] | None = None  #: wanted, and where it goes; must not wait for anything
    future: Future[Rendered] = field(default_factory=Future)


def total_steps(spec: JobSpec) -> int:
    """Denoising steps of a whole job, over all its outputs."""
    return steps_run(spec) * spec.num_images_per_prompt
