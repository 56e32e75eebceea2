"""The CLIP tokenizer of the built-in model: byte-pair encoding learned from captions, in which no text is unknown."""

import json
from pathlib import Path
from typing import Final

import numpy as np
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from tools.starter.captions import caption
from tools.starter.scenes import sample

#: Tokens of a prompt with its start and end; longer prompts are cut.
LENGTH: Final = 32
VOCABULARY: Final = 1200
#: Words people type although the world does not hold them; whole tokens cost less of the 32 than their letters.
FURTHER_WORDS: Final = (
    "the of with in on at to and is a an this that photo image image drawing painting render 3d object scene "
    "wall room floor table left right center middle front behind above below near gray grey brown gold silver "
    "light bright soft studio quality high very detailed two one three standing lying floating shiny matte glossy "
    "astronaut horse cat dog house tree car man woman sky sea mountain forest city night day portrait landscape"
)


def build(seed: int = 0) -> CLIPTokenizer:
    """Learns the merges from 6,000 captions. Every byte has its own token, so any text can be encoded."""
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    # The same steps that CLIPTokenizer takes, or the merges would not fit the pieces it makes.
    learner.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    pieces = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pieces, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, min_frequency=3, end_of_word_suffix="</w>", show_progress=False
    )
    learner.train_from_iterator(_corpus(seed), trainer)
    learned = json.loads(learner.to_str())["model"]["merges"]
    merges = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in learned]
    letters = list(bytes_to_unicode().values())
    tokens = [
        *letters,
        *(letter + "</w>" for letter in letters),
        *("".join(merge) for merge in merges),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH)


def load(folder: Path) -> CLIPTokenizer:
    """Reads a saved tokenizer."""
    return CLIPTokenizer.from_pretrained(folder)


def _corpus(seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [caption(sample(rng), rng) for _ in range(6000)] + [FURTHER_WORDS] * 50
