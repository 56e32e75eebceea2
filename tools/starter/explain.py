"""Draws the images of `how-diffusion-works.md` with the built-in model: `python -m tools.starter.explain`."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image, ImageDraw

from tools.starter import evaluate, unet, vae
from tools.starter.captions import plain
from tools.starter.images import pixels
from tools.starter.scenes import Colour, Place, Scene, SceneShape, Size, Thing, draw, recolour

SCENE: Final = Scene(
    Colour.BLUE,
    (
        Thing(Colour.YELLOW, SceneShape.CONE, Size.MEDIUM, Place.LEFT),
        Thing(Colour.RED, SceneShape.SPHERE, Size.MEDIUM, Place.RIGHT),
    ),
)
PROMPT: Final = plain(SCENE)
SEED: Final = 7
GAP, CAPTION = 8, 18


def strip(images: Sequence[Image.Image], labels: Sequence[str], path: Path) -> None:
    """Writes images side by side with a label under each."""
    width, height = images[0].size
    canvas = Image.new("RGB", (len(images) * (width + GAP) - GAP, height + CAPTION), "white")
    pen = ImageDraw.Draw(canvas)
    for number, (one, label) in enumerate(zip(images, labels, strict=True)):
        canvas.paste(one, (number * (width + GAP), 0))
        pen.text((number * (width + GAP) + 4, height + 4), label, fill="black")
    canvas.save(path)


def image(values: torch.Tensor) -> Image.Image:
    """One image (3, H, W) in the range -1 to 1."""
    return Image.fromarray(((values.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())


class Explainer:
    """Runs the built-in model for the sake of images."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._starter = evaluate.StarterPipelines()
        self._drawn = draw(SCENE, np.random.default_rng(SEED)).rgb

    def noise(self) -> None:
        """The forward process: one image's latents at six noise levels, decoded."""
        clean = vae.encode(self._starter.vae, pixels(self._drawn[None]))
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(SEED))
        scheduler = unet.scheduler()
        steps = (0, 100, 250, 500, 750, 999)
        noisy = [scheduler.add_noise(clean, noise, torch.tensor([step])) for step in steps]
        labels = [f"t = {step}, {scheduler.alphas_cumprod[step].item():.1%} left" for step in steps]
        strip(
            [image(vae.decode(self._starter.vae, latents)[0]) for latents in noisy], labels, self._folder / "noise.png"
        )

    def latents(self) -> None:
        """An image, its four latent channels enlarged, and what the decoder makes of them."""
        found = vae.encode(self._starter.vae, pixels(self._drawn[None]))
        channels = [
            image((channel / vae.SCALING).expand(3, -1, -1)).resize((128, 128), Image.Resampling.NEAREST)
            for channel in found[0]
        ]
        images = [Image.fromarray(self._drawn), *channels, image(vae.decode(self._starter.vae, found)[0])]
        labels = ["128 x 128 pixels", *(f"latent {number}, 16 x 16" for number in range(4)), "decoded"]
        strip(images, labels, self._folder / "latents.png")

    def denoising(self) -> None:
        """The reverse process: what the denoiser believes the image is, and the noisy latents, at six of 20 steps."""
        kept: list[tuple[int, torch.Tensor]] = []

        def keep(
            _pipeline: Any, step: int, _timestep: int, tensors: dict[str, torch.Tensor]
        ) -> dict[str, torch.Tensor]:
            kept.append((step, tensors["latents"][:1].clone()))
            return tensors

        self._starter.render("text-to-image", [PROMPT], [SEED], callback_on_step_end=keep)
        shown = [kept[number] for number in (0, 3, 6, 9, 13, 19)]
        images = [image(vae.decode(self._starter.vae, latents)[0]) for _, latents in shown]
        strip(images, [f"after step {step + 1}" for step, _ in shown], self._folder / "denoising.png")

    def guidance(self) -> None:
        """The same seed and prompt under six guidance scales."""
        scales = (1.0, 1.5, 2.0, 3.0, 5.0, 9.0)
        made = [self._one("text-to-image", guidance_scale=scale) for scale in scales]
        strip(made, [f"guidance {scale:g}" for scale in scales], self._folder / "guidance.png")

    def steps(self) -> None:
        """The same seed and prompt in 1 to 50 steps."""
        counts = (1, 2, 4, 10, 20, 50)
        made = [self._one("text-to-image", num_inference_steps=count) for count in counts]
        strip(made, [f"{count} steps" for count in counts], self._folder / "steps.png")

    def strength(self) -> None:
        """An image repainted with a little to very much noise."""
        wanted = plain(recolour(SCENE, Colour.GREEN))
        strengths = (0.2, 0.4, 0.6, 0.8, 1.0)
        source = Image.fromarray(self._drawn)
        made = [self._one("image-to-image", wanted, image=[source], strength=strength) for strength in strengths]
        labels = ["given", *(f"strength {strength:g}" for strength in strengths)]
        strip([source, *made], labels, self._folder / "strength.png")

    def _one(self, task: str, prompt: str = PROMPT, **inputs: Any) -> Image.Image:
        return Image.fromarray(self._starter.render(task, [prompt], [SEED], **inputs)[0])


def main() -> None:
    """Draws all of them."""
    parser = argparse.ArgumentParser(prog="python -m tools.starter.explain", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("docs/images"))
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    asked.folder.mkdir(parents=True, exist_ok=True)
    explainer = Explainer(asked.folder)
    for draw_one in (
        explainer.noise,
        explainer.latents,
        explainer.denoising,
        explainer.guidance,
        explainer.steps,
        explainer.strength,
    ):
        draw_one()


if __name__ == "__main__":
    main()
