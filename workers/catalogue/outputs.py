"""What a pipeline returns: the fields of its output that are images, videos or sounds."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import sys
from typing import Final

from farm.pipelines.spec import Media
from workers.catalogue.annotations import shape_of
from workers.catalogue.components import inner_pipelines
from workers.catalogue.sources import method, nodes

_MEDIA: Final = {
    "images": Media.IMAGE,
    "image": Media.IMAGE,
    "rgb": Media.IMAGE,
    "depth": Media.IMAGE,
    "prediction": Media.IMAGE,
    "frames": Media.VIDEO,
    "video": Media.VIDEO,
    "videos": Media.VIDEO,
    "audios": Media.AUDIO,
    "audio": Media.AUDIO,
    "sound": Media.AUDIO,
}


def outputs_of(cls: type) -> dict[str, Media]:
    """The media in the output, the main one first."""
    found: dict[str, Media] = {}
    for kind, field in _returned(cls):
        if field in _MEDIA:
            found.setdefault(field, _media(kind, field))
    for inner, _ in inner_pipelines(cls).values() if not found else ():
        found |= outputs_of(inner)
    return found


def returned_fields(cls: type) -> tuple[str, ...]:
    """Every field that the output may have."""
    return tuple(dict.fromkeys(field for _, field in _returned(cls)))


def _returned(cls: type) -> list[tuple[type, str]]:
    """The output classes that the call's ``return`` statements make, with the fields that they fill."""
    call = method(cls, "__call__")
    found: list[tuple[type, str]] = []
    for statement in nodes(call) if call else ():
        for node in nodes(statement) if isinstance(statement, ast.Return) else ():
            match node:
                case ast.Call(func=ast.Name(id=name), keywords=keywords) if name.endswith("Output"):
                    kind = vars(sys.modules[cls.__module__]).get(name)
                    if not inspect.isclass(kind):
                        continue
                    named = [keyword.arg for keyword in keywords if keyword.arg]
                    fields = (
                        [field.name for field in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []
                    )
                    found += [(kind, field) for field in named or fields]
    return found


def media_of_field(name: str) -> Media | None:
    """What a field of that name holds."""
    return _MEDIA.get(name)


def _media(kind: type, field: str) -> Media:
    """The kind of a field; images in lists of lists, or in the output of a video class, are frames."""
    annotation = getattr(kind, "__annotations__", {}).get(field)
    nested = annotation is not None and shape_of(annotation, kind.__module__).nested_pil > 1
    if field == "images" and (nested or "Video" in kind.__name__ or "ShapE" in kind.__name__):
        return Media.VIDEO
    return _MEDIA[field]
