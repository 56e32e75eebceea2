"""The only code that knows diffusers' pipelines: load a model, call its pipeline, read what it returns.

The pipelines are diffusers' own, unmodified, and none of them has code of its own here: `farm.pipelines` says what a
class takes, and `families` what its signature does not say. The pipelines of one model share its components, so a model
is in memory once whatever its tasks.
"""

from workers.torchvision_operators import declare_missing_operators

declare_missing_operators()  # before the first import of a model of transformers

from workers.pipelines.files import fetch, fingerprint  # noqa: E402
from workers.pipelines.libraries import silence_libraries  # noqa: E402
from workers.pipelines.loaded_model import LoadedModel  # noqa: E402
from workers.pipelines.loading import load  # noqa: E402
from workers.pipelines.memory import cpu_offload, set_vae_tiling  # noqa: E402
from workers.pipelines.rendering import render  # noqa: E402

__all__ = [
    "LoadedModel",
    "cpu_offload",
    "fetch",
    "fingerprint",
    "load",
    "render",
    "set_vae_tiling",
    "silence_libraries",
]
