"""Measures the built-in model: `python -m tools.starter.evaluate`.

Prompts name combinations of colour, shape and background that no stage has seen. The judge says what each
image shows; it was trained on drawn scenes only, and its own accuracy is reported beside. Seeds are fixed: the same
weights on the same machine give the same figures.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from diffusers import DiffusionPipeline
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from tools.starter import attributes, depth, vae
from tools.starter.captions import plain
from tools.starter.images import pixels
from tools.starter.judge import JUDGE_WEIGHTS, Judge
from tools.starter.scenes import COLOURS, Colour, DrawnScene, Scene, draw, recolour, sample
from workers.starter import WEIGHTS
from workers.starter.load import load

SEED: Final = 4_000
BATCH: Final = 10

#: Where the shape and colour of each slot stand among the attributes.
_SHAPES: Final = (1, 4, 7)
_COLOURS: Final = (2, 5, 8)


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How often the images show what was asked, each in the range 0 to 1; a thing counts as one case per slot."""

    background: float
    colour: float
    shape: float
    position: float
    everything: float
    count: int


@dataclass(frozen=True, slots=True)
class Case:
    """One held-out scene with a drawn image of it and the seed of its noise."""

    scene: Scene
    drawn: DrawnScene
    seed: int


def cases(count: int, things: int) -> list[Case]:
    """Held-out scenes with one or two things."""
    found = []
    for number in range(count):
        rng = np.random.default_rng((SEED, things, number))
        scene = sample(rng, things=things, unseen=True)
        found.append(Case(scene, draw(scene, rng), SEED + number))
    return found


def load_judge() -> Judge:
    """The shipped judge."""
    judge = Judge()
    judge.load_state_dict({key: value.float() for key, value in load_file(JUDGE_WEIGHTS).items()})
    return judge.eval()


def measure_accuracy(judge: Judge, images: NDArray[np.uint8], scenes: list[Scene]) -> Accuracy:
    """Judges images (N, H, W, 3) of scenes."""
    seen = judge.say(pixels(images))
    asked = torch.tensor([attributes.classes(scene) for scene in scenes])
    right = seen == asked
    filled = asked[:, _SHAPES] > 0
    place = ((seen[:, _SHAPES] > 0) == filled).all(1)
    everything = right[:, [0, *_SHAPES, *_COLOURS]].all(1)

    def mean(values: Tensor) -> float:
        return values.float().mean().item()

    return Accuracy(mean(right[:, 0]), mean(right[:, _COLOURS][filled]), mean(right[:, _SHAPES][filled]), mean(place),
                   mean(everything), len(scenes))  # fmt: skip


class StarterPipelines:
    """The four pipelines at the shipped defaults, in one thread's float32."""

    def __init__(self) -> None:
        self.settings: dict[str, Any] = json.loads((WEIGHTS / "farm.json").read_text())
        self.size = int(self.settings["size"])
        self._pipelines = load(torch.float32)
        for pipeline in self._pipelines.values():
            pipeline.set_progress_bar_config(disable=True)
        self.depth_estimator = self._pipelines["depth-to-image"].depth_estimator

    @property
    def vae(self) -> Any:
        """The autoencoder that all four share."""
        return self._pipelines["text-to-image"].vae

    def render(self, task: str, prompts: list[str], seeds: list[int], **inputs: Any) -> NDArray[np.uint8]:
        """Images (N, H, W, 3); the inputs are the pipeline's own, over the defaults."""
        made = []
        settings = {"guidance_scale": self.settings["guidance_scale"],
                    "num_inference_steps": self.settings["num_inference_steps"]}  # fmt: skip
        if task in ("text-to-image", "inpainting"):
            settings |= {"height": self.size, "width": self.size}
        pipeline: DiffusionPipeline = self._pipelines[task]
        for some in track(list(_blocks(len(prompts))), task, transient=True):
            given = {key: value[some] if isinstance(value, list) else value for key, value in inputs.items()}
            generators = [torch.Generator().manual_seed(seed) for seed in seeds[some]]
            output = pipeline(prompts[some], generator=generators, output_type="np", **{**settings, **given})
            made.append((output.images * 255).round().astype(np.uint8))
        return np.concatenate(made)


