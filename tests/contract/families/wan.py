"""Wan 2.1 and 2.2."""

from __future__ import annotations

from typing import Any

from diffusers import (
    AutoencoderKLWan,
    DiffusionPipeline,
    UniPCMultistepScheduler,
    WanAnimatePipeline,
    WanAnimateTransformer3DModel,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
    WanVACEPipeline,
    WanVACETransformer3DModel,
)

from tests.contract.families.family import Call, Family, video
from tests.contract.families.inputs import NEGATIVE_PROMPT, PROMPT, clip, picture
from tests.contract.families.text_encoders import WIDTH, clip_image_processor, umt5_encoder
from tests.contract.families.text_encoders_video import clip_vision_model
from tests.contract.families.tokenizers import t5_tokenizer

SIDE = 32
FRAMES = 5  #: 4 k + 1

#: Channels of the latents of Wan 2.1.
LATENTS = 16


def vae(**changes: Any) -> AutoencoderKLWan:
    """Wan 2.1's autoencoder: latents of 16 channels, an eighth of the sides and a quarter of the frames."""
    return AutoencoderKLWan(
        **{
            "base_dim": 4,
            "z_dim": LATENTS,
            "dim_mult": [1, 1, 1, 1],
            "num_res_blocks": 1,
            "temperal_downsample": [False, True, True],
        }
        | changes
    )


def transformer_config(**changes: Any) -> dict[str, Any]:
    """The config that most transformers of the Wan architecture take."""
    return {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": LATENTS,
        "out_channels": LATENTS,
        "text_dim": WIDTH,
        "freq_dim": 32,
        "ffn_dim": 48,
        "num_layers": 2,
        "rope_max_seq_len": 64,
    } | changes


def scheduler() -> UniPCMultistepScheduler:
    """Wan's own: UniPC over a flow."""
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


def components(**changes: Any) -> dict[str, Any]:
    """What every pipeline of Wan 2.1 takes."""
    tokenizer = t5_tokenizer()
    return {
        "tokenizer": tokenizer,
        "text_encoder": umt5_encoder(tokenizer),
        "vae": vae(),
        "scheduler": scheduler(),
        "transformer": WanTransformer3DModel(**transformer_config()),
    } | changes


def image_encoder() -> dict[str, Any]:
    """CLIP's vision model and its preprocessing."""
    return {"image_encoder": clip_vision_model(), "image_processor": clip_image_processor()}


def _text_to_video() -> DiffusionPipeline:
    return WanPipeline(**components())


def _text_to_video_2_2() -> DiffusionPipeline:
    second = WanTransformer3DModel(**transformer_config())
    return WanPipeline(**components(), transformer_2=second, boundary_ratio=0.875)


def components_5b() -> dict[str, Any]:
    """Components of the model of 5 thousand million parameters with its autoencoder, a 16th of the sides."""
    latents = 48
    return components(
        vae=vae(
            z_dim=latents,
            in_channels=12,
            out_channels=12,
            patch_size=2,
            scale_factor_spatial=16,
            is_residual=True,
            decoder_base_dim=4,
            latents_mean=[0.0] * latents,
            latents_std=[1.0] * latents,
        ),
        transformer=WanTransformer3DModel(**transformer_config(in_channels=latents, out_channels=latents)),
    )


def _image_transformer(**changes: Any) -> WanTransformer3DModel:
    """Takes noise, the encoded image and the mask of known frames."""
    return WanTransformer3DModel(**transformer_config(in_channels=2 * LATENTS + 4, **changes))


def _image_to_video() -> DiffusionPipeline:
    transformer = _image_transformer(image_dim=WIDTH)
    return WanImageToVideoPipeline(**components(transformer=transformer), **image_encoder())


def _first_last_frame_to_video() -> DiffusionPipeline:
    transformer = _image_transformer(image_dim=WIDTH, pos_embed_seq_len=2 * 17)
    return WanImageToVideoPipeline(**components(transformer=transformer), **image_encoder())


def _image_to_video_2_2() -> DiffusionPipeline:
    return WanImageToVideoPipeline(
        **components(transformer=_image_transformer()), transformer_2=_image_transformer(), boundary_ratio=0.9
    )


def _vace() -> DiffusionPipeline:
    transformer = WanVACETransformer3DModel(**transformer_config(vace_layers=[0, 1], vace_in_channels=96))
    return WanVACEPipeline(**components(transformer=transformer))


