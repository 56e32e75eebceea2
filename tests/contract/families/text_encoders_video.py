"""Small text and image encoders of the pipelines of videos and sounds, built from configs."""

from __future__ import annotations

import string

from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

from tests.contract.families.text_encoders import WIDTH
from tests.contract.families.vocabulary import WORDS


def t5_tokenizer(max_length: int = 512) -> T5Tokenizer:
    """T5's unigram model: a word of the vocabulary is one token, a character of another word is one."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(character, -8.0) for character in string.printable.strip()]
    pieces += [(f"▁{word}", -4.0) for word in WORDS]
    return T5Tokenizer(vocab=pieces, model_max_length=max_length, extra_ids=0)


def t5_config(width: int = WIDTH) -> T5Config:
    """The config of a T5 encoder with the token numbers of its tokenizer."""
    return T5Config(vocab_size=len(t5_tokenizer()), d_model=width, d_kv=8, d_ff=2 * width, num_layers=2, num_heads=4)


def t5_encoder(width: int = WIDTH) -> T5EncoderModel:
    """T5's encoder; its output is (B, tokens, width)."""
    return T5EncoderModel(t5_config(width)).eval()


def umt5_encoder(width: int = WIDTH) -> UMT5EncoderModel:
    """UMT5's encoder, in which each layer has position biases of its own; its output is (B, tokens, width)."""
    config = t5_config(width)
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=config.vocab_size,
            d_model=width,
            d_kv=config.d_kv,
            d_ff=config.d_ff,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
        )
    ).eval()


#: The sides of the images that the CLIP vision models take.
CLIP_SIDE = 32


def clip_vision_config(width: int = WIDTH) -> CLIPVisionConfig:
    """The config of a CLIP vision model with 16 patches."""
    return CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=CLIP_SIDE,
        patch_size=8,
    )


def clip_image_encoder(width: int = WIDTH) -> CLIPVisionModel:
    """CLIP's vision model; its hidden states are (B, 17, width)."""
    return CLIPVisionModel(clip_vision_config(width)).eval()


def clip_image_encoder_with_projection(width: int = WIDTH) -> CLIPVisionModelWithProjection:
    """The same with the projection to the space that it shares with the text model, (B, width)."""
    return CLIPVisionModelWithProjection(clip_vision_config(width)).eval()


def clip_image_processor() -> CLIPImageProcessor:
    """Resizes and normalizes for the CLIP vision models above."""
    return CLIPImageProcessor(size={"shortest_edge": CLIP_SIDE}, crop_size={"height": CLIP_SIDE, "width": CLIP_SIDE})
