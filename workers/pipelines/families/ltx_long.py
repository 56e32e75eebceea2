"""LTX for long clips returns latents by default."""

from workers.pipelines.families.quirk import AdjustableCall, Quirk


def _adjust(call: AdjustableCall) -> None:
    call.arguments["output_type"] = "np"


QUIRK = Quirk(classes=frozenset({"LTXI2VLongMultiPromptPipeline"}), adjust=_adjust)
