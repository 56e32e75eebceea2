"""Stable Cascade, which draws a very small image first."""

from __future__ import annotations

from diffusers import DDPMWuerstchenScheduler, StableCascadePriorPipeline, StableCascadeUNet

from tests.contract.families.calls import call
from tests.contract.families.family import Family, embedding
from tests.contract.families.inputs import PROMPT
from tests.contract.families.text_encoders import WIDTH, clip_text_encoder_with_projection
from tests.contract.families.tokenizers import clip_tokenizer

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
)

_MOVED = "diffusers 0.42.1 does not load a folder with {}, under the library wuerstchen or diffusers"

IMPOSSIBLE = {
    "StableCascadeDecoderPipeline": _MOVED.format("PaellaVQModel"),
    "StableCascadeCombinedPipeline": _MOVED.format("PaellaVQModel"),
    "WuerstchenPriorPipeline": _MOVED.format("WuerstchenPrior"),
    "WuerstchenDecoderPipeline": _MOVED.format("WuerstchenDiffNeXt"),
    "WuerstchenCombinedPipeline": _MOVED.format("WuerstchenPrior"),
}
