"""Pipelines without a text: unconditional and class-conditional images, and Shap-E's turntables of 3D objects."""

from __future__ import annotations

from typing import Any

from diffusers import (
    CMStochasticIterativeScheduler,
    ConsistencyModelPipeline,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    HeunDiscreteScheduler,
    LDMPipeline,
    PNDMPipeline,
    PNDMScheduler,
    PriorTransformer,
    RePaintPipeline,
    RePaintScheduler,
    ScoreSdeVePipeline,
    ScoreSdeVeScheduler,
    ShapEImg2ImgPipeline,
    ShapEPipeline,
    UNet2DModel,
    VQModel,
)
from diffusers.pipelines.shap_e.renderer import ShapERenderer

from tests.contract.families.family import Call, Family, image, video
from tests.contract.families.inputs import PROMPT, mask, picture
from tests.contract.families.text_encoders import (
    WIDTH,
    clip_image_processor,
    clip_text_encoder_with_projection,
)
from tests.contract.families.text_encoders_video import clip_vision_model
from tests.contract.families.tokenizers import clip_tokenizer

SIDE = 32

#: The frames of Shap-E's camera around an object.
_TURN = 20


def _unet(**changes: Any) -> UNet2DModel:
    return UNet2DModel(
        **{
            "sample_size": SIDE,
            "block_out_channels": (16, 32),
            "norm_num_groups": 8,
            "layers_per_block": 1,
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        }
        | changes
    )


def _consistency_model(**changes: Any) -> DiffusionPipeline:
    scheduler = CMStochasticIterativeScheduler(num_train_timesteps=40, sigma_min=0.002, sigma_max=80.0)
    return ConsistencyModelPipeline(unet=_unet(**changes), scheduler=scheduler)


def _latent_diffusion() -> DiffusionPipeline:
    autoencoder = VQModel(
        block_out_channels=(16, 16),
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=3,
        num_vq_embeddings=64,
    )
    return LDMPipeline(vqvae=autoencoder, unet=_unet(sample_size=SIDE // 2), scheduler=DDIMScheduler())


def _shap_e(**prior: Any) -> dict[str, Any]:
    width = 8
    return {
        "prior": PriorTransformer(
            num_attention_heads=2,
            attention_head_dim=16,
            embedding_dim=width,
            num_embeddings=32,
            embedding_proj_dim=WIDTH,
            time_embed_dim=32,
            num_layers=1,
            clip_embed_dim=2 * width,
            additional_embeddings=0,
            time_embed_act_fn="gelu",
            norm_in_type="layer",
            encoder_hid_proj_type=None,
            added_emb_type=None,
            **prior,
        ),
        "scheduler": HeunDiscreteScheduler(
            beta_schedule="exp",
            num_train_timesteps=1024,
            prediction_type="sample",
            use_karras_sigmas=True,
            clip_sample=True,
        ),
        "shap_e_renderer": ShapERenderer(
            param_shapes=((width, 93), (width, 8), (width, 8), (width, 8)),
            d_latent=width,
            d_hidden=width,
            n_output=12,
        ),
    }


def _text_to_3d() -> DiffusionPipeline:
    return ShapEPipeline(**_shap_e(), text_encoder=clip_text_encoder_with_projection(), tokenizer=clip_tokenizer())


def _image_to_3d() -> DiffusionPipeline:
    return ShapEImg2ImgPipeline(
        **_shap_e(embedding_proj_norm_type="layer"),
        image_encoder=clip_vision_model(),
        image_processor=clip_image_processor(),
    )


def _steps(**arguments: Any) -> Call:
    return Call(lambda: {"num_inference_steps": 2} | arguments, image(SIDE, SIDE))


def _repaint_arguments() -> dict[str, Any]:
    return {
        "image": picture(SIDE, SIDE),
        "mask_image": mask(SIDE, SIDE),
        "num_inference_steps": 4,
        "jump_length": 1,
        "jump_n_sample": 1,
    }


_TURNTABLE = video(_TURN, SIDE, SIDE)

FAMILIES = (
    Family(
        "ddpm",
        lambda: DDPMPipeline(unet=_unet(), scheduler=DDPMScheduler()),
        {"DDPMPipeline": _steps(), "DDIMPipeline": _steps()},
    ),
    Family("ddim", lambda: DDIMPipeline(unet=_unet(), scheduler=DDIMScheduler()), {"DDIMPipeline": _steps()}),
    Family(
        "pndm",
        lambda: PNDMPipeline(unet=_unet(), scheduler=PNDMScheduler()),
        {"PNDMPipeline": _steps(num_inference_steps=4)},
    ),
    Family(
        "score-sde-ve",
        lambda: ScoreSdeVePipeline(unet=_unet(), scheduler=ScoreSdeVeScheduler()),
        {"ScoreSdeVePipeline": _steps()},
    ),
    Family(
        "repaint",
        lambda: RePaintPipeline(unet=_unet(), scheduler=RePaintScheduler()),
        {"RePaintPipeline": Call(_repaint_arguments, image(SIDE, SIDE))},
    ),
    Family("latent-diffusion-unconditional", _latent_diffusion, {"LDMPipeline": _steps()}),
    Family("consistency-model", _consistency_model, {"ConsistencyModelPipeline": _steps()}),
    Family(
        "consistency-model-classes",
        lambda: _consistency_model(num_class_embeds=10),
        {"ConsistencyModelPipeline": _steps(class_labels=3)},
    ),
    Family(
        "shap-e",
        _text_to_3d,
        {"ShapEPipeline": Call(lambda: {"prompt": PROMPT, "frame_size": SIDE, "num_inference_steps": 2}, _TURNTABLE)},
        slow=True,
    ),
    Family(
        "shap-e-image",
        _image_to_3d,
        {
            "ShapEImg2ImgPipeline": Call(
                lambda: {"image": picture(SIDE, SIDE), "frame_size": SIDE, "num_inference_steps": 2}, _TURNTABLE
            )
        },
        slow=True,
    ),
)

IMPOSSIBLE = {
    "AudioDiffusionPipeline": "imports librosa, which no other pipeline needs",
    "KarrasVePipeline": "diffusers 0.42.1 does not find KarrasVeScheduler when it loads a folder",
    "LLaDA2Pipeline": "writes text with a model whose code is on the Hub",
    "SpectrogramDiffusionPipeline": "takes MIDI notes by the package note_seq",
    "RFD4ProteinaPipeline": "designs proteins from tensors: no request can hold them, and no media come out",
}
