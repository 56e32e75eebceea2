"""The only code that knows diffusers' pipelines: load a model, call its pipeline, read what it returns.

The pipelines are diffusers' own, unmodified, and none of them has code of its own here: `farm.pipelines` says what a
class takes, and `families` what its signature does not say. The pipelines of one model share its components, so a model
is in memory once whatever its tasks.
"""

from workers.pipelines.files import fetch, fingerprint
from workers.pipelines.libraries import silence_libraries
from workers.pipelines.loaded_model import LoadedModel
from workers.pipelines.loading import load
from workers.pipelines.memory import cpu_offload, set_vae_tiling
from workers.pipelines.rendering import render

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
