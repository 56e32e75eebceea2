"""Tiny random models of other architectures share forwards, as pipelines and as models in a folder."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import transformers

from farm.domain.job_spec import JobSpec
from farm.domain.model import Model
from tests.unit.test_batching import finish
from tests.unit.test_pipelines import CPU, spec
from workers import numerics, pipelines
from workers.batched_renderer import BatchedRenderer
from workers.batching.batcher import ContinuousBatcher
from workers.batching.calls import BatchMode
from workers.model_cache import ModelCache
from workers.pipelines.isolation import ClassIsolation, Sharing
from workers.pipelines.loaded_model import parking_modules
from workers.render_request import RenderRequest, RenderResult
from workers.starter import WEIGHTS

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`torch_dtype` is deprecated:FutureWarning"),
]


@pytest.fixture(autouse=True)
def all_rows_are_efficient(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests do not depend on which row counts are efficient on a busy machine."""
    monkeypatch.setattr("workers.batching.row_selection.most_efficient_rows", max)


@pytest.fixture(autouse=True)
def no_call_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests begin where the calls of every class are known to share."""
    monkeypatch.setattr("workers.pipelines.loaded_model.ClassIsolation", lambda: ClassIsolation(Sharing.SHARES))


def batcher_on(pipeline: Any, most: int = 8) -> ContinuousBatcher:
    batcher = ContinuousBatcher(most)
    for parking in parking_modules(pipeline):
        batcher.hook(parking.module, parking.name, denoiser=not parking.half, check_finite=parking.half == "decoder")
    return batcher


NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def made_of(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tiny_vae() -> Any:
    torch.manual_seed(1)
    return diffusers.AutoencoderKL(
        block_out_channels=(16, 32),
        layers_per_block=1,
        latent_channels=4,
        shift_factor=0.1,
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    ).eval()


def sdxl() -> tuple[Any, Callable[[Any, int], Any]]:
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2),
        projection_class_embeddings_input_dim=80,
        cross_attention_dim=64,
        norm_num_groups=8,
    ).eval()
    pipeline = diffusers.StableDiffusionXLPipeline(
        vae=tiny_vae(),
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        unet=unet,
        scheduler=diffusers.EulerDiscreteScheduler(**NOISE),
        add_watermarker=False,
    )
    return pipeline, lambda pipe, index: pipe(
        prompt_embeds=made_of(1, 77, 64, seed=index),
        negative_prompt_embeds=made_of(1, 77, 64, seed=50),
        pooled_prompt_embeds=made_of(1, 32, seed=index),
        negative_pooled_prompt_embeds=made_of(1, 32, seed=51),
        height=32,
        width=32,
        num_inference_steps=3 + index,
        guidance_scale=5.0 + index,
        generator=torch.Generator().manual_seed(index),
        output_type="np",
    )


def sd3() -> tuple[Any, Callable[[Any, int], Any]]:
    torch.manual_seed(0)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16,
        patch_size=1,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=64,
        out_channels=4,
    ).eval()
    pipeline = diffusers.StableDiffusion3Pipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=tiny_vae(),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        text_encoder_3=None,
        tokenizer_3=None,
        transformer=transformer,
    )
    return pipeline, lambda pipe, index: pipe(
        prompt_embeds=made_of(1, 12, 32, seed=index),
        negative_prompt_embeds=made_of(1, 12, 32, seed=8),
        pooled_prompt_embeds=made_of(1, 64, seed=index),
        negative_pooled_prompt_embeds=made_of(1, 64, seed=9),
        height=32,
        width=32,
        num_inference_steps=3 + index,
        guidance_scale=4.0 + index,
        generator=torch.Generator().manual_seed(index),
        output_type="latent",
    )


def flux() -> tuple[Any, Callable[[Any, int], Any]]:
    torch.manual_seed(0)
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=[4, 4, 8],
        guidance_embeds=True,
    ).eval()
    pipeline = diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=tiny_vae(),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=transformer,
    )
    return pipeline, lambda pipe, index: pipe(
        prompt_embeds=made_of(1, 12, 32, seed=index),
        pooled_prompt_embeds=made_of(1, 32, seed=index),
        height=32,
        width=32,
        num_inference_steps=3 + index,
        guidance_scale=3.0 + index,
        generator=torch.Generator().manual_seed(index),
        output_type="latent",
    )


def controlnet() -> tuple[Any, Callable[[Any, int], Any]]:
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(16, 32),
        layers_per_block=1,
        sample_size=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=8,
    ).eval()
    steering = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16)).eval()
    for parameter in steering.controlnet_mid_block.parameters():  # zero at first: it would steer nothing
        torch.nn.init.normal_(parameter)
    pipeline = diffusers.StableDiffusionControlNetPipeline(
        vae=tiny_vae(),
        text_encoder=None,
        tokenizer=None,
        unet=unet,
        controlnet=steering,
        scheduler=diffusers.DDIMScheduler(**NOISE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return pipeline, lambda pipe, index: pipe(
        prompt_embeds=made_of(1, 77, 32, seed=index),
        negative_prompt_embeds=made_of(1, 77, 32, seed=50),
        image=made_of(1, 3, 32, 32, seed=index).clamp(0, 1),
        height=32,
        width=32,
        num_inference_steps=3 + index,
        guidance_scale=5.0 + index,
        controlnet_conditioning_scale=0.8,
        generator=torch.Generator().manual_seed(index),
        output_type="np",
    )


@pytest.mark.parametrize("build", [sdxl, sd3, flux, controlnet])
def test_other_architectures_share_without_code_of_their_own(
    build: Callable[[], tuple[Any, Callable[[Any, int], Any]]],
) -> None:
    pipeline, call = build()

    def render(index: int) -> np.ndarray[Any, Any]:
        pipe = copy.copy(pipeline)
        pipe.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
        return np.asarray(call(pipe, index).images)

    stock = [render(index) for index in range(3)]
    batcher = batcher_on(pipeline)
    alone = batcher.start(lambda: render(1), BatchMode.THROUGHPUT)
    finish(batcher)
    assert np.array_equal(alone.result, stock[1])
    before = batcher.forwards, batcher.rows
    runs = [batcher.start(lambda index=index: render(index), BatchMode.THROUGHPUT) for index in range(3)]  # type: ignore[misc]
    finish(batcher)
    for run, expected in zip(runs, stock, strict=True):
        assert run.error is None
        np.testing.assert_allclose(run.result, expected, atol=1e-4 * max(1.0, float(np.abs(expected).max())))
    rows = 1 if build is flux else 2
    assert (batcher.rows - before[1]) / (batcher.forwards - before[0]) > 1.5 * rows


# -- as a model in a folder -------------------------------------------------------------------------------------------


def clip(width: int, *, projected: bool) -> Any:
    """A text encoder that reads what the built-in model's tokenizer writes."""
    torch.manual_seed(2)
    tokens = transformers.CLIPTokenizer.from_pretrained(WEIGHTS, subfolder="tokenizer")
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=width,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=width,
        max_position_embeddings=77,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
    )
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    return kind(config).eval()


