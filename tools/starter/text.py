"""The text encoder, taught to understand captions before any image is drawn.

A denoiser that must learn language and drawing at once spends most of its time on the language. Here a linear reader of
the encoder's output has to name every attribute of the scene from the caption alone; that takes minutes, and then the
encoder is frozen. The reader is thrown away. What stays is an output in which "the left thing is red" is a direction.
"""

from collections.abc import Mapping
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from tools.starter import attributes
from tools.starter.captions import caption
from tools.starter.scenes import COLOURS, Scene, sample
from tools.starter.tokenizer import LENGTH
from tools.starter.trainer import StepRandom

#: Features per token; the denoiser's `cross_attention_dim`.
WIDTH: Final = 128


def build(tokenizer: CLIPTokenizer, seed: int = 0) -> CLIPTextModel:
    """A CLIP text encoder with random weights: 3 layers, 4 heads, `WIDTH` features."""
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        projection_dim=WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        hidden_act="quick_gelu",
    )
    return CLIPTextModel(config)


def tokens(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Token numbers (B, LENGTH), padded with the end token as diffusers' pipelines do."""
    encoded = tokenizer(captions, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
    ids: Tensor = encoded.input_ids
    return ids


@torch.no_grad()
def encode(encoder: CLIPTextModel, tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """What the denoiser sees of captions, (B, LENGTH, WIDTH)."""
    hidden: Tensor = encoder(tokens(tokenizer, captions)).last_hidden_state
    return hidden


def reader(seed: int = 1) -> attributes.AttributeHeads:
    """The linear reader of the encoder's output, with one class more per attribute for "not said"."""
    torch.manual_seed(seed)
    return attributes.AttributeHeads(WIDTH, spare=1)


def said(scene: Scene, words: str) -> list[int]:
    """The class of each attribute that the caption settles; what it leaves open gets the class "not said"."""
    numbers = attributes.classes(scene)
    if not words:
        return list(attributes.WIDTHS)
    return numbers


class TextStep:
    """One step of the text encoder's training: captions of fresh scenes, read at their end and after it."""

    BATCH: Final = 96
    EMPTY: Final = 0.03  # of the captions say nothing, as the unconditional prompt of guidance does

    def __init__(self, encoder: CLIPTextModel, heads: nn.Module, tokenizer: CLIPTokenizer) -> None:
        self._encoder, self._heads, self._tokenizer = encoder, heads, tokenizer

    def __call__(self, _step: int, randomness: StepRandom) -> tuple[Tensor, Mapping[str, float]]:
        """The loss of one step, and what to record of it."""
        ids, target = batch(self._tokenizer, randomness.numpy, self.BATCH, self.EMPTY)
        hidden = self._encoder(ids).last_hidden_state
        end = ends(ids, self._tokenizer)
        # Two places, so that every token from the caption's end on learns to hold the whole scene.
        later = end + (randomness.numpy.random(len(end)) * (LENGTH - end)).astype(np.int64)
        row = np.arange(len(end))
        both = torch.stack([hidden[row, end], hidden[row, later]], 1)
        logits = self._heads(both)
        wanted = target[:, None].expand(-1, 2, -1)
        correct = attributes.right(logits, wanted)
        return attributes.loss(logits, wanted), {"all_right": correct.all(-1).float().mean().item()}


def batch(tokenizer: CLIPTokenizer, rng: np.random.Generator, size: int, empty: float) -> tuple[Tensor, Tensor]:
    """Token numbers (B, LENGTH) of random captions and their attributes (B, attributes)."""
    scenes = [sample(rng) for _ in range(size)]
    captions = ["" if rng.random() < empty else caption(scene, rng) for scene in scenes]
    target = torch.tensor([said(scene, words) for scene, words in zip(scenes, captions, strict=True)])
    unsaid = torch.tensor([not _names_background(words) for words in captions])
    target[unsaid, 0] = len(COLOURS)
    return tokens(tokenizer, captions), target


def ends(ids: Tensor, tokenizer: CLIPTokenizer) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Where each caption ends: the place of its first end token, or of the last token if it was cut."""
    is_end = (ids == tokenizer.eos_token_id).int()
    return np.asarray(is_end.argmax(1).numpy(), np.int64)


def _names_background(words: str) -> bool:
    return any(word in words for word in ("background", " wall", " room", " floor"))
