"""The shipped catalogue is what the installed diffusers says, and it is complete."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from functools import cache

import pytest

from farm.pipelines.catalogue import catalogue
from farm.pipelines.checks import Unfit
from farm.pipelines.spec import Internal, Kind, Media, PipelineParameter, PipelineSpec

SPECS = {spec.name: spec for spec in catalogue().pipelines()}
MEDIA_TASKS = {
    "image": {
        *("text-to-image", "image-to-image", "inpainting", "depth-to-image", "image-editing", "image-variation"),
        *("upscaling", "depth-estimation", "normal-estimation", "intrinsic-decomposition"),
        "unconditional-image-generation",
    },
    "video": {"text-to-video", "image-to-video", "video-to-video", "video-upscaling", "text-to-3d", "image-to-3d"},
    "audio": {"text-to-audio", "audio-to-audio", "unconditional-audio-generation"},
}

#: Compares the catalogue, then lists what diffusers exports. One process, because each imports all of diffusers.
PROGRAM = """
import inspect, logging, sys, warnings
from workers.catalogue.__main__ import main
sys.argv[1:] = ["--check"]
print("check", main())
warnings.simplefilter("ignore")
logging.disable(logging.WARNING)
import diffusers
for name in sorted(dir(diffusers)):
    value = getattr(diffusers, name, None)
    if inspect.isclass(value) and value.__name__ not in ("DiffusionPipeline", "ModularPipeline"):
        kinds = {base.__name__ for base in value.__mro__}
        scheduler = name.endswith("Scheduler") and "SchedulerMixin" in kinds
        if scheduler or kinds & {"DiffusionPipeline", "ModularPipeline"}:
            print(name)
