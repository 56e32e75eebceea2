"""The tasks of a pipeline class: diffusers' auto-pipeline mappings first, then the signature and the output.

The names are the Hub's where it has one.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from farm.pipelines.spec import Media, PipelineParameter
from workers.catalogue.mappings import mapped_tasks
from workers.catalogue.sources import methods, nodes

#: The inputs that a task cannot do without, by their common names.
REQUIRED_INPUTS: Final[Mapping[str, tuple[str, ...]]] = {
    "text-to-image": (),
    "image-to-image": ("image",),
    "inpainting": ("image", "mask_image"),
    "depth-to-image": ("image",),
    "image-editing": ("image",),
    "image-variation": ("image",),
    "upscaling": ("image",),
    "depth-estimation": ("image",),
    "normal-estimation": ("image",),
    "intrinsic-decomposition": ("image",),
    "unconditional-image-generation": (),
    "text-to-video": (),
    "image-to-video": ("image",),
    "video-to-video": ("video",),
    "video-upscaling": ("video",),
    "text-to-audio": (),
    "audio-to-audio": ("audio",),
    "unconditional-audio-generation": (),
    "text-to-3d": (),
    "image-to-3d": ("image",),
}
_FROM_MEDIA: Final = re.compile(r"ImageToVideo|VideoToVideo|Inpaint")
_UPSCALER: Final = re.compile(r"Upscale|Upsample|SuperRes|SRPipeline")

#: What neither mapping nor signature says, with the reason.
_EXPLICIT: Final[Mapping[str, tuple[str, ...]]] = {
    # Renders a short video of which the last frame is the edited image.
    "ChronoEditPipeline": ("image-editing",),
    # A second pass over an image of the same size; has no strength.
    "HunyuanImageRefinerPipeline": ("image-to-image",),
    # Its docstring names both; the other editing pipelines are made for editing alone.
    "JoyImageEditPipeline": ("image-editing", "text-to-image"),
    # The frames show an object from all sides.
    "ShapEPipeline": ("text-to-3d",),
    "ShapEImg2ImgPipeline": ("image-to-3d",),
    # The images are prompts: their content is used, not their pixels.
    "StableCascadeCombinedPipeline": ("image-variation", "text-to-image"),
    "StableUnCLIPImg2ImgPipeline": ("image-variation",),
    # With an image alone it writes a caption.
    "UniDiffuserPipeline": ("text-to-image", "unconditional-image-generation"),
}
#: Classes that no task fits, with the reason.
_NO_TASK: Final[Mapping[str, str]] = {
    "LEditsPPPipelineStableDiffusion": "its call edits the image that a call of its method `invert` was given before",
    "LEditsPPPipelineStableDiffusionXL": "its call edits the image that a call of its method `invert` was given before",
    "StableDiffusionDiffEditPipeline": "its call needs the results of its methods `generate_mask` and `invert`",
    "StableDiffusionPix2PixZeroPipeline": "needs source_embeds and target_embeds, which are tensors",
    "VersatileDiffusionPipeline": "has no call of its own: its methods make pipelines of the other Versatile classes",
    "VisualClozeGenerationPipeline": "takes rows of example images, some of them absent",
    "VisualClozePipeline": "takes rows of example images, some of them absent",
    "RFD4ProteinaPipeline": "generates proteins",
    "SpectrogramDiffusionPipeline": "takes the tokens of a MIDI file",
    "SanaWMLTX2Refiner": "needs sana_latent, the output of another pipeline",
    "LTX2DFRTemporalRefinePipeline": "needs keyframes_latents, the output of another pipeline",
    "ConsisIDPipeline": "needs id_vit_hidden and id_cond, tensors that face recognition models make of a photograph",
    # Calls that fail whatever their arguments are.
    "ChromaInpaintPipeline": "its call fails in this version of diffusers: it reads a config that Chroma does not have",
    "EasyAnimateControlPipeline": "its call fails in this version of diffusers: encode_prompt takes other arguments",
    "KarrasVePipeline": "no folder of it loads in this version of diffusers, which does not find its scheduler",
    "MusicLDMPipeline": "its call fails with transformers 5, which returns embeddings of sounds in another form",
}


@dataclass(frozen=True)
class Facts:
    """What decides a class's tasks."""

    name: str
    parameters: Mapping[str, PipelineParameter]
    outputs: Mapping[str, Media]
    aliases: Mapping[str, str]
    components: Iterable[str]
    returned: tuple[str, ...]  #: the fields of the output
    optional: frozenset[str]  #: inputs without which the class does something else

    def own(self, common: str) -> str | None:
        """The class's name of an input or a parameter."""
        name = self.aliases.get(common, common)
        return name if name in self.parameters else None

    def takes(self, common: str) -> bool:
        """Whether it takes the input, and for this rather than for control."""
        own = self.own(common)
        return own is not None and not (common in ("image", "video") and self.aliases.get(f"control_{common}") == own)


