"""Small tokenizers of the classes that diffusers' pipelines take.

Each knows the words of the vocabulary as one token and spells all others, so that different prompts give different
tokens.
"""

from __future__ import annotations

from typing import Any

from tokenizers.processors import TemplateProcessing
from transformers import (
    BertTokenizer,
    CLIPTokenizer,
    GemmaTokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
    RobertaTokenizer,
    T5Tokenizer,
    XLMRobertaTokenizer,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

from tests.contract.families.vocabulary import WORDS

#: A chat template in the format of ChatML, with one placeholder per image and Qwen 3's empty thought.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}\
{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}\
{% endfor %}{% endif %}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% if enable_thinking is defined and enable_thinking is false %}<think>

</think>

{% endif %}{% endif -%}
"""

_QWEN_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<think>",
    "</think>",
)

_LETTERS = tuple(bytes_to_unicode().values())


def clip_tokenizer(max_length: int = 77) -> CLIPTokenizer:
    """CLIP's byte-level BPE, in which a word ends with ``</w>``."""
    merges = []
    # Each merge joins a letter with the rest of the word, so that no merge applies inside a longer word.
    for word in WORDS:
        merges += [(word[start], f"{word[start + 1 :]}</w>") for start in range(len(word) - 2, -1, -1)]
    letters = _LETTERS + tuple(f"{letter}</w>" for letter in _LETTERS)
    return CLIPTokenizer(**_bpe(letters, merges, ("<|startoftext|>", "<|endoftext|>")), model_max_length=max_length)


def qwen2_tokenizer(max_length: int = 2048) -> Qwen2Tokenizer:
    """The byte-level BPE of Qwen 2 and 3, with the tokens of chats and images."""
    tokenizer = Qwen2Tokenizer(
        **_bpe(_LETTERS, _merges("Ġ"), _QWEN_TOKENS), model_max_length=max_length, chat_template=CHAT_TEMPLATE
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(_QWEN_TOKENS[1:-2])})
    return tokenizer


def byte_level_tokenizer(
    *special_tokens: str, prefix: tuple[str, ...] = (), max_length: int = 2048, **options: Any
) -> PreTrainedTokenizerFast:
    """The same BPE with other special tokens: that of Llama 3, GLM and SmolLM 3.

    Args:
        special_tokens: besides those of ``prefix`` and ``options``.
        prefix: the special tokens with which each text begins.
        max_length: in tokens.
        options: of the tokenizer, such as ``bos_token``.
    """
    special = prefix + special_tokens
    names = tuple(value for name, value in options.items() if name.endswith("_token"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Qwen2Tokenizer(**_bpe(_LETTERS, _merges("Ġ"), names + special)).backend_tokenizer,
        model_max_length=max_length,
        additional_special_tokens=list(special),
        **options,
    )
    if prefix:
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=[*prefix, "$A"], special_tokens=[(token, tokenizer.convert_tokens_to_ids(token)) for token in prefix]
        )
    return tokenizer


def gemma_tokenizer(max_length: int = 512) -> GemmaTokenizer:
    """Gemma's BPE, in which a word begins with ``▁``."""
    special = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>")
    return GemmaTokenizer(
        **_bpe(_characters(), _merges("▁"), special), model_max_length=max_length, padding_side="right"
    )


def llama_tokenizer(max_length: int = 512, **options: Any) -> LlamaTokenizer:
    """The BPE of Llama 2 and Phi 3, in which a word begins with ``▁``."""
    vocabulary = _bpe(_characters(), _merges("▁"), ("<unk>", "<s>", "</s>", "<pad>"))
    return LlamaTokenizer(**vocabulary, model_max_length=max_length, **({"pad_token": "<pad>"} | options))


def t5_tokenizer(max_length: int = 512) -> T5Tokenizer:
    """The unigram tokenizer of T5 and its successors."""
    return T5Tokenizer(vocab=_unigrams("<pad>", "</s>", "<unk>"), extra_ids=0, model_max_length=max_length)


def xlm_roberta_tokenizer(max_length: int = 77) -> XLMRobertaTokenizer:
    """The unigram tokenizer of XLM-RoBERTa."""
    return XLMRobertaTokenizer(vocab=_unigrams("<s>", "<pad>", "</s>", "<unk>", "<mask>"), model_max_length=max_length)


def _unigrams(*special_tokens: str) -> list[tuple[str, float]]:
    """The tokens of a unigram model with their scores, the special ones first."""
    scores = dict.fromkeys(special_tokens, 0.0) | {f"▁{word}": -5.0 for word in WORDS}
    return list((scores | {character: -20.0 for character in _characters() if character not in scores}).items())


def roberta_tokenizer(max_length: int = 77) -> RobertaTokenizer:
    """The byte-level BPE of RoBERTa and CLAP."""
    special = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    return RobertaTokenizer(**_bpe(_LETTERS, _merges("Ġ"), special), model_max_length=max_length)


def bert_tokenizer(max_length: int = 77) -> BertTokenizer:
    """BERT's WordPiece tokenizer."""
    letters = [chr(code) for code in range(33, 127)]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters), *WORDS]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    return BertTokenizer(vocab=vocabulary, model_max_length=max_length)


def _characters() -> tuple[str, ...]:
    """The bytes as SentencePiece's fallback names them, and the printable characters of ASCII."""
    return ("▁", *(f"<0x{byte:02X}>" for byte in range(256)), *(chr(code) for code in range(33, 127)))


def _merges(start: str) -> list[tuple[str, str]]:
    """Merges that join the beginning of a word with its next letter."""
    return [(start + word[:end], word[end]) for word in WORDS for end in range(len(word))]


def _bpe(letters: tuple[str, ...], merges: list[tuple[str, str]], special_tokens: tuple[str, ...]) -> dict[str, Any]:
    """The vocabulary and merges of a BPE with the special tokens first."""
    unique = list(dict.fromkeys(merges))
    tokens = dict.fromkeys((*special_tokens, *letters, *("".join(merge) for merge in unique)))
    return {"vocab": {token: number for number, token in enumerate(tokens)}, "merges": unique}
