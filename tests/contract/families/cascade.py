"""Stable Cascade and Würstchen, which draw a very small image first."""

from __future__ import annotations

from typing import Any

import diffusers
from diffusers import (
    DDPMWuerstchenScheduler,
    StableCascadeCombinedPipeline,
    StableCascadePriorPipeline,
    StableCascadeUNet,
)

from tests.contract.families.calls import call, text_to_image
from tests.contract.families.family import Family, embedding
from tests.contract.families.inputs import NEGATIVE_PROMPT, PROMPT
from tests.contract.families.text_encoders import WIDTH, clip_text_encoder, clip_text_encoder_with_projection
from tests.contract.families.tokenizers import clip_tokenizer
from workers.pipelines.model_index import find_moved_package

find_moved_package("wuerstchen")
_old: Any = diffusers.pipelines.wuerstchen

#: Channels of the small image.
_SMALL = 16


def _prior() -> StableCascadePriorPipeline:
    return StableCascadePriorPipeline(
        tokenizer=clip_tokenizer(),
        text_encoder=clip_text_encoder_with_projection(),
        prior=StableCascadeUNet(
            in_channels=_SMALL,
            out_channels=_SMALL,
            conditioning_dim=32,
            block_out_channels=(32, 32),
            num_attention_heads=(2, 2),
            down_num_layers_per_block=(1, 1),
            up_num_layers_per_block=(1, 1),
            clip_image_in_channels=768,
            clip_text_in_channels=WIDTH,
            clip_text_pooled_in_channels=WIDTH,
            switch_level=(False,),
        ),
        scheduler=DDPMWuerstchenScheduler(),
    )


def _vqgan() -> Any:
    return _old.PaellaVQModel(bottleneck_blocks=1, num_vq_embeddings=2, embed_dim=16)


def _combined() -> StableCascadeCombinedPipeline:
    return StableCascadeCombinedPipeline(
        tokenizer=clip_tokenizer(),
        text_encoder=clip_text_encoder_with_projection(),
        decoder=StableCascadeUNet(
            in_channels=4,
            out_channels=4,
            conditioning_dim=32,
            block_out_channels=(16, 32),
            num_attention_heads=(-1, 2),
            down_num_layers_per_block=(1, 1),
            up_num_layers_per_block=(1, 1),
            down_blocks_repeat_mappers=(1, 1),
            up_blocks_repeat_mappers=(2, 2),
            block_types_per_layer=(
                ("SDCascadeResBlock", "SDCascadeTimestepBlock"),
                ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),
            ),
            switch_level=None,
            clip_text_pooled_in_channels=WIDTH,
            effnet_in_channels=_SMALL,
            dropout=(0.0, 0.0),
        ),
        scheduler=DDPMWuerstchenScheduler(),
        vqgan=_vqgan(),
        **{f"prior_{name}": component for name, component in _prior().components.items()},
    )


def _wuerstchen() -> Any:
    encoder = clip_text_encoder()
    return _old.WuerstchenCombinedPipeline(
        tokenizer=clip_tokenizer(),
        text_encoder=encoder,
        decoder=_old.modeling_wuerstchen_diffnext.WuerstchenDiffNeXt(
            c_cond=WIDTH,
            c_hidden=[16, 32],
            nhead=[-1, 2],
            blocks=[1, 1],
            level_config=["CT", "CTA"],
            inject_effnet=[False, True],
            effnet_embd=_SMALL,
            clip_embd=WIDTH,
            dropout=0.0,
        ),
        scheduler=DDPMWuerstchenScheduler(),
        vqgan=_vqgan(),
        prior_tokenizer=clip_tokenizer(),
        prior_text_encoder=encoder,
        prior_prior=_old.WuerstchenPrior(c_in=_SMALL, c=32, c_cond=WIDTH, depth=1, nhead=2, dropout=0.0),
        prior_scheduler=DDPMWuerstchenScheduler(),
    )


_TEXT_TO_IMAGE = text_to_image(128, prior_num_inference_steps=2, negative_prompt=NEGATIVE_PROMPT)

FAMILIES = (
    Family(
        "stable-cascade-prior",
        _prior,
        {
            "StableCascadePriorPipeline": call(
                embedding(1, _SMALL, 3, 3), prompt=PROMPT, width=128, height=128, num_inference_steps=2
            )
        },
    ),
    Family("stable-cascade", _combined, {"StableCascadeCombinedPipeline": _TEXT_TO_IMAGE}),
    Family("wuerstchen", _wuerstchen, {"WuerstchenCombinedPipeline": _TEXT_TO_IMAGE}),
)

IMPOSSIBLE = {
    "StableCascadeDecoderPipeline": "takes the embedding of StableCascadePriorPipeline",
    "WuerstchenPriorPipeline": "a part of WuerstchenCombinedPipeline",
    "WuerstchenDecoderPipeline": "takes the embedding of WuerstchenPriorPipeline",
}
