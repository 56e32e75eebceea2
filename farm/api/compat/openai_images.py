"""One OpenAI request for images, and the answer to it: the same alone and as a line of a batch."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from farm.api.compat.adapter import IGNORED, ForeignParameter, drop_unsupported
from farm.api.dependencies import AppContext
from farm.domain.job import Job
from farm.domain.states import Priority
from farm.errors import BadInput, FieldProblem
from farm.tasks import INPUT_ROLES

#: The farm's fields as OpenAI's clients call them.
NAMES: Final = {"num_outputs": "n", "mask_image": "mask", "width": "size", "height": "size"}

_SIZE: Final = re.compile(r"([0-9]{1,5})x([0-9]{1,5})", re.ASCII)
_PNG_ONLY: Final = "the farm renders single images: png, jpeg or webp"
_UNSUPPORTED: Final[Mapping[str, ForeignParameter | None]] = {
    "moderation": IGNORED,
    "background": ForeignParameter(("auto", "opaque"), "the farm's images are opaque"),
    "complexity": ForeignParameter((), "the farm has steps instead: send num_inference_steps, in extra_body"),
    "frame_count": ForeignParameter((), _PNG_ONLY),
    "frame_duration_ms": ForeignParameter((), _PNG_ONLY),
    "svg": ForeignParameter((), _PNG_ONLY),
    "input_fidelity": ForeignParameter(
        (), "the farm has strength instead: send it in extra_body, from 0 (keep) to 1 (ignore)"
    ),
    "output_compression": ForeignParameter(
        (100,), "the farm chooses how its files are compressed; choose output_format"
    ),
    "partial_images": ForeignParameter((0,), "images come whole"),
    "quality": ForeignParameter(
        ("auto", "standard"), "the farm has steps instead: send num_inference_steps, in extra_body"
    ),
    "stream": ForeignParameter((False,), "images come whole"),
    "style": ForeignParameter(("vivid",), "say it in the prompt"),
}


class ResponseFormat(StrEnum):
    """How an image is answered."""

    URL = "url"
    B64 = "b64_json"


@dataclass(frozen=True)
class ImagesRequest:
    """A request for images."""

    asked: dict[str, Any]  #: in the farm's own fields
    form: ResponseFormat | None  #: None: both


def read_request(body: Mapping[str, Any], task: str, priority: Priority) -> ImagesRequest:
    """What a request asks for. Raises `BadInput`."""
    given = dict(body)
    found = drop_unsupported(given, _UNSUPPORTED)
    form = given.pop("response_format", None)
    if form is not None and form not in tuple(ResponseFormat):
        found.append(FieldProblem("response_format", form, "must be url or b64_json"))
    asked: dict[str, Any] = {"task": task, "priority": priority.value}
    size = given.pop("size", None)
    if size not in (None, "auto"):
        sides = _SIZE.fullmatch(size) if isinstance(size, str) else None
        if sides is None:
            found.append(FieldProblem("size", size, "must be auto or WIDTHxHEIGHT in pixels, as 512x512"))
        else:
            asked |= {"width": int(sides[1]), "height": int(sides[2])}
    user = given.pop("safety_identifier", None) or given.pop("user", None)
    given.pop("user", None)
    for theirs, ours in (("n", "num_outputs"), ("steps", "num_inference_steps")):
        value = given.pop(theirs, None)
        if value is not None:
            given[ours] = value
    for name in ("task", *sorted(set().union(*INPUT_ROLES.values()))):
        if name in given:
            found.append(FieldProblem(name, given.pop(name), "is not a field of this request"))
    if found:
        raise BadInput(*found)
    asked |= {name: value for name, value in given.items() if value is not None}
    if user:
        metadata = asked.get("metadata", {})
        asked["metadata"] = {"user": user, **metadata} if isinstance(metadata, dict) else metadata
    return ImagesRequest(asked, None if form is None else ResponseFormat(form))


def images_of(context: AppContext, job: Job, form: ResponseFormat | None) -> dict[str, Any]:
    """The answer with a job's images; blocks. Without a form each image has its URL and its bytes."""
    data = []
    for output in job.outputs:
        one: dict[str, Any] = {"revised_prompt": None, "seed": output.seed}
        if form is not ResponseFormat.B64:
            one["url"] = context.storage.presign_get(output.key, context.settings.presign_seconds)
        if form is not ResponseFormat.URL:
            one["b64_json"] = base64.b64encode(context.storage.get(output.key)).decode()
        data.append(one)
    return {
        "created": int((job.finished_at or job.created_at).timestamp()),
        "background": "opaque",
        "data": data,
        "output_format": job.spec.output_format,
        "size": f"{job.outputs[0].width}x{job.outputs[0].height}" if job.outputs else "auto",
        "job_id": job.id,
    }