def _animate() -> DiffusionPipeline:
    transformer = WanAnimateTransformer3DModel(
        **transformer_config(in_channels=2 * LATENTS + 4),
        latent_channels=LATENTS,
        image_dim=WIDTH,
        motion_encoder_channel_sizes={"4": 16, "8": 16, "16": 16},
        motion_encoder_size=16,
        motion_style_dim=8,
        motion_dim=4,
        motion_encoder_dim=16,
        face_encoder_hidden_dim=16,
        face_encoder_num_heads=2,
        inject_face_latents_blocks=2,
    )
    return WanAnimatePipeline(**components(transformer=transformer), **image_encoder())


def text_arguments(**changes: Any) -> dict[str, Any]:
    """A call with a prompt for a clip of five frames."""
    return {
        "prompt": PROMPT,
        "negative_prompt": NEGATIVE_PROMPT,
        "width": SIDE,
        "height": SIDE,
        "num_frames": FRAMES,
        "num_inference_steps": 2,
    } | changes


def image_arguments(**changes: Any) -> dict[str, Any]:
    """The same with a first frame."""
    return text_arguments(image=picture(SIDE, SIDE)) | changes


def _video_arguments() -> dict[str, Any]:
    arguments = text_arguments(video=clip(FRAMES, SIDE, SIDE), strength=0.5, num_inference_steps=4)
    del arguments["num_frames"]
    return arguments


def _vace_arguments() -> dict[str, Any]:
    return text_arguments(
        video=clip(FRAMES, SIDE, SIDE),
        mask=[frame.convert("L") for frame in clip(FRAMES, SIDE, SIDE, seed=1)],
        reference_images=[picture(SIDE, SIDE, seed=2)],
    )


def _animate_arguments() -> dict[str, Any]:
    return {
        "prompt": PROMPT,
        "image": picture(SIDE, SIDE),
        "pose_video": clip(FRAMES, SIDE, SIDE, seed=1),
        "face_video": clip(FRAMES, 16, 16, seed=2),
        "width": SIDE,
        "height": SIDE,
        "segment_frame_length": FRAMES,
        "num_inference_steps": 2,
    }


CLIP = video(FRAMES, SIDE, SIDE)

FAMILIES = (
    Family(
        "wan",
        _text_to_video,
        {
            "WanPipeline": Call(text_arguments, CLIP),
            "WanVideoToVideoPipeline": Call(_video_arguments, CLIP),
            "WanModularPipeline": Call(text_arguments, CLIP),
        },
        requires=("ftfy",),
    ),
    Family(
        "wan-image",
        _image_to_video,
        {
            "WanImageToVideoPipeline": Call(image_arguments, CLIP),
            "WanImage2VideoModularPipeline": Call(image_arguments, CLIP),
        },
        requires=("ftfy",),
    ),
    Family(
        "wan-first-last-frame",
        _first_last_frame_to_video,
        {"WanImageToVideoPipeline": Call(lambda: image_arguments(last_image=picture(SIDE, SIDE, seed=1)), CLIP)},
        requires=("ftfy",),
    ),
    Family("wan-vace", _vace, {"WanVACEPipeline": Call(_vace_arguments, CLIP)}, requires=("ftfy",)),
    Family("wan-animate", _animate, {"WanAnimatePipeline": Call(_animate_arguments, CLIP)}, requires=("ftfy",)),
    Family(
        "wan-2.2",
        _text_to_video_2_2,
        {"WanPipeline": Call(text_arguments, CLIP), "Wan22ModularPipeline": Call(text_arguments, CLIP)},
        requires=("ftfy",),
    ),
    Family(
        "wan-2.2-image",
        _image_to_video_2_2,
        {
            "WanImageToVideoPipeline": Call(image_arguments, CLIP),
            "Wan22Image2VideoModularPipeline": Call(image_arguments, CLIP),
        },
        requires=("ftfy",),
    ),
    Family(
        "wan-2.2-5b",
        lambda: WanPipeline(**components_5b(), expand_timesteps=True),
        {"WanPipeline": Call(text_arguments, CLIP)},
        requires=("ftfy",),
    ),
    Family(
        "wan-2.2-5b-image",
        lambda: WanImageToVideoPipeline(**components_5b(), expand_timesteps=True),
        {"WanImageToVideoPipeline": Call(image_arguments, CLIP)},
        requires=("ftfy",),
    ),
)