def _blocks(count: int) -> Iterator[slice]:
    for start in range(0, count, BATCH):
        yield slice(start, start + BATCH)


def text_to_image(
    starter: StarterPipelines, judge: Judge, count: int, things: int, guidance: float | None = None
) -> Accuracy:
    """Asks for held-out scenes in plain words."""
    asked = cases(count, things)
    given = {} if guidance is None else {"guidance_scale": guidance}
    images = starter.render(
        "text-to-image", [plain(case.scene) for case in asked], [case.seed for case in asked], **given
    )
    return measure_accuracy(judge, images, [case.scene for case in asked])


def image_to_image(starter: StarterPipelines, judge: Judge, count: int, strength: float = 0.8) -> Accuracy:
    """Asks for another colour of the first thing, in an image of a held-out scene."""
    asked = cases(count, 1)
    wanted = [recolour(case.scene, _other_colour(case.scene)) for case in asked]
    images = starter.render(
        "image-to-image",
        [plain(scene) for scene in wanted],
        [case.seed for case in asked],
        image=[Image.fromarray(case.drawn.rgb) for case in asked],
        strength=strength,
    )
    return measure_accuracy(judge, images, wanted)


def inpainting(starter: StarterPipelines, judge: Judge, count: int) -> tuple[Accuracy, float]:
    """Asks for another right-hand thing in a pair, repainting the right half.

    Returns:
        The accuracy, and the mean difference of the other half from what went in, in steps of 255. The pipeline passes
        that half through the autoencoder too, and the difference includes it.
    """
    asked = cases(count, 2)
    wanted = []
    for case in asked:
        left, right = case.scene.things
        colour = _other_colour(case.scene)
        wanted.append(
            Scene(case.scene.background, (left, recolour(Scene(case.scene.background, (right,)), colour).things[0]))
        )
    half = starter.size // 2
    mask = np.zeros((starter.size, starter.size), np.uint8)
    mask[:, half:] = 255
    images = starter.render(
        "inpainting",
        [plain(scene) for scene in wanted],
        [case.seed for case in asked],
        image=[Image.fromarray(case.drawn.rgb) for case in asked],
        mask_image=[Image.fromarray(mask)] * len(asked),
        strength=1.0,
    )
    given = np.stack([case.drawn.rgb for case in asked])
    # One latent cell beside the seam is shared by both sides and left out.
    kept = np.abs(images[:, :, : half - 8].astype(int) - given[:, :, : half - 8]).mean()
    return measure_accuracy(judge, images, wanted), float(kept)


def depth_to_image(starter: StarterPipelines, judge: Judge, count: int) -> tuple[Accuracy, float]:
    """Asks for another colour with the drawn image's depth; the prompt names no place.

    Returns:
        The accuracy, and the mean correlation of the result's estimated depth with the input's.
    """
    asked = cases(count, 1)
    wanted = [recolour(case.scene, _other_colour(case.scene)) for case in asked]
    images = starter.render(
        "depth-to-image",
        [plain(scene, placed=False) for scene in wanted],
        [case.seed for case in asked],
        image=[Image.fromarray(case.drawn.rgb) for case in asked],
        strength=1.0,
    )
    with torch.no_grad():
        shrunk = functional.interpolate(pixels(images), size=(depth.SIGHT, depth.SIGHT), mode="area")
        found = depth.estimate(starter.depth_estimator, shrunk).flatten(1)
    exact = torch.stack([torch.from_numpy(1 / case.drawn.depth) for case in asked])
    exact = functional.interpolate(exact[:, None], size=(depth.SIGHT, depth.SIGHT), mode="area").flatten(1)
    correlations = [np.corrcoef(a, b)[0, 1] for a, b in zip(found.numpy(), exact.numpy(), strict=True)]
    return measure_accuracy(judge, images, wanted), float(np.mean(correlations))


