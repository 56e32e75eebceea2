"""Small text encoders and their tokenizers, built from configs."""

from __future__ import annotations

from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from tests.contract.families.vocabulary import WORDS

#: The width of every text encoder here unless a model asks for another.
WIDTH = 32


def clip_tokenizer(max_length: int = 77) -> CLIPTokenizer:
    """CLIP's byte-level BPE: a word of the vocabulary is one token, a letter of another word is one."""
    letters = list(bytes_to_unicode().values())
    tokens = letters + [f"{letter}</w>" for letter in letters]
    merges = []
    # Each merge joins a letter with the rest of the word, so that no merge applies inside a longer word.
    for word in WORDS:
        for start in range(len(word) - 2, -1, -1):
            merge = word[start], f"{word[start + 1 :]}</w>"
            if merge not in merges:
                merges.append(merge)
                tokens.append("".join(merge))
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=max_length)


def clip_text_config(tokenizer: CLIPTokenizer, width: int = WIDTH, layers: int = 2) -> CLIPTextConfig:
    """The config of a CLIP text model with the token numbers of its tokenizer."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def clip_text_encoder(width: int = WIDTH) -> CLIPTextModel:
    """The text encoder of Stable Diffusion 1.5; its hidden states are (B, 77, width)."""
    return CLIPTextModel(clip_text_config(clip_tokenizer(), width)).eval()


def clip_text_encoder_with_projection(width: int = WIDTH) -> CLIPTextModelWithProjection:
    """The same with the projection whose output SDXL, SD3 and unCLIP use, (B, width)."""
    return CLIPTextModelWithProjection(clip_text_config(clip_tokenizer(), width)).eval()
