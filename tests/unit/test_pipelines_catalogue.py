"""The catalogue of pipeline classes as the control plane reads it."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Collection

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.errors import BadInput, NotFound
from farm.pipelines.catalogue import Catalogue, catalogue
from farm.pipelines.checks import MAX_TEXT, Unfit, allowed, coerce, parse
from farm.pipelines.document import write
from farm.pipelines.granularity import Granularity, MissingConfig
from farm.pipelines.spec import Form, Formulation, Media


def refusal(pipeline: str, name: str, value: object, *, exclude: Collection[str] = (), field: str | None = None) -> str:
    with pytest.raises(BadInput) as caught:
        catalogue().pipeline(pipeline).check(name, value, exclude=exclude, field=field)
    (problem,) = caught.value.problems
    assert problem.field == (field or f"parameters.{name}")
    return problem.message


# Values


def test_an_integer_of_json_becomes_the_number_that_the_pipeline_takes() -> None:
    value = catalogue().pipeline("QwenImagePipeline").check("true_cfg_scale", 5)
    assert value == 5.0
    assert isinstance(value, float)


def test_a_number_without_a_fraction_is_an_integer() -> None:
    value = catalogue().pipeline("FluxPipeline").check("max_sequence_length", 256.0)
    assert value == 256
    assert isinstance(value, int)


@pytest.mark.parametrize("value", [True, False, 1.5, "256", None, [256], math.nan, math.inf, -math.inf, 2**63, {}])
def test_what_is_no_integer_is_refused(value: object) -> None:
    refusal("FluxPipeline", "max_sequence_length", value)


@pytest.mark.parametrize("value", [True, "7.5", None, math.nan, math.inf, -math.inf, 10**400, -0.5])
def test_what_is_no_number_in_its_bounds_is_refused(value: object) -> None:
    refusal("QwenImagePipeline", "true_cfg_scale", value)


@pytest.mark.parametrize("value", ["a\x00b", "\ud800", "x" * (MAX_TEXT + 1)])
def test_a_text_that_cannot_be_stored_is_refused(value: str) -> None:
    refusal("FluxPipeline", "prompt_2", value)


def test_a_list_is_checked_item_by_item() -> None:
    spec = catalogue().pipeline("StableDiffusionXLPipeline")
    assert spec.check("original_size", [512, 768.0]) == [512, 768]
    assert "has 3 items; allowed are 2" in refusal("StableDiffusionXLPipeline", "original_size", [1, 2, 3])
    assert "item 1 must be an integer" in refusal("StableDiffusionXLPipeline", "original_size", [1, "2"])


def test_a_number_or_a_list_of_numbers_may_be_given_for_several_controlnets() -> None:
    spec = catalogue().pipeline("StableDiffusionControlNetPipeline")
    assert spec.check("controlnet_conditioning_scale", 1) == 1.0
    assert spec.check("controlnet_conditioning_scale", [1, 0.5]) == [1.0, 0.5]


def test_a_choice_names_what_is_allowed() -> None:
    assert refusal("WanAnimatePipeline", "mode", "dance") == "must be one of animate, replace"


def test_a_bound_of_the_source_is_named() -> None:
    message = refusal("FluxPipeline", "max_sequence_length", 513)
    assert message == "is 513; allowed is an integer of at least 1 and of at most 512"


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": "string"}, "0.5", "0.5"),
        ({"type": "number"}, "0.5", 0.5),
        ({"type": "boolean"}, "true", True),
        ({"type": "array", "items": {"type": "integer"}}, "[1, 2]", [1, 2]),
        ({"enum": ["first", "last"]}, "last", "last"),
    ],
)
def test_a_text_of_a_command_line_means_a_value(schema: dict[str, object], text: str, value: object) -> None:
    assert parse(schema, text) == value


@pytest.mark.parametrize("text", ["", "half", "NaN", "Infinity", "1e999", "[1]", "null", '"1"'])
def test_a_text_that_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(Unfit):
        parse({"type": "number"}, text)


def test_an_exclusive_bound_is_kept() -> None:
    schema = {"type": "number", "exclusiveMinimum": 0.0}
    assert coerce(schema, 0.1) == 0.1
    with pytest.raises(Unfit, match="above 0"):
        coerce(schema, 0)
    assert allowed(schema) == "a number above 0"


@given(st.integers() | st.floats() | st.text() | st.booleans() | st.none() | st.lists(st.floats()))
def test_what_is_accepted_once_is_accepted_again_unchanged(value: object) -> None:
    for schema in ({"type": "integer"}, {"type": ["number", "array"], "items": {"type": "number", "minimum": 0}}):
        try:
            accepted = coerce(schema, value)
        except Unfit:
            continue
        assert coerce(schema, accepted) == accepted


# What a class takes


def test_a_parameter_that_the_class_lacks_is_refused_with_those_that_it_has() -> None:
    message = refusal("QwenImagePipeline", "true_cfg_scal", 4.0)
    assert message.startswith("QwenImagePipeline has no such parameter; did you mean true_cfg_scale? it takes ")
    assert "max_sequence_length" in message


@pytest.mark.parametrize(
    ("pipeline", "name", "message"),
    [
        ("FluxPipeline", "latents", "is a tensor, which a request cannot carry"),
        ("FluxPipeline", "callback_on_step_end", "is a function, which a request cannot carry"),
        ("FluxPipeline", "joint_attention_kwargs", "is a Python object, which a request cannot carry"),
        ("FluxPipeline", "generator", "is set by the worker"),
        ("BriaFibo2Pipeline", "fonts", "names a file on the worker, which a request cannot do"),
        ("FluxImg2ImgPipeline", "image", "is an input (image): give it as an input, not in parameters"),
    ],
)
def test_what_a_request_cannot_give_is_refused_with_the_reason(pipeline: str, name: str, message: str) -> None:
    assert refusal(pipeline, name, "anything") == message


def test_a_parameter_that_the_request_gives_elsewhere_is_refused_in_parameters() -> None:
    assert refusal("FluxPipeline", "prompt", "a cat", exclude={"prompt"}).startswith("is a field of the request itself")


def test_the_field_is_named_as_the_client_wrote_it() -> None:
    refusal("FluxPipeline", "nonsense", 1, field="jobs[3].parameters.nonsense")


def test_the_schema_offers_what_check_accepts_and_nothing_else() -> None:
    spec = catalogue().pipeline("FluxPipeline")
    schema = spec.json_schema(exclude={"prompt", "height", "width"})
    assert schema["additionalProperties"] is False
    assert "prompt" not in schema["properties"]
    assert "latents" not in schema["properties"]
    assert schema["properties"]["max_sequence_length"] | {"description": ""} == {
        "type": "integer",
        "minimum": 1,
        "maximum": 512,
        "default": 512,
        "description": "",
    }
    assert spec.json_schema()["required"] == ["prompt"]


def test_a_common_name_leads_to_the_name_that_the_class_has() -> None:
    pipelines = catalogue()
    assert pipelines.pipeline("QwenImagePipeline").own_name("guidance_scale") == "true_cfg_scale"
    assert pipelines.pipeline("FluxPipeline").own_name("guidance_scale") == "guidance_scale"
    assert pipelines.pipeline("StableDiffusionControlNetPipeline").own_name("control_image") == "image"
    assert pipelines.pipeline("StableAudioPipeline").own_name("seconds") == "audio_end_in_s"
    assert pipelines.pipeline("SanaVideoPipeline").own_name("num_frames") == "frames"
    assert pipelines.pipeline("FluxPipeline").own_name("strength") is None


def test_an_input_says_what_it_takes() -> None:
    references = catalogue().pipeline("QwenImageEditPlusPipeline").inputs["image"].input
    sound = catalogue().pipeline("StableAudio3AudioToAudioPipeline").inputs["audio"].input
    assert references is not None
    assert (references.media, references.many, references.form) == (Media.IMAGE, True, Form.PIL)
    assert sound is not None
    assert (sound.media, sound.many, sound.form) == (Media.AUDIO, False, Form.TENSOR)


def test_a_class_that_does_not_exist_is_not_found() -> None:
    with pytest.raises(NotFound, match="FluxPipelin"):
        catalogue().pipeline("FluxPipelin")
    with pytest.raises(NotFound, match="EulerScheduler"):
        catalogue().scheduler("EulerScheduler")


# Schedulers


def names(pipeline: str, *model: object) -> set[str]:
    return {choice.spec.name for choice in catalogue().schedulers_for(pipeline, *model)}  # type: ignore[arg-type]


def test_a_flow_matching_model_gets_schedulers_of_flows_alone() -> None:
    found = names("FluxPipeline")
    assert {"FlowMatchEulerDiscreteScheduler", "DPMSolverMultistepScheduler"} <= found
    assert not {"EulerDiscreteScheduler", "DDIMScheduler", "LCMScheduler"} & found


def test_a_scheduler_that_can_do_both_is_made_with_the_options_of_a_flow() -> None:
    choices = {choice.spec.name: choice.config for choice in catalogue().schedulers_for("FluxPipeline")}
    assert choices["DPMSolverMultistepScheduler"] == {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
    assert choices["FlowMatchEulerDiscreteScheduler"] == {}
    beta = {choice.spec.name: choice.config for choice in catalogue().schedulers_for("StableDiffusionPipeline")}
    assert beta["DPMSolverMultistepScheduler"] == {}


def test_a_scheduler_without_an_argument_that_the_pipeline_passes_is_left_out() -> None:
    # Qwen-Image always passes sigmas, which DPM-Solver does not take; Flux leaves them out for flow sigmas.
    assert "DPMSolverMultistepScheduler" not in names("QwenImagePipeline")
    assert "UniPCMultistepScheduler" in names("QwenImagePipeline")
    # Flux passes mu, which Heun for flows does not take.
    assert "FlowMatchHeunDiscreteScheduler" not in names("FluxPipeline")


def test_the_schedulers_of_stable_diffusion_are_more_than_diffusers_lists() -> None:
    found = names("StableDiffusionPipeline")
    assert {"LCMScheduler", "TCDScheduler", "SASolverScheduler", "DPMSolverSDEScheduler"} <= found
    assert not {"DDIMInverseScheduler", "EDMEulerScheduler", "FlowMatchEulerDiscreteScheduler"} & found


def test_a_pipeline_with_arguments_of_its_own_gets_the_schedulers_that_take_them() -> None:
    assert names("LatentConsistencyModelPipeline") == {"LCMScheduler"}
    assert names("SanaSprintPipeline") == set()
    assert names("SanaSprintPipeline", "SCMScheduler") == {"SCMScheduler"}


def test_the_model_s_own_scheduler_decides_the_noise_process() -> None:
    edm = names("StableDiffusionXLPipeline", "EDMEulerScheduler")
    assert "EDMEulerScheduler" in edm
    assert "EulerDiscreteScheduler" not in edm
    flow = names("StableDiffusionPipeline", "DPMSolverMultistepScheduler", {"prediction_type": "flow_prediction"})
    assert "UniPCMultistepScheduler" in flow
    assert "EulerDiscreteScheduler" not in flow


def test_a_property_of_the_model_is_no_option_of_a_job() -> None:
    options = catalogue().scheduler("EulerDiscreteScheduler").options
    assert options["use_karras_sigmas"].offered
    assert options["timestep_spacing"].schema["enum"] == ["linspace", "leading", "trailing"]
    assert not options["prediction_type"].offered
    assert not options["beta_start"].offered


def test_a_scheduler_that_calls_the_denoiser_twice_says_so() -> None:
    assert catalogue().scheduler("HeunDiscreteScheduler").order == 2
    assert catalogue().scheduler("EulerDiscreteScheduler").order == 1
    assert catalogue().scheduler("DPMSolverSDEScheduler").packages == ("torchsde",)


def test_every_formulation_is_that_of_some_scheduler() -> None:
    assert {spec.formulation for spec in catalogue().schedulers()} == set(Formulation)


# Sizes


def test_a_multiple_is_computed_from_the_configs_of_the_folder() -> None:
    size = catalogue().pipeline("FluxPipeline").size
    assert size is not None
    assert size.multiple == 16
    assert size.multiple_for({"vae": {"block_out_channels": [8, 8]}, "transformer": {"patch_size": 1}}) == 4
    assert size.multiple_for({"vae": {"block_out_channels": [8] * 4}, "transformer": {"patch_size": [1, 2, 3]}}) == 48


def test_a_count_of_frames_is_one_more_than_a_multiple() -> None:
    frames = catalogue().pipeline("WanPipeline").frames
    assert frames is not None
    assert (frames.multiple, frames.offset) == (4, 1)
    assert frames.multiple_for({"vae": {"scale_factor_temporal": 8}}) == 8


def test_a_config_without_the_key_is_named() -> None:
    with pytest.raises(MissingConfig, match="the config of vae has no block_out_channels"):
        Granularity(8, "2 ** len(vae.block_out_channels)").multiple_for({"vae": {}})
    assert Granularity(8, "default(vae.ratio, 4)").multiple_for({"vae": {"ratio": None}}) == 4


@pytest.mark.parametrize("rule", ["__import__('os')", "vae.a.b", "open", "(lambda: 1)()", "[1 for _ in vae.x]"])
def test_a_rule_is_arithmetic_and_nothing_else(rule: str) -> None:
    with pytest.raises(ValueError, match="a rule may not contain"):
        Granularity(1, rule).multiple_for({"vae": {"x": [1]}})


# The document


def test_the_document_is_what_its_values_write() -> None:
    read = catalogue()
    groups = read._document["groups"]
    again = write(read.version, groups, read.pipelines(), read.schedulers())
    assert Catalogue(again)._document == read._document


def test_a_class_is_one_line() -> None:
    text = write("1", {}, [catalogue().pipeline("FluxPipeline")], [])
    assert sum(line.startswith('"FluxPipeline": ') for line in text.splitlines()) == 1


READ = """
import time
wall, cpu = time.perf_counter(), time.process_time()
from farm.pipelines.catalogue import catalogue
catalogue().pipeline("FluxPipeline").json_schema()
cpu = time.process_time() - cpu
import sys
heavy = {"torch", "diffusers", "numpy", "pydantic", "sqlalchemy"} & set(sys.modules)
assert not heavy, heavy
print(cpu)
"""


def test_reading_is_quick_and_loads_no_library() -> None:
    times = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", READ], capture_output=True, text=True, check=True)
        times.append(float(done.stdout))
    assert min(times) < 0.3  # seconds of a processor, most of them for modules of the standard library
