"""The built-in model as diffusers pipelines, one for each task it serves."""

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionDepth2ImgPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextModel, CLIPTokenizer, DPTForDepthEstimation, DPTImageProcessorPil

from workers.starter import WEIGHTS


def load(dtype: torch.dtype = torch.float32) -> dict[str, DiffusionPipeline]:
    """Loads the shipped weights once and wires them into one pipeline per task.

    VAE, text encoder and tokenizer are the same objects in all four pipelines, and the first three share one UNet;
    depth-to-image has its own UNet, which takes the depth as a fifth input channel. Each pipeline has its own
    scheduler, because a scheduler keeps the state of the run it is in.

    Args:
        dtype: the type of every weight. `float32` on a CPU; the files hold `float16`.
    """
    vae = AutoencoderKL.from_pretrained(WEIGHTS, subfolder="vae", torch_dtype=dtype).eval()
    text_encoder = CLIPTextModel.from_pretrained(WEIGHTS, subfolder="text_encoder", dtype=dtype).eval()
    tokenizer = CLIPTokenizer.from_pretrained(WEIGHTS, subfolder="tokenizer")
    unet = UNet2DConditionModel.from_pretrained(WEIGHTS, subfolder="unet", torch_dtype=dtype).eval()
    unet_depth = UNet2DConditionModel.from_pretrained(WEIGHTS, subfolder="unet_depth", torch_dtype=dtype).eval()
    depth_estimator = DPTForDepthEstimation.from_pretrained(WEIGHTS, subfolder="depth_estimator", dtype=dtype).eval()
    depth_processor = DPTImageProcessorPil.from_pretrained(WEIGHTS, subfolder="depth_estimator")

    def scheduler() -> DDIMScheduler:
        return DDIMScheduler.from_pretrained(WEIGHTS, subfolder="scheduler")

    def plain(kind: type[DiffusionPipeline]) -> DiffusionPipeline:
        return kind(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    return {
        "text-to-image": plain(StableDiffusionPipeline),
        "image-to-image": plain(StableDiffusionImg2ImgPipeline),
        "inpainting": plain(StableDiffusionInpaintPipeline),
        "depth-to-image": StableDiffusionDepth2ImgPipeline(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet_depth,
            scheduler=scheduler(),
            depth_estimator=depth_estimator,
            feature_extractor=depth_processor,
        ),
    }
