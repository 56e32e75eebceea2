"""One job alone on the device: the second try of one that ran out of memory; and loading of models."""

from __future__ import annotations

from collections.abc import Callable

import structlog
from PIL import Image

from farm.domain.cost import steps_run
from farm.domain.model import Model
from farm.domain.worker import Device
from farm.errors import OutOfMemory
from workers import pipelines
from workers.device import NO_UPKEEP, Upkeep, torch_device
from workers.model_cache import Residency, free
from workers.pipelines import LoadedModel
from workers.render_request import Rendered, RenderWork

log = structlog.stdlib.get_logger()


class SerialRenderer:
    """Renders work on one device. Used by the engine's thread alone."""

    def __init__(
        self,
        device: Device,
        torch_threads: int,
        move: Callable[[], None],
        on_drop: Callable[[str], None] | None = None,
        upkeep: Upkeep = NO_UPKEEP,
    ) -> None:
        """``move`` is called whenever the work gets further; ``on_drop`` see `Residency`."""
        pipelines.quiet()
        pipelines.be_deterministic(torch_threads)
        self._device = device
        self._move = move
        self._residency = Residency(device, on_drop, upkeep)

    @property
    def models(self) -> tuple[str, ...]:
        """The ids of the models in memory; may be read from any thread."""
        return self._residency.ids

    @property
    def sizes(self) -> tuple[tuple[str, int], ...]:
        """Ids and bytes of the models in memory; may be read from any thread."""
        return self._residency.sizes

    def holds(self, model: Model) -> bool:
        """Whether a model is in memory."""
        return self._residency.holds(model)

    def load(self, model: Model) -> LoadedModel:
        """Bring a model into memory. Raises `ModelUnavailable` or `OutOfMemory`."""
        try:
            return self._residency.get(model)
        except Exception as error:
            if pipelines.is_out_of_memory(error):
                raise OutOfMemory(f"the device's memory does not hold model {model.id}") from error
            raise

    def render_with_less(self, loaded: LoadedModel, work: RenderWork) -> Rendered:
        """All images of a job that ran out of memory once. Raises `OutOfMemory`, or what the pipeline raises."""
        log.warning("out of memory, trying with less", action="out_of_memory", model=work.model.id)
        # Tiles change the pixels a little, so the recipe says so.
        made_with = loaded.made_with(self._device, work.spec.loras) | {"vae": "tiled"}
        return Rendered(self._with_less_memory(loaded, work), made_with)

    def _images(self, loaded: LoadedModel, work: RenderWork) -> list[Image.Image]:
        each = steps_run(work.spec)
        images = []
        for index in range(work.spec.num_images_per_prompt):

            def on_step(step: int, before: int = index * each) -> None:
                self._move()
                work.on_step(before + step)

            images.append(pipelines.render(loaded, work.spec, index, work.inputs, on_step, work.stop))
            self._move()
        return images

    def _with_less_memory(self, loaded: LoadedModel, work: RenderWork) -> list[Image.Image]:
        """The next tries: nothing else in memory and the VAE in tiles, then only the component at work on the device.

        Raises `OutOfMemory`; another device may have more.
        """
        self._residency.drop_others(work.model.id)
        pipelines.tile(loaded, work.spec.task, on=True)
        try:
            loaded.wear(work.spec.task, work.spec.loras)
            try:
                return self._images(loaded, work)
            except Exception as error:
                if not pipelines.is_out_of_memory(error) or not self._may_offload:
                    raise
                error.__traceback__ = None  # its frames hold tensors
            log.warning("out of memory, moving weights to and fro", action="offloading", model=work.model.id)
            free()
            with pipelines.offloaded(loaded, work.spec.task, torch_device(self._device)):
                return self._images(loaded, work)
        except Exception as error:
            if not pipelines.is_out_of_memory(error):
                raise
            raise OutOfMemory(
                f"{work.spec.width}x{work.spec.height} pixels with model {work.model.id} do not fit the device's memory"
            ) from error
        finally:
            pipelines.tile(loaded, work.spec.task, on=False)

    @property
    def _may_offload(self) -> bool:
        """Whether main memory is another one than the device's."""
        return self._device.kind == "cuda"
