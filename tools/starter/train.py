"""Trains the built-in model from nothing: `python -m tools.starter.train`.

The stages run one after another; each resumes from its last checkpoint, skips itself when it is finished, and may be
interrupted at any time. `--stage unet --steps 40000` trains a stage longer: it continues from the last
checkpoint. Everything is kept under `data/starter/`; `ship` alone writes into the package.
"""

import argparse
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from rich.console import Console
from rich.progress import track
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from tools.starter import depth, images, judge, ship, text, tokenizer, unet, vae
from tools.starter.images import SceneImages
from tools.starter.trainer import Trainer

FOLDER: Final = Path("data/starter")
TRAINING_SEED: Final = 1
CHECK_SEED: Final = 2  # images that no stage learns from
TRAINING_IMAGES: Final = 30_000
CHECKS: Final = 1_000

#: Steps of each stage, in the order in which the stages depend on each other.
STEPS: Final = {"text": 1_200, "vae": 2_800, "unet": 5_600, "unet_depth": 1_500, "depth": 1_500, "judge": 1_500}


@dataclass(frozen=True)
class Workspace:
    """What the stages share; each part is read or made when it is first asked for."""

    folder: Path

    @cached_property
    def tokenizer(self) -> CLIPTokenizer:
        """Learned from captions."""
        path = self.folder / "tokenizer"
        if not path.exists():
            tokenizer.build().save_pretrained(path)
        return tokenizer.load(path)

    @cached_property
    def dataset(self) -> SceneImages:
        """What every stage learns from."""
        return images.prepare(self.folder / "images", TRAINING_SEED, TRAINING_IMAGES)

    @cached_property
    def checks(self) -> SceneImages:
        """What no stage learns from."""
        return images.prepare(self.folder / "images", CHECK_SEED, CHECKS)

    @cached_property
    def encoder(self) -> CLIPTextModel:
        """The text encoder, trained and frozen."""
        return CLIPTextModel.from_pretrained(self.folder / "text" / "encoder").eval().requires_grad_(False)

    @cached_property
    def cells(self) -> dict[str, Tensor]:
        """What the denoiser learns from, computed once: latents, depths and weights, each (N, ., CELLS, CELLS)."""
        path = self.folder / "latents.pt"
        if not path.exists():
            blocks = np.array_split(np.arange(TRAINING_IMAGES), TRAINING_IMAGES // 250)
            parts = [self._block(numbers) for numbers in track(blocks, "reducing images to latents")]
            torch.save({key: torch.cat([part[key] for part in parts]) for key in parts[0]}, path)
        cells: dict[str, Tensor] = torch.load(path, weights_only=True)
        return cells

    def _block(self, numbers: np.ndarray[tuple[int], np.dtype[np.int64]]) -> dict[str, Tensor]:
        return {
            "latents": vae.thumbnail(self.dataset.images(numbers)).half(),
            "depths": unet.depth_channel(self.dataset.nearness(numbers)).half(),
            "weights": self.dataset.weight(numbers, vae.CELLS, unet.EXTRA_WEIGHT).half(),
        }


def train_text(workspace: Workspace, steps: int) -> None:
    """Teaches the text encoder to understand captions."""
    encoder, reader = text.build(workspace.tokenizer), text.reader()
    trainer = Trainer("text", workspace.folder, {"encoder": encoder, "reader": reader}, steps=steps, rate=2e-3,
                    samples=text.TextStep.BATCH)  # fmt: skip
    trainer.run(text.TextStep(encoder, reader, workspace.tokenizer))
    trainer.average()
    encoder.save_pretrained(workspace.folder / "text" / "encoder")


def train_vae(workspace: Workspace, steps: int) -> None:
    """Teaches the decoder to undo the encoder."""
    model = vae.build()
    trainer = Trainer("vae", workspace.folder, {"vae": model}, steps=steps, rate=1e-3, samples=vae.DecoderStep.WINDOWS)
    trainer.run(vae.DecoderStep(model, workspace.dataset, whole_from=steps * 3 // 4))
    trainer.average()
    model.save_pretrained(workspace.folder / "vae" / "model")
    Console().print(f"rebuilt images: {vae.psnr(model, workspace.checks, 128):.1f} dB")


def train_unet(workspace: Workspace, steps: int) -> None:
    """Teaches the denoiser to draw what a caption says."""
    model = unet.build()
    trainer = Trainer(
        "unet", workspace.folder, {"unet": model}, steps=steps, rate=1e-3, samples=unet.DenoiserStep.BATCH
    )
    trainer.run(_denoising(workspace, model))
    trainer.average()
    model.save_pretrained(workspace.folder / "unet" / "model")


def train_unet_depth(workspace: Workspace, steps: int) -> None:
    """Teaches a copy of the denoiser to follow a depth as well."""
    model = unet.with_depth(UNet2DConditionModel.from_pretrained(workspace.folder / "unet" / "model"))
    trainer = Trainer(
        "unet_depth", workspace.folder, {"unet": model}, steps=steps, rate=5e-4, samples=unet.DenoiserStep.BATCH
    )
    trainer.run(_denoising(workspace, model))
    trainer.average()
    model.save_pretrained(workspace.folder / "unet_depth" / "model")


def _denoising(workspace: Workspace, model: UNet2DConditionModel) -> unet.DenoiserStep:
    cells = workspace.cells
    depths = cells["depths"] if model.config.in_channels == 5 else None
    return unet.DenoiserStep(
        model, workspace.encoder, workspace.tokenizer, workspace.dataset, cells["latents"], cells["weights"], depths
    )


def train_depth(workspace: Workspace, steps: int) -> None:
    """Teaches the estimator to see depth."""
    model = depth.build()
    trainer = Trainer(
        "depth", workspace.folder, {"depth": model}, steps=steps, rate=2e-3, samples=depth.DepthStep.BATCH
    )
    trainer.run(depth.DepthStep(model, workspace.dataset))
    trainer.average()
    model.save_pretrained(workspace.folder / "depth" / "model")


def train_judge(workspace: Workspace, steps: int) -> None:
    """Teaches the judge to say what an image shows."""
    model = judge.build()
    trainer = Trainer(
        "judge", workspace.folder, {"judge": model}, steps=steps, rate=2e-3, samples=judge.JudgeStep.BATCH
    )
    trainer.run(judge.JudgeStep(model, workspace.dataset))
    trainer.average()
    torch.save(model.state_dict(), workspace.folder / "judge" / "model.pt")
    Console().print(f"judge right on {judge.accuracy(model, workspace.checks, CHECKS):.1%} of new images")


def export(workspace: Workspace) -> None:
    """Puts the averaged weights of every stage, finished or not, into the package."""
    encoder, reader = text.build(workspace.tokenizer), text.reader()
    latest: dict[str, torch.nn.Module] = {"text": encoder, "vae": vae.build(), "unet": unet.build()}
    latest |= {"unet_depth": unet.build(channels=5), "depth": depth.build(), "judge": judge.build()}
    names = {"text": "encoder", "unet_depth": "unet"}
    for stage, model in latest.items():
        if not (workspace.folder / stage / "last.pt").exists():
            raise SystemExit(f"stage {stage} has not been trained yet: run it with --stage {stage}")
        modules: dict[str, torch.nn.Module] = {names.get(stage, stage): model}
        if stage == "text":
            modules["reader"] = reader
        Trainer(stage, workspace.folder, modules, steps=1, rate=0, samples=1).average()
    ship.ship(workspace.tokenizer, latest)


STAGES: Final[dict[str, Callable[[Workspace, int], None]]] = {
    "text": train_text,
    "vae": train_vae,
    "unet": train_unet,
    "unet_depth": train_unet_depth,
    "depth": train_depth,
    "judge": train_judge,
}


def main() -> None:
    """Runs the stages that were asked for, by default all of them and then `ship`."""
    parser = argparse.ArgumentParser(prog="python -m tools.starter.train", description=__doc__.split("\n")[0])
    parser.add_argument("--stage", choices=[*STAGES, "ship"], action="append", help="only this stage (may be repeated)")
    parser.add_argument("--steps", type=int, help="steps of the stage, counted from its first")
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"where checkpoints are kept (default {FOLDER})")
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", "1")))
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    for number in (signal.SIGINT, signal.SIGTERM):
        # Also where a shell started this in the background and had it ignore interrupts: a stop is never a loss.
        signal.signal(number, signal.default_int_handler)
    workspace = Workspace(asked.folder)
    for stage in asked.stage or [*STAGES, "ship"]:
        if stage == "ship":
            export(workspace)
        else:
            STAGES[stage](workspace, asked.steps or STEPS[stage])


if __name__ == "__main__":
    main()
