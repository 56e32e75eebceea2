"""CogVideoX and ConsisID."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXFunControlPipeline,
    CogVideoXImageToVideoPipeline,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    ConsisIDPipeline,
    ConsisIDTransformer3DModel,
    DiffusionPipeline,
)

from tests.contract.families.family import Call, Family, video
from tests.contract.families.inputs import NEGATIVE_PROMPT, PROMPT, clip, picture
from tests.contract.families.text_encoders import WIDTH, t5_encoder
from tests.contract.families.tokenizers import t5_tokenizer

SIDE = 32
FRAMES = 9  #: 8 k + 1: the autoencoder decodes an even number of frames of latents to four times as many

_LATENTS = 4


def _transformer_config(**changes: Any) -> dict[str, Any]:
    """Latents of an eighth of the sides and a quarter of the frames."""
    return {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "in_channels": _LATENTS,
        "out_channels": _LATENTS,
        "time_embed_dim": 8,
        "text_embed_dim": WIDTH,
        "num_layers": 2,
        "sample_width": SIDE // 8,
        "sample_height": SIDE // 8,
        "sample_frames": FRAMES,
        "use_rotary_positional_embeddings": True,
    } | changes


def _components(**transformer: Any) -> dict[str, Any]:
    tokenizer = t5_tokenizer(max_length=226)
    return {
        "tokenizer": tokenizer,
        "text_encoder": t5_encoder(tokenizer),
        "vae": AutoencoderKLCogVideoX(
            latent_channels=_LATENTS,
            block_out_channels=(8, 8, 8, 8),
            layers_per_block=1,
            norm_num_groups=2,
            sample_width=SIDE,
            sample_height=SIDE,
        ),
        "transformer": CogVideoXTransformer3DModel(**_transformer_config(**transformer)),
        "scheduler": CogVideoXDDIMScheduler(prediction_type="v_prediction", beta_start=0.00085, beta_end=0.012),
    }


def _consisid() -> DiffusionPipeline:
    components = _components()
    components["transformer"] = ConsisIDTransformer3DModel(
        **_transformer_config(in_channels=2 * _LATENTS),
        is_train_face=True,
        cross_attn_interval=1,
        cross_attn_dim_head=8,
        cross_attn_num_heads=2,
        LFE_id_dim=_FACE_WIDTH,
        LFE_vit_dim=_FACE_WIDTH,
        LFE_depth=2,
        LFE_dim_head=8,
        LFE_num_heads=2,
        LFE_num_id_token=1,
        LFE_num_querie=1,
        LFE_output_dim=21,  # two thirds of the transformer's width,
        LFE_ff_mult=1,
        LFE_num_scale=1,
    )
    return ConsisIDPipeline(**components)


#: Of the embeddings of a face; other packages than diffusers compute them.
_FACE_WIDTH = 8


def _text_arguments(**changes: Any) -> dict[str, Any]:
    return {
        "prompt": PROMPT,
        "negative_prompt": NEGATIVE_PROMPT,
        "width": SIDE,
        "height": SIDE,
        "num_frames": FRAMES,
        "num_inference_steps": 2,
    } | changes


def _image_arguments(**changes: Any) -> dict[str, Any]:
    return _text_arguments(image=picture(SIDE, SIDE)) | changes


def _video_arguments(name: str, **changes: Any) -> dict[str, Any]:
    arguments = _text_arguments(**{name: clip(FRAMES, SIDE, SIDE)}, **changes)
    del arguments["num_frames"]
    return arguments


def _face_arguments() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return _image_arguments(
        id_vit_hidden=[torch.randn(1, 2, _FACE_WIDTH, generator=generator)],
        id_cond=torch.randn(1, _FACE_WIDTH, generator=generator),
    )


_CLIP = video(FRAMES, SIDE, SIDE)

FAMILIES = (
    Family(
        "cogvideox",
        lambda: CogVideoXPipeline(**_components()),
        {
            "CogVideoXPipeline": Call(_text_arguments, _CLIP),
            "CogVideoXVideoToVideoPipeline": Call(lambda: _video_arguments("video", num_inference_steps=3), _CLIP),
        },
    ),
    Family(
        "cogvideox-sincos",
        lambda: CogVideoXPipeline(**_components(use_rotary_positional_embeddings=False)),
        {"CogVideoXPipeline": Call(_text_arguments, _CLIP)},
    ),
    Family(
        "cogvideox-image",
        lambda: CogVideoXImageToVideoPipeline(**_components(in_channels=2 * _LATENTS)),
        {"CogVideoXImageToVideoPipeline": Call(_image_arguments, _CLIP)},
    ),
    Family(
        "cogvideox-fun-control",
        lambda: CogVideoXFunControlPipeline(**_components(in_channels=2 * _LATENTS)),
        {"CogVideoXFunControlPipeline": Call(lambda: _video_arguments("control_video"), _CLIP)},
    ),
    Family(
        "consisid",
        _consisid,
        {"ConsisIDPipeline": Call(_face_arguments, _CLIP)},
        requires=("cv2",),
    ),
)
