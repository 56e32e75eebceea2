"""Kontext brings sizes to about a megapixel: the output unless the area is given, the input unless a flag is off."""

from PIL import Image

from workers.pipelines.families.quirk import AdjustableCall, Quirk


def _adjust(call: AdjustableCall) -> None:
    width, height = call.arguments.get("width"), call.arguments.get("height")
    if not width or not height:
        return
    call.arguments.setdefault("max_area", width * height)
    image = call.arguments.get("image")
    if isinstance(image, Image.Image) and image.size == (width, height):  # the pixels of both are in the same places
        call.arguments["_auto_resize"] = False


QUIRK = Quirk(classes=frozenset({"FluxKontextPipeline", "FluxKontextInpaintPipeline"}), adjust=_adjust)