def tasks_of(facts: Facts) -> tuple[tuple[str, ...], str]:
    """The tasks of a class, or why it has none."""
    if facts.name in _NO_TASK:
        return (), _NO_TASK[facts.name]
    tensors = [name for name, parameter in facts.parameters.items() if parameter.required and parameter.internal]
    if tensors:
        return (), f"needs {' and '.join(tensors)}, the output of another pipeline"
    main = next(iter(facts.outputs.values()), Media.OTHER)
    if main is Media.OTHER:
        return (), f"returns {' and '.join(facts.returned) or 'tensors'}: no image, no video, no sound"
    if facts.name in _EXPLICIT:
        return _EXPLICIT[facts.name], ""
    mapped = {_with_output(task, main) for task in mapped_tasks(facts.name)}
    if "image-to-image" in mapped and not facts.takes("strength"):
        mapped = mapped - {"image-to-image"} | {"image-editing"}
    found = {Media.IMAGE: _image_tasks, Media.VIDEO: _video_tasks, Media.AUDIO: _audio_tasks}[main](facts)
    if mapped:
        # A mapping names the tasks that need no input beside the text; an input adds those that need it.
        found = mapped | {task for task in found if task not in ("text-to-image", "text-to-video")}
        if "inpainting" in found and facts.own("mask_image") == "mask_image":
            found -= {"text-to-image"}  # one class for inpainting stands among those of text-to-image
    return tuple(sorted(found)), ""


def _with_output(task: str, main: Media) -> str:
    """Diffusers lists some pipelines of videos among those of images."""
    return task.replace("-to-image", "-to-video") if main is Media.VIDEO else task


def _image_tasks(facts: Facts) -> set[str]:
    text, image = facts.takes("prompt"), facts.takes("image")
    if "prediction" in facts.outputs:
        kinds = {"Depth": "depth-estimation", "Normals": "normal-estimation", "Intrinsics": "intrinsic-decomposition"}
        return {task for word, task in kinds.items() if word in facts.name}
    if not image:
        return {"text-to-image" if text else "unconditional-image-generation"}
    if _UPSCALER.search(facts.name):
        return {"upscaling"}
    if "depth_estimator" in facts.components:
        return {"depth-to-image"}
    found = (
        {"text-to-image"} if text and facts.own("image") in facts.optional and not facts.takes("strength") else set()
    )
    if "Edit" in facts.name:
        found = set()
    if facts.takes("mask_image"):
        if facts.own("mask_image") != "mask":
            return {"inpainting"}
        found.add("inpainting")
    if facts.takes("strength") or "Img2Img" in facts.name:
        return found | {"image-to-image"}
    return found | {"image-editing" if text and "Variation" not in facts.name else "image-variation"}


def _video_tasks(facts: Facts) -> set[str]:
    if _UPSCALER.search(facts.name):
        return {"video-upscaling"}
    found = set()
    if facts.takes("image"):
        found.add("image-to-video")
    if facts.takes("video"):
        found.add("video-to-video")
    free = all(facts.own(common) in facts.optional for common in ("image", "video") if facts.takes(common))
    if facts.takes("prompt") and free and not _FROM_MEDIA.search(facts.name):
        found.add("text-to-video")
    return found


def _audio_tasks(facts: Facts) -> set[str]:
    own = facts.own("audio")
    if own is None or not facts.takes("prompt"):
        return {"text-to-audio" if facts.takes("prompt") else "unconditional-audio-generation"}
    needed = facts.parameters[own].required
    return {"audio-to-audio"} if needed else {"audio-to-audio", "text-to-audio"}


def optional_inputs(cls: type, parameters: Mapping[str, PipelineParameter]) -> frozenset[str]:
    """The inputs that the source compares with None: without them the call does something else."""
    compared = {
        node.left.id
        for function in methods(cls).values()
        for node in nodes(function)
        if isinstance(node, ast.Compare)
        and isinstance(node.left, ast.Name)
        and isinstance(node.ops[0], ast.Is | ast.IsNot)
        and isinstance(node.comparators[0], ast.Constant)
        and node.comparators[0].value is None
    }
    return frozenset(
        name
        for name, parameter in parameters.items()
        if parameter.input and not parameter.required and name in compared
    )
