"""The tiny models render through the farm's data plane; ``python -m tests.contract.families`` tries all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from farm.domain.model import Model
from farm.pipelines.catalogue import catalogue
from tests.contract.families import FAMILIES, farm, save
from tests.job_specs import STARTER_TASKS
from tests.unit.test_pipelines import STARTER, images, spec
from workers import numerics, pipelines
from workers.batched_renderer import BatchedRenderer
from workers.model_cache import ModelCache
from workers.pipelines.isolation import Sharing

pytestmark = pytest.mark.filterwarnings("ignore")  # stock pipelines warn of what diffusers will change

#: Classes that differ in what a worker has to do, and what each stands for.
FAST = {
    "StableDiffusionImg2ImgPipeline": "shares",  # made of the components of another class
    "StableDiffusionControlNetPipeline": "shares",  # an input that the class names otherwise
    "FluxImg2ImgPipeline": "shares",  # takes a size beside the image
    "KandinskyV22CombinedPipeline": "shares",  # pipelines inside, with schedulers of their own
    "FluxKontextPipeline": "shares",  # brings every size to a megapixel
    "EasyAnimatePipeline": "shares",  # a VAE that keeps frames between its calls
    "StableDiffusionPAGPipeline": "attn1.processor",  # swaps the attention processors of the shared UNet
}


@pytest.fixture(scope="module", autouse=True)
def _deterministic() -> None:
    pipelines.silence_libraries()
    numerics.make_deterministic(1)


@pytest.mark.parametrize(("pipeline_class", "sharing"), FAST.items())
def test_a_job_has_the_bytes_of_the_stock_pipeline(pipeline_class: str, sharing: str, tmp_path: Path) -> None:
    family = next(family for family in FAMILIES.values() if pipeline_class in family.calls)
    report = farm.check(family, pipeline_class, save(family.name, tmp_path / "model"))
    assert sharing in report.sharing
    assert report.own


def test_jobs_of_a_model_that_upcasts_its_vae_do_not_disturb_each_other(tmp_path: Path) -> None:
    """SDXL's image-to-image casts the VAE to float32 and back, in which time no other job may use it."""
    name = "StableDiffusionXLImg2ImgPipeline"
    family = FAMILIES["stable-diffusion-xl"]
    model = Model(id="sdxl", source=str(save(family.name, tmp_path / "model")), tasks=("image-to-image",))
    cache = ModelCache(farm.CPU)
    renderer = BatchedRenderer(cache, 8)
    loaded = cache.load(model)
    loaded.pipeline("image-to-image").to(torch.bfloat16)
    loaded.isolation_of("image-to-image").sharing = Sharing.SHARES
    job = farm.job_of(catalogue().pipeline(name), family.calls[name].arguments(), model.id)
    (alone,) = farm.run(renderer, model, [job.spec], job.inputs)
    company = farm.run(renderer, model, [job.spec] * 4, job.inputs)
    images = []
    for outcome in (alone, *company):
        assert outcome.result is not None, outcome.error
        images.append(farm.values_of(outcome.result.artifacts[0]))
    assert all(abs(image.astype(int) - images[0]).max() <= 24 for image in images)  # bfloat16 has 8 significant bits
    assert loaded.pipeline("image-to-image").vae.dtype is torch.bfloat16


@pytest.mark.parametrize("task", STARTER_TASKS)
def test_the_calls_of_the_built_in_model_change_nothing_that_others_read(task: str) -> None:
    """So its jobs share from the first one on, which the loader takes for granted."""
    cache = ModelCache(farm.CPU)
    renderer = BatchedRenderer(cache, 8)
    loaded = cache.load(STARTER)
    assert loaded.isolation_of(task).sharing is Sharing.SHARES
    loaded.isolation.clear()
    for _ in range(2):  # the first call may make tables
        (outcome,) = farm.run(renderer, STARTER, [spec(task, num_inference_steps=2)], images(task))
        assert outcome.result is not None, outcome.error
    assert loaded.isolation_of(task).sharing is Sharing.SHARES
    assert not loaded.isolation_of(task).unparked
