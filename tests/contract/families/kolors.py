"""Kolors: Stable Diffusion XL with a language model that reads Chinese, too."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import EulerDiscreteScheduler, KolorsPAGPipeline, KolorsPipeline

from tests.contract.families.autoencoders import vae
from tests.contract.families.calls import image_to_image, text_to_image
from tests.contract.families.family import Family
from tests.contract.families.inputs import NEGATIVE_PROMPT
from tests.contract.families.sdxl import xl_unet
from tests.contract.families.text_encoders import WIDTH
from tests.contract.families.vocabulary import WORDS


def _tokenizer() -> Any:
    """ChatGLM's tokenizer, which reads a model of SentencePiece."""
    import sentencepiece
    from diffusers.pipelines.kolors import ChatGLMTokenizer

    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "text.txt")
        text.write_text("\n".join(" ".join(WORDS[start:] + WORDS[:start]) for start in range(len(WORDS))), "utf-8")
        prefix = Path(folder, "tokenizer")
        sentencepiece.SentencePieceTrainer.train(
            input=str(text),
            model_prefix=str(prefix),
            vocab_size=100,
            hard_vocab_limit=False,
            num_threads=1,
            minloglevel=2,
        )
        kept = Path(tempfile.mkdtemp(), "tokenizer.model")
        kept.write_bytes(prefix.with_suffix(".model").read_bytes())
    return ChatGLMTokenizer(str(kept))


def _text_encoder(vocabulary: int) -> Any:
    from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, ChatGLMModel

    model = ChatGLMModel(
        ChatGLMConfig(
            num_layers=2,
            padded_vocab_size=vocabulary,
            hidden_size=WIDTH,
            ffn_hidden_size=2 * WIDTH,
            kv_channels=8,
            num_attention_heads=4,
            multi_query_attention=True,
            multi_query_group_num=2,
            seq_length=512,
            add_bias_linear=False,
            add_qkv_bias=True,
            rmsnorm=True,
            original_rope=True,
        )
    ).eval()
    with torch.no_grad():  # it leaves its memory as it is
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(1 if "norm" in name else 0)
    return model


def _components() -> dict[str, Any]:
    tokenizer = _tokenizer()
    return {
        "vae": vae(),
        "text_encoder": _text_encoder(tokenizer.vocab_size + 16),
        "tokenizer": tokenizer,
        "unet": xl_unet(cross_attention_dim=WIDTH),
        "scheduler": EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.014, beta_schedule="scaled_linear", timestep_spacing="leading"
        ),
    }


FAMILIES = (
    Family(
        "kolors",
        lambda: KolorsPipeline(**_components()),
        {
            "KolorsPipeline": text_to_image(negative_prompt=NEGATIVE_PROMPT),
            "KolorsImg2ImgPipeline": image_to_image(),
        },
        requires=("sentencepiece",),
    ),
    Family(
        "pag-kolors",
        lambda: KolorsPAGPipeline(**_components(), pag_applied_layers=["mid"]),
        {"KolorsPAGPipeline": text_to_image(pag_scale=3.0)},
        requires=("sentencepiece",),
    ),
)
