"""LDM3D makes images of its depth maps in a way that Pillow 12 refuses; as arrays both are there."""

from workers.pipelines.families.quirk import AdjustableCall, Quirk


def _adjust(call: AdjustableCall) -> None:
    call.arguments["output_type"] = "np"


QUIRK = Quirk(classes=frozenset({"StableDiffusionLDM3DPipeline"}), adjust=_adjust)
