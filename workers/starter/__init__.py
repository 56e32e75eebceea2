"""The built-in model: a small latent diffusion model of simple 3-D scenes that renders on a CPU.

Importing this package costs nothing: torch and diffusers are imported by its modules, not here.
"""

from pathlib import Path
from typing import Final

#: A `StableDiffusionPipeline` folder, with `unet_depth/` and `depth_estimator/` beside the usual parts.
WEIGHTS: Final = Path(__file__).resolve().parent / "weights"

__all__ = ["WEIGHTS"]
