"""Small text encoders, built from configs for the tokenizers of this package."""

from __future__ import annotations

from typing import Any, Final

from transformers import (
    BertConfig,
    BertModel,
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    PreTrainedTokenizerBase,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3Config,
    Qwen3VLConfig,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from tests.contract.families.tokenizers import clip_tokenizer, qwen2_tokenizer

#: The width of every text encoder here unless a model asks for another.
WIDTH: Final = 32


def clip_text_config(width: int = WIDTH, **changes: Any) -> CLIPTextConfig:
    """The config of a CLIP text model for the tokenizer of this package."""
    tokenizer = clip_tokenizer()
    return CLIPTextConfig(
        **{
            "vocab_size": len(tokenizer),
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": tokenizer.model_max_length,
            "projection_dim": width,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        | changes
    )


def clip_text_encoder(width: int = WIDTH, **changes: Any) -> CLIPTextModel:
    """The text encoder of Stable Diffusion 1.5; its hidden states are (B, 77, width)."""
    return CLIPTextModel(clip_text_config(width, **changes)).eval()


def clip_text_encoder_with_projection(width: int = WIDTH, **changes: Any) -> CLIPTextModelWithProjection:
    """The same with the projection whose output SDXL, SD3 and unCLIP use, (B, width)."""
    return CLIPTextModelWithProjection(clip_text_config(width, **changes)).eval()


def clip_image_encoder(width: int = WIDTH, side: int = 32) -> CLIPVisionModelWithProjection:
    """CLIP's encoder of images; its embeddings are (B, width)."""
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=side,
        patch_size=8,
    )
    return CLIPVisionModelWithProjection(config).eval()


def clip_image_processor(side: int = 32) -> CLIPImageProcessor:
    """What makes an image the input of the encoder above."""
    return CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


def t5_encoder(tokenizer: PreTrainedTokenizerBase, width: int = WIDTH, **changes: Any) -> T5EncoderModel:
    """T5's encoder; its hidden states are (B, length, width)."""
    return T5EncoderModel(T5Config(**_t5(tokenizer, width) | changes)).eval()


def umt5_encoder(tokenizer: PreTrainedTokenizerBase, width: int = WIDTH) -> UMT5EncoderModel:
    """The multilingual T5 of AuraFlow and Wan."""
    return UMT5EncoderModel(UMT5Config(**_t5(tokenizer, width))).eval()


def _t5(tokenizer: PreTrainedTokenizerBase, width: int) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "d_model": width,
        "d_kv": 8,
        "d_ff": 2 * width,
        "num_layers": 2,
        "num_heads": 4,
        "feed_forward_proj": "gated-gelu",
        "decoder_start_token_id": 0,
    }


def bert(tokenizer: PreTrainedTokenizerBase, width: int = WIDTH) -> BertModel:
    """BERT, the first text encoder of Hunyuan-DiT."""
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    return BertModel(config).eval()


def decoder_config(tokenizer: PreTrainedTokenizerBase, width: int = WIDTH) -> dict[str, Any]:
    """What the configs of all language models (Llama, Qwen, Gemma, GLM) have in common."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": width // 4,
        "max_position_embeddings": 4096,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def gemma2(tokenizer: PreTrainedTokenizerBase, width: int = WIDTH) -> Gemma2Model:
    """The text encoder of Lumina 2 and Sana."""
    return Gemma2Model(Gemma2Config(**decoder_config(tokenizer, width), query_pre_attn_scalar=width // 4)).eval()


def qwen3_config(width: int = WIDTH, **changes: Any) -> Qwen3Config:
    """The config of Z-Image's, Flux.2 Klein's and Ovis' text encoder."""
    return Qwen3Config(**decoder_config(qwen2_tokenizer(), width) | changes)


def qwen2_5_vl(width: int = WIDTH) -> Qwen2_5_VLForConditionalGeneration:
    """The encoder of texts and images of Qwen-Image; its hidden states are (B, length, width)."""
    tokenizer = qwen2_tokenizer()
    token = tokenizer.convert_tokens_to_ids
    config = Qwen2_5_VLConfig(
        text_config=decoder_config(tokenizer, width)
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]}},
        vision_config={
            "depth": 2,
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_heads": 2,
            "out_hidden_size": width,
            "fullatt_block_indexes": [1],
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
    )
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def qwen2_vl_processor() -> Qwen2VLProcessor:
    """What makes texts and images the input of the encoder above; an image is at most 64 tokens."""
    sizes = {"min_pixels": 28 * 28, "max_pixels": 8 * 8 * 28 * 28}
    tokenizer = qwen2_tokenizer()
    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(**sizes),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**sizes),
        chat_template=tokenizer.chat_template,
    )


def qwen3_vl_config(width: int = WIDTH, layers: int = 2) -> Qwen3VLConfig:
    """The config of the newer encoder of texts and images; its features enter the first layers of the text model."""
    tokenizer = qwen2_tokenizer()
    token = tokenizer.convert_tokens_to_ids
    return Qwen3VLConfig(
        text_config=decoder_config(tokenizer, width)
        | {
            "num_hidden_layers": layers,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [2, 1, 1]},
        },
        vision_config={
            "depth": 2,
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_heads": 2,
            "out_hidden_size": width,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
    )


def qwen3_vl_processor() -> Qwen3VLProcessor:
    """What makes texts and images the input of the encoder above; an image is at most 64 tokens."""
    sizes = {"shortest_edge": 32 * 32, "longest_edge": 8 * 8 * 32 * 32}
    tokenizer = qwen2_tokenizer()
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=sizes, patch_size=16),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(size=sizes, patch_size=16),
        chat_template=tokenizer.chat_template,
    )
