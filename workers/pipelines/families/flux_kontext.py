"""Kontext brings every size to about a megapixel unless the area is given."""

from workers.pipelines.families.quirk import AdjustableCall, Quirk


def _adjust(call: AdjustableCall) -> None:
    width, height = call.arguments.get("width"), call.arguments.get("height")
    if width and height:
        call.arguments.setdefault("max_area", width * height)


QUIRK = Quirk(classes=frozenset({"FluxKontextPipeline", "FluxKontextInpaintPipeline"}), adjust=_adjust)
