"""Small encoders that only pipelines of videos and sounds take, built from configs."""

from __future__ import annotations

from typing import Any

from transformers import (
    ClapConfig,
    ClapModel,
    ClapTextConfig,
    ClapTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModel,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    LlamaConfig,
    LlamaModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLTextModel,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
    T5Gemma2Encoder,
    T5Gemma2EncoderConfig,
    T5Gemma2TextConfig,
    T5GemmaConfig,
    T5GemmaEncoderModel,
    T5GemmaModuleConfig,
)

from tests.contract.families.text_encoders import WIDTH, clip_image_encoder, decoder_config
from tests.contract.families.tokenizers import byte_level_tokenizer


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


def llama3_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of HunyuanVideo, with the tokens of Llama 3's chats and one that stands for an image."""
    chat = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<image>")
    return byte_level_tokenizer(*chat, bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>", pad_token="<pad>")


def llama(tokenizer: PreTrainedTokenizerBase, width: int = WIDTH) -> LlamaModel:
    """HunyuanVideo's encoder of texts; the pipelines skip its last two layers."""
    return LlamaModel(LlamaConfig(**decoder_config(tokenizer, width) | {"num_hidden_layers": 3})).eval()


def llava(tokenizer: PreTrainedTokenizerBase, width: int = WIDTH) -> LlavaForConditionalGeneration:
    """HunyuanVideo's encoder of an image and a text, in which an image of 48 × 48 pixels is 576 tokens."""
    config = LlavaConfig(
        text_config=LlamaConfig(**decoder_config(tokenizer, width) | {"num_hidden_layers": 3}),
        vision_config=CLIPVisionConfig(
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=48,
            patch_size=2,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlavaForConditionalGeneration(config).eval()


def qwen2_5_vl_text(tokenizer: PreTrainedTokenizerBase, width: int = WIDTH) -> Qwen2_5_VLTextModel:
    """HunyuanVideo 1.5's encoder of texts; the pipelines skip its last two layers."""
    changes = {
        "num_hidden_layers": 3,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]},
    }
    return Qwen2_5_VLTextModel(Qwen2_5_VLTextConfig(**decoder_config(tokenizer, width) | changes)).eval()


#: The sides of the images that the SigLIP encoder takes.
SIGLIP_SIDE = 32


def siglip(width: int = WIDTH) -> SiglipVisionModel:
    """SigLIP's encoder of images; its hidden states are (B, 16, width)."""
    config = SiglipVisionConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=SIGLIP_SIDE,
        patch_size=8,
    )
    return SiglipVisionModel(config).eval()


def siglip_processor() -> SiglipImageProcessor:
    """What makes an image the input of the encoder above."""
    return SiglipImageProcessor(size={"height": SIGLIP_SIDE, "width": SIGLIP_SIDE})


def qwen2_vl(tokenizer: PreTrainedTokenizerBase, width: int = WIDTH) -> Qwen2VLForConditionalGeneration:
    """EasyAnimate's encoder of texts, which has a part for images that the pipelines do not use."""
    token = tokenizer.convert_tokens_to_ids
    config = Qwen2VLConfig(
        text_config=decoder_config(tokenizer, width)
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]}},
        vision_config={"depth": 1, "embed_dim": width, "hidden_size": width, "num_heads": 2, "mlp_ratio": 2},
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
    )
    return Qwen2VLForConditionalGeneration(config).eval()


def clap(tokenizer: PreTrainedTokenizerBase, width: int = WIDTH) -> ClapModel:
    """The encoder of texts and sounds of AudioLDM 2 and MusicLDM; its embeddings are (B, width)."""
    return ClapModel(ClapConfig(**clap_configs(tokenizer, width), projection_dim=width)).eval()


def clap_text(tokenizer: PreTrainedTokenizerBase, width: int = WIDTH) -> ClapTextModelWithProjection:
    """AudioLDM's encoder of texts; its embeddings are (B, width)."""
    return ClapTextModelWithProjection(ClapTextConfig(**clap_configs(tokenizer, width)["text_config"])).eval()


def clap_configs(tokenizer: PreTrainedTokenizerBase, width: int) -> dict[str, dict[str, Any]]:
    """The configs of CLAP's two encoders."""
    return {
        "text_config": {
            "vocab_size": len(tokenizer),
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": tokenizer.model_max_length + 2,
            "projection_dim": width,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        "audio_config": {
            "spec_size": 8,
            "window_size": 4,
            "num_mel_bins": 8,
            "intermediate_size": 2 * width,
            "depths": [1, 1],
            "num_attention_heads": [1, 1],
            "patch_embeds_hidden_size": 8,
            "hidden_size": 16,
            "projection_dim": width,
            "patch_size": 2,
            "patch_stride": 2,
            "patch_embed_input_channels": 4,
        },
    }


def t5_gemma(tokenizer: PreTrainedTokenizerBase, width: int = WIDTH) -> T5GemmaEncoderModel:
    """Stable Audio 3's encoder of texts."""
    changes = {"query_pre_attn_scalar": width // 4, "layer_types": ["sliding_attention", "full_attention"]}
    module = T5GemmaModuleConfig(**decoder_config(tokenizer, width) | changes).to_dict()
    return T5GemmaEncoderModel(T5GemmaConfig(encoder=module, decoder=module, is_encoder_decoder=False)).eval()


def t5_gemma2(tokenizer: PreTrainedTokenizerBase, width: int = WIDTH) -> T5Gemma2Encoder:
    """Motif-Video's encoder of texts; its SigLIP model is the pipeline's encoder of images."""
    text = {
        "query_pre_attn_scalar": width // 4,
        "layer_types": ["sliding_attention", "full_attention"],
        "dropout_rate": 0.0,
    }
    config = T5Gemma2EncoderConfig(
        text_config=T5Gemma2TextConfig(**decoder_config(tokenizer, width) | text),
        vision_config=siglip(width).config,
        mm_tokens_per_image=4,
    )
    return T5Gemma2Encoder(config).eval()
