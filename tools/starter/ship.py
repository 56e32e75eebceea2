"""Writes trained parts as the folder that ships with the package: fp16 safetensors in diffusers' layout."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer, DPTForDepthEstimation

from tools.starter import captions, depth, judge, unet
from tools.starter.images import SIZE
from tools.starter.scenes import COLOURS, SHAPES, Size
from workers.starter import WEIGHTS

GUIDANCE: Final = 2.0
STEPS: Final = 20
EXAMPLES: Final = (
    "a large red sphere in the center on a blue background",
    "a green cube on the left on a white background",
    "a small yellow cone on the right on a purple background",
    "a pink cylinder and a white sphere on a black background",
    "an orange cone next to a cyan cube, green background",
    "a tiny violet ball on a yellow background, studio light",
)


def ship(tokenizer: CLIPTokenizer, parts: Mapping[str, nn.Module], folder: Path = WEIGHTS) -> None:
    """Replaces the shipped weights, and the judge beside them.

    Args:
        tokenizer: of the text encoder.
        parts: `text`, `vae`, `unet`, `unet_depth`, `depth` and `judge`.
        folder: what to replace.
    """
    text_encoder, vae, denoiser, with_depth, estimator = (
        parts[name].half() for name in ("text", "vae", "unet", "unet_depth", "depth")
    )
    assert isinstance(text_encoder, CLIPTextModel)
    assert isinstance(vae, AutoencoderKL)
    assert isinstance(denoiser, UNet2DConditionModel)
    assert isinstance(with_depth, UNet2DConditionModel)
    assert isinstance(estimator, DPTForDepthEstimation)
    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=denoiser,
        scheduler=unet.scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(fresh, safe_serialization=True)
    with_depth.save_pretrained(fresh / "unet_depth")
    estimator.save_pretrained(fresh / "depth_estimator")
    depth.processor().save_pretrained(fresh / "depth_estimator")
    weights = {key: value.to(torch.float16).contiguous() for key, value in parts["judge"].state_dict().items()}
    save_file(weights, judge.JUDGE_WEIGHTS)
    (fresh / "farm.json").write_text(json.dumps(_farm(), indent=2) + "\n")
    _forget_paths(fresh)
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)


def _farm() -> dict[str, object]:
    """What the rest of the farm reads about the model."""
    return {
        "size": SIZE,
        "guidance_scale": GUIDANCE,
        "num_inference_steps": STEPS,
        "vocabulary": {
            "colors": [colour.value for colour in COLOURS],
            "shapes": [shape.value for shape in SHAPES],
            "sizes": [word for size in (Size.SMALL, Size.LARGE) for word in captions.SIZE_WORDS[size]],
            "places": ["on the left", "in the center", "on the right", "left of", "right of", "next to", "and"],
            "background": ["on a blue background", "in front of a yellow wall", "in a green room"],
            "synonyms": {
                **{colour.value: list(words[1:]) for colour, words in captions.COLOUR_WORDS.items()},
                **{shape.value: list(words[1:]) for shape, words in captions.SHAPE_WORDS.items()},
            },
        },
        "example_prompts": list(EXAMPLES),
    }


def _forget_paths(folder: Path) -> None:
    """Removes the paths of the training machine that the libraries write into their configurations."""
    for path in folder.rglob("*.json"):
        settings = json.loads(path.read_text())
        if isinstance(settings, dict) and settings.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n")
