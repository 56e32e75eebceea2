"""From what a job gives to the arguments of a pipeline's call: only what is given, by the class's own names."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from farm.errors import UnsuitableInput, UnsupportedParameter
from farm.pipelines.catalogue import catalogue
from workers.media.artifacts import Artifact, Clip, Sound
from workers.pipelines.binding import BoundCall, bind

PICTURE = Image.new("RGB", (64, 48), "red")
MASK = Image.new("L", (64, 48), 255)


def bound(
    name: str,
    common: dict[str, Any],
    parameters: dict[str, Any] | None = None,
    **inputs: Artifact | tuple[Artifact, ...],
) -> BoundCall:
    """The call of a class; a part of it that is no pipeline needs no weights."""
    kind = getattr(diffusers, name)
    pipeline = kind.__new__(kind)
    given = {role: (value,) if not isinstance(value, tuple) else value for role, value in inputs.items()}
    return bind(catalogue().pipeline(name), pipeline, common, parameters or {}, given, seed=3)


def arguments(name: str, common: dict[str, Any], parameters: dict[str, Any] | None = None, **inputs: Any) -> Any:
    found = bound(name, common, parameters, **inputs).arguments
    assert found.pop("generator").initial_seed() == 3
    return found


def test_only_what_the_job_gives_is_passed_and_none_stays_none() -> None:
    assert arguments("StableDiffusionPipeline", {"prompt": "a"}) == {"prompt": "a"}
    given = {"prompt": "a", "negative_prompt": None, "guidance_scale": 2.0}
    assert arguments("StableDiffusionPipeline", given) == given


def test_a_common_name_becomes_the_name_of_the_class() -> None:
    assert arguments("QwenImagePipeline", {"prompt": "a", "guidance_scale": 3.0}) == {
        "prompt": "a",
        "true_cfg_scale": 3.0,
    }
    assert arguments("StableAudioPipeline", {"prompt": "a", "seconds": 2.0}) == {"prompt": "a", "audio_end_in_s": 2.0}


@pytest.mark.parametrize(
    ("name", "common", "parameters", "message"),
    [
        ("FluxPipeline", {"prompt": "a", "strength": 0.5}, {}, "strength: FluxPipeline has no such parameter"),
        ("FluxPipeline", {"prompt": "a"}, {"clip_skip": 1}, "parameters.clip_skip: FluxPipeline has no such parameter"),
        ("FluxPipeline", {"prompt": "a"}, {"latents": [1]}, "parameters.latents"),
        ("FluxPipeline", {"prompt": "a"}, {"true_cfg_scal": 2.0}, "did you mean true_cfg_scale"),
        ("FluxPipeline", {}, {}, "needs prompt"),
        ("FluxPipeline", {"prompt": "a", "num_inference_steps": 2.5}, {}, "num_inference_steps must be an integer"),
        ("FluxPipeline", {"prompt": "a"}, {"true_cfg_scale": "big"}, "parameters.true_cfg_scale must be a number"),
        ("StableAudioPipeline", {"prompt": "a", "width": 64}, {}, "width"),
    ],
)
def test_what_the_class_lacks_is_refused(
    name: str, common: dict[str, Any], parameters: dict[str, Any], message: str
) -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        bound(name, common, parameters)
    assert message in str(caught.value)


def test_nothing_that_is_none_is_refused() -> None:
    assert arguments("ConsistencyModelPipeline", {"negative_prompt": None}) == {}


def test_a_frame_rate_that_the_class_lacks_is_the_file_s() -> None:
    assert arguments("WanPipeline", {"prompt": "a", "fps": 12.0}) == {"prompt": "a"}
    with pytest.raises(UnsupportedParameter, match="fps"):
        bound("FluxPipeline", {"prompt": "a", "fps": 12.0})


def test_the_size_is_passed_where_the_class_takes_one_and_the_input_stays() -> None:
    found = arguments("FluxImg2ImgPipeline", {"prompt": "a", "width": 32, "height": 16}, image=PICTURE)
    assert (found["width"], found["height"], found["image"]) == (32, 16, PICTURE)


def test_the_inputs_are_resized_where_the_class_takes_no_size() -> None:
    found = arguments("StableDiffusionImg2ImgPipeline", {"prompt": "a", "width": 32, "height": 16}, image=PICTURE)
    assert set(found) == {"prompt", "image"}
    assert found["image"].size == (32, 16)
    with pytest.raises(UnsupportedParameter, match="give both"):
        bound("StableDiffusionImg2ImgPipeline", {"prompt": "a", "width": 32}, image=PICTURE)


def test_a_mask_that_is_resized_keeps_its_edge() -> None:
    mask = Image.new("L", (64, 48), 0)
    mask.paste(255, (0, 0, 31, 48))
    spec = catalogue().pipeline("StableDiffusionInpaintPipeline")
    assert spec.own_name("width") is not None  # it takes a size, so its mask stays
    found = arguments(
        "StableDiffusionInpaintPipeline", {"prompt": "a", "width": 32, "height": 24}, image=PICTURE, mask_image=mask
    )
    assert found["mask_image"] is mask
    found = arguments("PaintByExamplePipeline", {}, image=PICTURE, mask_image=mask, reference_images=PICTURE)
    assert found["mask_image"] is mask


def test_an_input_goes_to_the_parameter_that_means_its_role() -> None:
    found = arguments("StableDiffusionControlNetPipeline", {"prompt": "a"}, control_image=PICTURE)
    assert found == {"prompt": "a", "image": PICTURE}
    found = arguments("StableDiffusionControlNetImg2ImgPipeline", {"prompt": "a"}, image=PICTURE, control_image=MASK)
    assert found == {"prompt": "a", "image": PICTURE, "control_image": MASK}


def test_several_images_are_a_list_and_one_is_itself() -> None:
    assert arguments("QwenImageEditPlusPipeline", {"prompt": "a"}, image=PICTURE)["image"] is PICTURE
    assert arguments("QwenImageEditPlusPipeline", {"prompt": "a"}, image=(PICTURE, MASK))["image"] == [PICTURE, MASK]
    with pytest.raises(UnsupportedParameter, match="takes one image; the job gives 2"):
        bound("StableDiffusionImg2ImgPipeline", {"prompt": "a"}, image=(PICTURE, MASK))


def test_an_input_that_the_class_lacks_or_needs_is_refused() -> None:
    with pytest.raises(UnsupportedParameter, match="takes no image; its inputs are"):
        bound("StableDiffusionPipeline", {"prompt": "a"}, image=PICTURE)
    with pytest.raises(UnsupportedParameter, match="needs image"):
        bound("StableDiffusionImg2ImgPipeline", {"prompt": "a"})
    with pytest.raises(UnsupportedParameter, match="video must be a video"):
        bound("AnimateDiffVideoToVideoPipeline", {"prompt": "a"}, video=Sound(np.zeros((8, 1), np.float32), 8))


def test_a_clip_is_a_list_of_images() -> None:
    clip = Clip([PICTURE, PICTURE], 8.0)
    assert arguments("AnimateDiffVideoToVideoPipeline", {"prompt": "a"}, video=clip)["video"] == [PICTURE, PICTURE]


def test_a_sound_is_a_tensor_with_its_rate() -> None:
    sound = Sound(np.array([[0.0, 1.0], [0.5, -0.5], [0.25, 0.0]], np.float32), 44_100)
    found = arguments("StableAudioPipeline", {"prompt": "a"}, audio=sound)
    assert found["initial_audio_waveforms"].shape == (1, 2, 3)
    assert torch.equal(found["initial_audio_waveforms"][0, 1], torch.tensor([1.0, -0.5, 0.0]))
    assert found["initial_audio_sampling_rate"] == 44_100


def test_a_list_is_a_tuple_where_only_a_tuple_is_declared() -> None:
    found = arguments("StableDiffusionXLPipeline", {"prompt": "a"}, {"original_size": [512, 512]})
    assert found["original_size"] == (512, 512)


def test_a_depth_map_has_no_channels_and_must_contain_depth() -> None:
    slope = Image.linear_gradient("L").resize((8, 4))
    found = arguments("StableDiffusionDepth2ImgPipeline", {"prompt": "a"}, image=PICTURE, depth_map=slope)
    assert found["depth_map"].shape == (1, 4, 8)
    with pytest.raises(UnsuitableInput, match="same value everywhere"):
        bound("StableDiffusionDepth2ImgPipeline", {"prompt": "a"}, image=PICTURE, depth_map=MASK)