print("version", diffusers.__version__)
"""


@dataclass(frozen=True)
class Installed:
    """What the installed diffusers says."""

    check: str  #: what the command printed, and its exit code
    classes: set[str]
    version: str


@cache
def installed() -> Installed:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    printed, _, listed = done.stdout.partition("check ")
    code, *names, version = listed.splitlines()
    return Installed(f"{printed}check {code}", set(names), version.removeprefix("version "))


@pytest.mark.timeout(900)
def test_the_shipped_files_are_what_the_command_writes() -> None:
    assert installed().check == "no change\ncheck 0", "run `python -m workers.catalogue`"


@pytest.mark.timeout(900)
def test_every_class_of_diffusers_is_there() -> None:
    found = installed()
    assert len(found.classes) > 300
    assert found.classes <= {*catalogue().pipeline_names, *catalogue().scheduler_names}
    assert catalogue().version == found.version


def test_every_class_has_a_task_or_a_reason() -> None:
    assert [spec.name for spec in SPECS.values() if bool(spec.tasks) == bool(spec.no_task)] == []


def test_a_task_has_the_output_that_its_name_says() -> None:
    wrong = {
        spec.name: (task, spec.output)
        for spec in SPECS.values()
        for task in spec.tasks
        # Renders a video of which the last frame is the image; one class makes an image of a video of one frame.
        if task not in MEDIA_TASKS.get(spec.output, ())
        and spec.name != "ChronoEditPipeline"
        and not spec.workflows
        and "text-to-3d" not in spec.tasks
    }
    assert wrong == {}


@pytest.mark.parametrize(
    ("word", "task"),
    [
        ("Img2Img", "image-to-image"),
        ("Inpaint", "inpainting"),
        ("ImageToVideo", "image-to-video"),
        ("VideoToVideo", "video-to-video"),
        ("Upscale", "upscaling"),
    ],
)
def test_a_class_does_what_its_name_says(word: str, task: str) -> None:
    # Two of sound and of video repair what their medium calls otherwise; one takes the image as a prompt, one makes 3D.
    others = {"audio-to-audio", "video-to-video", "image-variation", "upscaling", "image-to-3d"}
    wrong = [
        name
        for name, spec in SPECS.items()
        if word in name and spec.tasks and task not in spec.tasks and not others & set(spec.tasks)
    ]
    assert wrong == []


def test_what_a_class_cannot_do_without_can_be_given() -> None:
    # A class that needs a tensor is a stage of another, and has no task.
    wrong = {
        spec.name: parameter.name
        for spec in SPECS.values()
        if spec.tasks
        for parameter in spec.parameters.values()
        if parameter.required and not parameter.offered and parameter.input is None
    }
    assert wrong == {}


def test_no_internal_parameter_is_in_a_schema() -> None:
    for spec in SPECS.values():
        offered = spec.json_schema()["properties"]
        assert not [name for name in offered if spec.parameters[name].internal or spec.parameters[name].input]
        assert not {"generator", "latents", "prompt_embeds", "output_type", "callback_on_step_end"} & set(offered)


def every_option() -> list[tuple[str, PipelineParameter]]:
    return [(spec.name, p) for spec in SPECS.values() for p in spec.parameters.values()] + [
        (spec.name, p) for spec in catalogue().schedulers() for p in spec.options.values()
    ]


def test_every_default_fits_its_own_schema() -> None:
    wrong = {}
    for owner, parameter in every_option():
        if parameter.offered and parameter.default is not None:
            try:
                parameter.check(parameter.default)
            except Unfit as problem:
                wrong[owner, parameter.name] = (parameter.default, str(problem))
    assert wrong == {}


def test_every_offered_parameter_has_a_schema_and_almost_each_a_description() -> None:
    offered = [(owner, p) for owner, p in every_option() if p.offered]
    assert [(owner, p.name) for owner, p in offered if not p.schema] == []
    assert sum(bool(p.description) for _, p in offered) / len(offered) > 0.95


def test_an_alias_names_a_parameter_of_the_class() -> None:
    for spec in SPECS.values():
        assert set(spec.aliases.values()) <= set(spec.parameters), spec.name
        assert not {common for common in spec.aliases if common == spec.aliases[common]}, spec.name


def test_every_class_with_a_scheduler_and_a_task_has_a_denoiser() -> None:
    without = {
        spec.name for spec in SPECS.values() if spec.tasks and "scheduler" in spec.components and not spec.denoisers
    }
    assert without == set()
    for spec in SPECS.values():
        assert {*spec.denoisers, *spec.decoders, *spec.optional_components} <= set(spec.components), spec.name


def test_a_size_is_a_multiple_of_what_its_rule_says_for_a_usual_model() -> None:
    sized = [spec for spec in SPECS.values() if spec.tasks and {"height", "width"} <= set(spec.parameters)]
    assert sum(spec.size is not None for spec in sized) / len(sized) > 0.9
    for spec in sized:
        for side in ("height", "width"):
            default = spec.parameters[side].default
            if spec.size and spec.size.multiple and default and spec.kind is Kind.PIPELINE:
                assert default % spec.size.multiple == 0, (spec.name, side, default, spec.size)


def test_a_class_with_the_same_weights_does_the_task_that_it_is_named_for() -> None:
    for spec in SPECS.values():
        for task, other in spec.same_weights.items():
            assert other in SPECS, (spec.name, other)
            kinds = {task, "image-editing" if task == "image-to-image" else task}
            assert kinds & set(SPECS[other].tasks), (spec.name, task, other)


# Facts that were looked up in the source by hand.


def spec(name: str) -> PipelineSpec:
    return SPECS[name]


def test_flux_2_takes_no_negative_prompt_and_several_images() -> None:
    assert not spec("Flux2Pipeline").takes("negative_prompt")
    assert spec("FluxPipeline").takes("negative_prompt")
    image = spec("Flux2Pipeline").parameters["image"].input
    assert image is not None
    assert image.many
    assert spec("Flux2Pipeline").tasks == ("image-editing", "text-to-image")


def test_qwen_image_takes_true_cfg_scale() -> None:
    assert spec("QwenImagePipeline").parameters["true_cfg_scale"].default == 4.0
    assert spec("QwenImagePipeline").aliases["guidance_scale"] == "true_cfg_scale"


def test_the_strength_of_stable_diffusion_is_four_fifths_by_default() -> None:
    strength = spec("StableDiffusionImg2ImgPipeline").parameters["strength"]
    assert strength.default == 0.8
    assert (strength.schema["minimum"], strength.schema["maximum"]) == (0, 1)


def test_the_image_of_a_controlnet_is_a_control_image_where_there_is_no_other() -> None:
    assert spec("StableDiffusionControlNetPipeline").aliases["control_image"] == "image"
    assert "control_image" not in spec("StableDiffusionControlNetImg2ImgPipeline").aliases
    assert spec("StableDiffusionControlNetPipeline").parameters["image"].required


def test_a_decoder_names_the_class_that_runs_it_with_its_prior() -> None:
    assert spec("KandinskyV22Pipeline").tasks == ()
    assert spec("KandinskyV22Pipeline").combined == "KandinskyV22CombinedPipeline"
    assert spec("KandinskyV22CombinedPipeline").denoisers == ("prior_prior", "unet")
    assert set(spec("KandinskyV22CombinedPipeline").pipelines.values()) == {
        "KandinskyV22Pipeline",
        "KandinskyV22PriorPipeline",
    }


def test_a_video_with_sound_has_two_outputs() -> None:
    assert spec("LTX2Pipeline").outputs == {"frames": Media.VIDEO, "audio": Media.AUDIO}
    assert spec("LTX2Pipeline").output is Media.VIDEO


def test_packages_are_named_whatever_is_installed_here() -> None:
    assert spec("KolorsPipeline").packages == ("sentencepiece",)
    assert spec("ConsisIDPipeline").packages == ("opencv-python-headless",)
    assert spec("PixArtSigmaPipeline").packages == ()
    assert spec("PixArtSigmaPipeline").optional_packages == ("beautifulsoup4", "ftfy")


def test_the_weights_of_stable_diffusion_do_three_tasks() -> None:
    assert spec("StableDiffusionPipeline").same_weights == {
        "image-to-image": "StableDiffusionImg2ImgPipeline",
        "inpainting": "StableDiffusionInpaintPipeline",
    }


def test_a_modular_pipeline_says_what_its_inputs_choose() -> None:
    workflows = spec("QwenImageModularPipeline").workflows
    assert workflows["inpainting"].inputs == ("image", "mask_image", "prompt")
    assert workflows["controlnet_text2image"].task == "text-to-image"
    assert spec("Cosmos3OmniModularPipeline").workflows["text2image"].fixed == {"num_frames": 1}
    assert spec("MiniMaxMusic3ModularPipeline").tasks == ("text-to-audio",)


def test_a_file_of_the_worker_cannot_be_named() -> None:
    assert spec("BriaFibo2Pipeline").parameters["fonts"].internal is Internal.FILE
