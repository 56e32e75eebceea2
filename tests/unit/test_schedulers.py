"""The public names of schedulers, and what other tools call them."""

from __future__ import annotations

import pytest

from farm.api.compat import a1111, fal, openai_images, replicate
from farm.domain.parameters import PARAMETERS
from farm.domain.schedulers import CLASSES, SAMPLERS, SCHEDULES, Sampler, check_options, class_of, sampler, sampler_name
from farm.pipelines.catalogue import catalogue


def test_every_public_name_is_a_class_of_diffusers_and_none_is_two() -> None:
    assert set(CLASSES.values()) <= set(catalogue().scheduler_names)
    assert len(set(CLASSES.values())) == len(CLASSES)
    assert class_of("euler") == class_of("EulerDiscreteScheduler") == "EulerDiscreteScheduler"
    assert class_of("no-such") is None


@pytest.mark.parametrize("name", SAMPLERS)
def test_each_sampler_of_a1111_is_a_scheduler_with_options_that_it_has(name: str) -> None:
    found = SAMPLERS[name]
    options, problems = check_options(catalogue().scheduler(CLASSES[found.scheduler]), found.options)
    assert problems == []
    assert options == found.options
    assert sampler(name.upper()) == found
    assert sampler_name(found.scheduler, found.options) == name


def test_a_noise_schedule_may_follow_the_name() -> None:
    karras = sampler("DPM++ 2M SDE Karras")
    assert karras == Sampler("dpm-solver", {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True})
    assert sampler_name(karras.scheduler, karras.options) == "DPM++ 2M SDE Karras"
    assert sampler("DPM++ 2M Sideways") is None
    assert set(SCHEDULES) >= {"Automatic", "Karras", "Exponential", "Beta"}


@pytest.mark.parametrize("module", [a1111, fal, openai_images, replicate])
def test_what_other_apis_rename_are_parameters(module: object) -> None:
    names: dict[str, str] = module.NAMES  # type: ignore[attr-defined]
    assert set(names) <= set(PARAMETERS)
