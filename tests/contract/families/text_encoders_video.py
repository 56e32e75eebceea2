"""Small encoders that only pipelines of videos and sounds take, built from configs."""

from __future__ import annotations

from transformers import CLIPVisionModel, Gemma3Config, Gemma3ForConditionalGeneration, PreTrainedTokenizerBase

from tests.contract.families.text_encoders import WIDTH, clip_image_encoder, decoder_config


def clip_vision_model(width: int = WIDTH) -> CLIPVisionModel:
    """CLIP's encoder of images without its projection; its hidden states are (B, 17, width)."""
    return CLIPVisionModel(clip_image_encoder(width).config).eval()


def gemma3(tokenizer: PreTrainedTokenizerBase, width: int = WIDTH) -> Gemma3ForConditionalGeneration:
    """LTX-2's encoder of texts, which has a part for images that the pipelines do not use."""
    config = Gemma3Config(
        text_config=decoder_config(tokenizer, width)
        | {"query_pre_attn_scalar": width // 4, "layer_types": ["sliding_attention", "full_attention"]},
        vision_config={
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "image_size": 32,
            "patch_size": 8,
        },
        mm_tokens_per_image=4,
    )
    return Gemma3ForConditionalGeneration(config).eval()