def t5() -> tuple[Any, Any]:
    """A tokenizer of four words, and an encoder that reads them."""
    words = transformers.T5Tokenizer(
        vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((f"▁{word}", -1.0) for word in ["a", "red", "sphere"])],
        extra_ids=0,
    )
    config = transformers.T5Config(
        vocab_size=len(words), d_model=32, d_kv=8, d_ff=37, num_layers=1, num_heads=4, feed_forward_proj="gated-gelu"
    )
    torch.manual_seed(3)
    return words, transformers.T5EncoderModel(config).eval()


def whole(build: Callable[[], tuple[Any, Any]]) -> Any:
    """The pipeline with text encoders, so that it takes a prompt."""
    pipeline, _ = build()
    tokens = transformers.CLIPTokenizer.from_pretrained(WEIGHTS, subfolder="tokenizer")
    pipeline.register_modules(tokenizer=tokens, text_encoder=clip(32, projected=build is sd3))
    if build is not flux:
        pipeline.register_modules(tokenizer_2=tokens, text_encoder_2=clip(32, projected=True))
    if build is not sdxl:
        place = 2 if build is flux else 3
        words, encoder = t5()
        pipeline.register_modules(**{f"tokenizer_{place}": words, f"text_encoder_{place}": encoder})
    return pipeline


def rendered(renderer: BatchedRenderer, model: Model, specs: list[JobSpec]) -> list[np.ndarray[Any, Any]]:
    jobs = [RenderRequest(one, model, {}, lambda _: None, lambda _: None, threading.Event()) for one in specs]
    ended: dict[RenderRequest, Any] = {}
    for job in jobs:
        renderer.admit(job)
        ended.update(renderer.advance())
    while renderer.active:
        ended.update(renderer.advance())
    ended.update(renderer.advance())
    for job in jobs:
        assert isinstance(ended[job], RenderResult), ended[job]
    return [np.asarray(ended[job].artifacts[0], int) for job in jobs]


@pytest.mark.parametrize("build", [sdxl, sd3, flux])
def test_an_architecture_from_a_folder_shares_the_device_and_keeps_both_promises(
    build: Callable[[], tuple[Any, Any]], tmp_path: Path
) -> None:
    pipelines.silence_libraries()
    numerics.make_deterministic(1)
    whole(build).save_pretrained(tmp_path / "model")
    model = Model(id="other", source=str(tmp_path / "model"), tasks=("text-to-image",))
    loaded = pipelines.load(model, CPU)
    specs = [
        spec(
            model="other",
            scheduler="euler" if build is sdxl else "flow-match-euler",
            num_inference_steps=3 + index,
            guidance_scale=3.0 + index,
            seed=index,
            width=32,
            height=32,
            exact=False,
        )
        for index in range(4)
    ]
    stock = [np.asarray(pipelines.render(loaded, one, 0, {}, lambda _: None, threading.Event()), int) for one in specs]
    assert len({image.tobytes() for image in stock}) == len(specs)
    renderer = BatchedRenderer(ModelCache(CPU), 8)
    company = np.stack(rendered(renderer, model, specs))
    assert np.abs(company - np.stack(stock)).max() <= 1
    assert renderer.batcher.rows / renderer.batcher.forwards > (1.2 if build is flux else 2.2)
    assert not renderer.refusals
    longer = {"num_inference_steps": 12}
    exact = [one.model_copy(update={"exact": True, "common": one.common | longer}) for one in specs]
    stock = [np.asarray(pipelines.render(loaded, one, 0, {}, lambda _: None, threading.Event()), int) for one in exact]
    for order in (exact, exact[::-1]):  # the first time, sharing is also measured
        before = renderer.batcher.forwards, renderer.batcher.rows
        images = dict(zip((one.seed for one in order), rendered(renderer, model, order), strict=True))
        assert [images[one.seed].tobytes() for one in exact] == [one.tobytes() for one in stock]
    assert (renderer.batcher.rows - before[1]) / (renderer.batcher.forwards - before[0]) > (
        1.2 if build is flux else 2.2
    )
    assert not renderer.refusals
