"""Allegro's VAE decodes in tiles only."""

from typing import Any

from workers.pipelines.families.quirk import Quirk


def _prepare(pipeline: Any) -> None:
    pipeline.vae.enable_tiling()


QUIRK = Quirk(families=frozenset({"allegro"}), prepare=_prepare)
