"""From a request to a spec: every gap closed, every limit said in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from farm import model_registry
from farm.domain.job_spec import InputFile, JobSpec
from farm.domain.model import Registry
from farm.domain.requests import AnyJobRequest
from farm.domain.resolve import RANDOM_SEED_LIMIT, choose_model, resolve
from farm.errors import BadInput
from farm.fields import CellText

REGISTRY = model_registry.load(None)
REQUEST: TypeAdapter[Any] = TypeAdapter(AnyJobRequest)


def image(width: int = 128, height: int = 128) -> InputFile:
    size = {"width": width, "height": height}
    return InputFile(sha256="0" * 64, key="k", media_type="image/png", size=99, metadata=size)


def animation() -> InputFile:
    metadata = {"width": 128, "height": 128, "frames": 9, "fps": 10.0, "seconds": 0.9}
    return image().model_copy(update={"media_type": "image/webp", "metadata": metadata})


def black_mask() -> InputFile:
    return image().model_copy(update={"metadata": {"width": 128, "height": 128, "empty_mask": 1}})


def resolved(
    given: dict[str, Any], images: dict[str, InputFile] | None = None, registry: Registry = REGISTRY
) -> JobSpec:
    request = REQUEST.validate_python({"prompt": "a red ball"} | given)
    files = {role: (file,) for role, file in (images or {}).items()}
    return resolve(request, choose_model(request, registry), files)


def refused(given: dict[str, Any], images: dict[str, InputFile] | None = None) -> list[str]:
    return list(problems(given, images))


def problems(
    given: dict[str, Any], images: dict[str, InputFile] | None = None, registry: Registry = REGISTRY
) -> dict[str, str]:
    """What is wrong, by field."""
    with pytest.raises(BadInput) as caught:
        resolved(given, images, registry)
    return {problem.field: problem.message for problem in caught.value.problems}


def test_every_gap_is_closed_and_a_seed_is_drawn() -> None:
    specs = [resolved({"task": "text-to-image"}) for _ in range(5)]
    assert len({spec.seed for spec in specs}) == 5
    assert all(spec.seed < RANDOM_SEED_LIMIT for spec in specs)
    defaults = REGISTRY.rendering[0].defaults
    assert (specs[0].width, specs[0].height, specs[0].num_inference_steps) == (
        defaults["width"],
        defaults["height"],
        defaults["num_inference_steps"],
    )


def test_the_size_of_an_image_decides_within_the_models_limits() -> None:
    spec = resolved({"task": "image-to-image", "image": "sha256:x"}, {"image": image(1000, 500)})
    limits = REGISTRY.rendering[0].limits
    assert spec.width is not None
    assert spec.height is not None
    assert spec.width <= limits.max_side
    assert spec.width * spec.height <= limits.max_pixels
    assert spec.width / spec.height == pytest.approx(2, rel=0.1)
    assert spec.width % 8 == spec.height % 8 == 0


@pytest.mark.parametrize(
    ("given", "images", "fields"),
    [
        ({"task": "text-to-image", "model": "nope"}, {}, ["model"]),
        ({"task": "text-to-image", "width": 4096}, {}, ["width"]),
        ({"task": "text-to-image", "scheduler": "pndm", "num_inference_steps": 3}, {}, ["num_inference_steps"]),
        (
            {"task": "image-to-image", "image": "x", "strength": 0.01, "num_inference_steps": 10},
            {"image": image()},
            ["strength"],
        ),
        ({"task": "image-to-image", "image": "x"}, {"image": animation()}, ["image"]),
        (
            {"task": "inpainting", "image": "x", "mask_image": "y"},
            {"image": image(), "mask_image": black_mask()},
            ["mask_image"],
        ),
        (
            {"task": "inpainting", "image": "x", "mask_image": "y"},
            {"image": image(), "mask_image": image(64, 64)},
            ["mask_image"],
        ),
    ],
)
def test_what_cannot_be_rendered_is_named(
    given: dict[str, Any], images: dict[str, InputFile], fields: list[str]
) -> None:
    assert refused(given, images) == fields


def registry_of(pipeline: str, more: str = "") -> Registry:
    """A registry of one model of that class, on the Hub."""
    return model_registry.parse(f'[[model]]\nid = "m"\nsource = "a/b"\npipeline = "{pipeline}"\n{more}', "models.toml")


def test_what_nobody_gave_is_absent() -> None:
    spec = resolved({"task": "text-to-image"}, registry=registry_of("FluxPipeline"))
    assert spec.common == {"prompt": "a red ball"}
    assert (spec.scheduler, spec.parameters, spec.pipeline) == (None, {}, "FluxPipeline")
    assert spec.request()["task"] == "text-to-image"
    assert not {"width", "negative_prompt", "parameters", "scheduler"} & spec.request().keys()


def test_a_null_for_the_negative_prompt_is_kept_and_replaces_the_models_default() -> None:
    registry = registry_of("StableDiffusionXLPipeline", 'defaults = {negative_prompt = "blurred"}')
    assert resolved({"task": "text-to-image"}, registry=registry).common["negative_prompt"] == "blurred"
    spec = resolved({"task": "text-to-image", "negative_prompt": None}, registry=registry)
    assert spec.common["negative_prompt"] is None
    assert resolved(spec.request(), registry=registry).common == spec.common


@pytest.mark.parametrize(
    ("pipeline", "given", "field", "words"),
    [
        ("Flux2Pipeline", {"negative_prompt": "x"}, "negative_prompt", ["Flux2Pipeline", "guidance_scale", "model m"]),
        ("FluxPipeline", {"parameters": {"clip_skip": 1}}, "parameters.clip_skip", ["FluxPipeline", "true_cfg_scale"]),
        ("FluxPipeline", {"parameters": {"max_sequence_length": "x"}}, "parameters.max_sequence_length", ["integer"]),
        ("FluxPipeline", {"parameters": {"prompt": "x"}}, "parameters.prompt", ["field of the request"]),
        ("QwenImagePipeline", {"parameters": {"true_cfg_scale": 2}, "guidance_scale": 3.0, "negative_prompt": ""},
         "parameters.true_cfg_scale", ["guidance_scale"]),
        ("FluxPipeline", {"negative_prompt": "x"}, "negative_prompt", ["ignored", "parameters.true_cfg_scale is 1"]),
        ("FluxPipeline", {"parameters": {"true_cfg_scale": 3}}, "parameters.true_cfg_scale", ["negative_prompt"]),
        ("QwenImagePipeline", {"guidance_scale": 3.0}, "guidance_scale", ["without a negative prompt"]),
        ("StableDiffusionXLPipeline", {"negative_prompt": "x", "guidance_scale": 1.0}, "negative_prompt", ["ignored"]),
        ("FluxPipeline", {"width": 520, "height": 512}, "width", ["16", "512", "528"]),
        ("FluxPipeline", {"scheduler": "euler"}, "scheduler", ["flow-match-euler"]),
        ("FluxPipeline", {"scheduler": "dimm"}, "scheduler", ["not a scheduler"]),
        ("StableDiffusionPipeline", {"scheduler": "flow-match-euler"}, "scheduler", ["ddim"]),
        ("StableDiffusionPipeline", {"scheduler": "dpm-solver", "scheduler_options": {"karras": True}},
         "scheduler_options.karras", ["use_karras_sigmas"]),
        ("StableDiffusionPipeline", {"scheduler": "dpm-solver", "scheduler_options": {"algorithm_type": "x"}},
         "scheduler_options.algorithm_type", ["dpmsolver++"]),
    ],
)  # fmt: skip
def test_what_the_pipeline_does_not_take_is_refused_with_what_it_takes(
    pipeline: str, given: dict[str, Any], field: str, words: list[str]
) -> None:
    found = problems({"task": "text-to-image"} | given, registry=registry_of(pipeline))
    assert list(found) == [field]
    for word in words:
        assert word in found[field]


def test_parameters_and_schedulers_of_the_class_are_taken_in_its_types() -> None:
    given = {
        "task": "text-to-image",
        "parameters": {"clip_skip": 2.0, "eta": 1, "guidance_rescale": CellText("0.5")},
        "scheduler": "UniPCMultistepScheduler",
        "scheduler_options": {"use_karras_sigmas": True, "solver_order": 3},
    }
    spec = resolved(given, registry=registry_of("StableDiffusionPipeline"))
    assert spec.parameters == {"clip_skip": 2, "eta": 1.0, "guidance_rescale": 0.5}
    assert spec.scheduler_options == {"use_karras_sigmas": True, "solver_order": 3}
    assert type(spec.parameters["clip_skip"]) is int
    assert type(spec.parameters["eta"]) is float


def test_a_model_does_what_its_class_and_the_classes_of_the_same_weights_do() -> None:
    (model,) = registry_of("FluxPipeline").rendering
    assert set(model.tasks) >= {"text-to-image", "image-to-image", "inpainting"}
    found = model.pipeline_for("image-to-image")
    assert found is not None
    assert found.name == "FluxImg2ImgPipeline"


def test_a_model_of_an_unknown_class_takes_what_the_task_takes() -> None:
    registry = model_registry.parse('[[model]]\nid = "m"\nsource = "a/b"\ntasks = ["text-to-image"]', "models.toml")
    given = {"task": "text-to-image", "negative_prompt": "x", "parameters": {"any": [1]}, "scheduler": "euler"}
    spec = resolved(given, registry=registry)
    assert (spec.pipeline, spec.parameters, spec.scheduler) == (None, {"any": [1]}, "euler")


def test_an_entry_that_is_wrong_is_reported_with_its_remedy_and_stops_nothing() -> None:
    text = """
        [[model]]
        id = "good"
        source = "a/b"
        pipeline = "FluxPipeline"
        tasks = ["text-to-image", "depth-to-image"]

        [[model]]
        id = "typo"
        source = "a/b"
        pipeline = "FluxPipelin"

        [[model]]
        id = "odd"
        source = "a/b"
        tasks = ["text-to-image"]
        defaults = {steps = 3}

        [[model]]
        id = "good"
        source = "a/b"
        tasks = ["text-to-image"]
    """
    registry = model_registry.parse(text, "models.toml")
    assert [model.id for model in registry.rendering] == ["good"]
    assert registry.rendering[0].tasks == ("text-to-image",)
    found = {(one.entry, one.key): str(one) for one in registry.problems}
    assert found.keys() == {("good", "tasks"), ("typo", "pipeline"), ("odd", "defaults"), ("good", "id")}
    assert "did you mean FluxPipeline?" in found["typo", "pipeline"]
    assert "num_inference_steps" in found["odd", "defaults"]


def test_the_folder_says_the_class_its_scheduler_and_its_granularity(tmp_path: Path) -> None:
    index = {"_class_name": "StableDiffusionPipeline", "scheduler": ["diffusers", "EulerDiscreteScheduler"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index | {"vae": ["diffusers", "AutoencoderKL"]}))
    for component in ("vae", "scheduler"):
        (tmp_path / component).mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text("{}")
    (tmp_path / "vae" / "model.safetensors").touch()
    (tmp_path / "vae" / "config.json").write_text(json.dumps({"block_out_channels": [4] * 6}))
    registry = model_registry.parse(f'[[model]]\nid = "m"\nsource = "{tmp_path}"', "models.toml")
    assert registry.problems == ()
    (model,) = registry.rendering
    assert (model.pipeline, model.scheduler) == ("StableDiffusionPipeline", "EulerDiscreteScheduler")
    found = problems({"task": "text-to-image", "width": 72, "height": 64}, registry=registry)
    assert "multiples of 32" in found["width"]


def test_a_folder_that_cannot_be_loaded_is_reported(tmp_path: Path) -> None:
    def key_and_message() -> tuple[str, str]:
        registry = model_registry.parse(f'[[model]]\nid = "m"\nsource = "{tmp_path}"', "models.toml")
        assert registry.rendering == ()
        (problem,) = registry.problems
        return problem.key, problem.message

    assert key_and_message() == ("source", f"{tmp_path} has no model_index.json")
    index = {"_class_name": "StableDiffusionPipeline", "vae": ["diffusers", "AutoencoderKL"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index | {"safety_checker": ["a", "B"]}))
    assert "lacks vae," in key_and_message()[1]  # the safety checker is optional
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text("{}")
    assert "no .safetensors" in key_and_message()[1]
    (tmp_path / "model_index.json").write_text("{")
    assert "cannot be read" in key_and_message()[1]


@pytest.mark.parametrize(
    ("pipeline", "given"),
    [
        ("FluxPipeline", {"negative_prompt": "x", "parameters": {"true_cfg_scale": 3}}),
        ("FluxPipeline", {"guidance_scale": 3.5}),
        ("QwenImagePipeline", {"negative_prompt": "", "guidance_scale": 3.0}),
        ("QwenImagePipeline", {"negative_prompt": "x"}),
        ("StableDiffusionXLPipeline", {"negative_prompt": "", "guidance_scale": 1.0}),
        ("ZImagePipeline", {"negative_prompt": "x", "guidance_scale": 1.0}),
    ],
)
def test_a_negative_prompt_that_is_used_is_taken(pipeline: str, given: dict[str, Any]) -> None:
    assert resolved({"task": "text-to-image"} | given, registry=registry_of(pipeline)).pipeline == pipeline


def test_a_default_scheduler_that_does_not_fit_a_pipeline_leaves_it_its_own() -> None:
    registry = registry_of(
        "FluxPipeline", 'scheduler = "FlowMatchEulerDiscreteScheduler"\ndefaults = {scheduler = "ddim"}'
    )
    assert resolved({"task": "text-to-image"}, registry=registry).scheduler is None
    spec = resolved({"task": "text-to-image", "scheduler_options": {"shift": 2}}, registry=registry)
    assert (spec.scheduler, spec.scheduler_options) == (None, {"shift": 2.0})
    found = problems({"task": "text-to-image", "scheduler_options": {"beta_start": 1.0}}, registry=registry)
    assert list(found) == ["scheduler_options.beta_start"]
