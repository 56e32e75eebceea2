"""Inputs that several tasks have in common. A model whose pipeline takes none of them refuses them."""

from __future__ import annotations

from typing import Final

from farm.fields import MAX_FILES
from farm.pipelines.spec import Media
from farm.tasks.spec import InputSpec

CONTROL: Final = {
    "control_image": InputSpec(
        Media.IMAGE,
        "What ControlNets and adapters follow: edges, poses, depth; one for each of the model's, in their order.",
        min=0,
        max=MAX_FILES,
    )
}
REFERENCES: Final = {
    "reference_images": InputSpec(Media.IMAGE, "Images whose subjects or style are used.", min=0, max=MAX_FILES)
}
CONTROL_VIDEO: Final = {"control_video": InputSpec(Media.VIDEO, "What the video follows: edges, poses, depth.", min=0)}