def _other_colour(scene: Scene) -> Colour:
    taken = {scene.background, *(thing.colour for thing in scene.things)}
    free = [colour for colour in COLOURS if colour not in taken]
    return free[COLOURS.index(scene.things[0].colour) % len(free)]


def sheet(starter: StarterPipelines, path: Path, side: int = 8) -> None:
    """Writes `side` x `side` held-out prompts rendered at the defaults as one PNG."""
    count = side * side
    asked = [case for pair in zip(cases(count // 2, 1), cases(count // 2, 2), strict=True) for case in pair]
    images = starter.render("text-to-image", [plain(case.scene) for case in asked], [case.seed for case in asked])
    rows = [np.concatenate(list(images[start : start + side]), 1) for start in range(0, count, side)]
    Image.fromarray(np.concatenate(rows, 0)).save(path)


def seconds_per_image(starter: StarterPipelines) -> float:
    """The median time of five single text-to-image jobs, in seconds."""
    times = []
    for number in range(5):
        began = time.perf_counter()
        starter.render("text-to-image", [str(starter.settings["example_prompts"][0])], [number])
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def main() -> None:
    """Prints the table, and writes the figures as JSON and the sheet as PNG where asked."""
    parser = argparse.ArgumentParser(prog="python -m tools.starter.evaluate", description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=200, help="prompts per task (default 200)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--guidance", type=float, nargs="*", help="also try these guidance scales")
    parser.add_argument("--only", choices=["text-to-image"], help="leave the other tasks out")
    parser.add_argument("--sheet", type=Path, help="write 8 x 8 samples here")
    parser.add_argument("--json", type=Path, help="write the figures here")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    starter, judge, console = StarterPipelines(), load_judge(), Console(width=120)

    accuracies: dict[str, Accuracy] = {}
    figures: dict[str, float] = {}
    drawn = [case for things in (1, 2) for case in cases(asked.count, things)]
    given = np.stack([case.drawn.rgb for case in drawn])
    accuracies["the judge on drawn, held-out scenes"] = measure_accuracy(judge, given, [case.scene for case in drawn])
    rebuilt = torch.cat(
        [vae.decode(starter.vae, vae.encode(starter.vae, some)) for some in torch.split(pixels(given[:64]), 8)]
    )
    error = ((rebuilt - pixels(given[:64])) ** 2).mean().item()
    figures["autoencoder, dB"] = 10 * np.log10(4 / error)
    for things, name in ((1, "one thing"), (2, "two things")):
        accuracies[f"text-to-image, {name}"] = text_to_image(starter, judge, asked.count, things)
        for guidance in asked.guidance or ():
            found = text_to_image(starter, judge, asked.count, things, guidance)
            accuracies[f"text-to-image, {name}, guidance {guidance:g}"] = found
    if not asked.only:
        accuracies["image-to-image, recolour, strength 0.8"] = image_to_image(starter, judge, asked.count)
        accuracies["inpainting, right half"], figures["inpainting, change outside the mask, of 255"] = inpainting(
            starter, judge, asked.count
        )
        accuracies["depth-to-image, recolour"], figures["depth-to-image, correlation of depth"] = depth_to_image(
            starter, judge, asked.count
        )
    figures["text-to-image, seconds per image"] = seconds_per_image(starter)

    table = Table("", "background", "colour", "shape", "position", "everything", "prompts")
    for name, found in accuracies.items():
        shares = (found.background, found.colour, found.shape, found.position, found.everything)
        table.add_row(name, *(f"{share:.1%}" for share in shares), str(found.count))
    console.print(table)
    for name, value in figures.items():
        console.print(f"{name}: {value:.3g}", highlight=False)
    if asked.sheet:
        sheet(starter, asked.sheet)
    if asked.json:
        accuracy = {
            name: {key: getattr(found, key) for key in Accuracy.__slots__} for name, found in accuracies.items()
        }
        asked.json.write_text(json.dumps({"accuracy": accuracy, "figures": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
