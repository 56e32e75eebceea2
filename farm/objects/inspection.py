"""Validation of input files of every kind: what a file is, and what it holds."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from farm.domain.media import EMPTY_MASK, MediaMetadata
from farm.errors import FieldProblem, InputRefused
from farm.objects import containers, images
from farm.objects.decode_budget import PROBES
from farm.objects.limits import Limits
from farm.objects.probe import probe
from farm.pipelines.spec import Media
from farm.settings import Settings


@dataclass(frozen=True, slots=True)
class InputInfo:
    """An input file that was checked and decodes."""

    media_type: str  #: by its content
    size: int  #: bytes to be stored; what follows an image's end is not
    sha256: str  #: hex, of those bytes
    metadata: MediaMetadata


def inspect(data: bytes, settings: Settings, *, field: str) -> InputInfo:
    """Validate an encoded image, clip or sound from a client, including that it decodes.

    Args:
        data: the file as it came.
        settings: its limits.
        field: how the client called it, for the refusal.

    Raises:
        InputRefused: with one sentence that says what was given and what is allowed.
        DecodersBusy: the process decodes too many other files at this moment.
    """
    form = containers.recognise(data)
    if form is None or form.media is Media.IMAGE:
        if form is None and data:
            what = containers.describe(data)
            raise InputRefused(FieldProblem(field, what, f"the file is {what}; send {containers.allowed()}"))
        image = images.inspect(data, settings, field=field)
        metadata = {"width": image.width, "height": image.height} | ({EMPTY_MASK: 1} if image.empty_mask else {})
        return InputInfo(image.media_type, image.size, image.sha256, metadata)
    if len(data) > settings.max_input_bytes:
        message = f"the file has {len(data):,} bytes; at most {settings.max_input_bytes:,} are allowed"
        raise InputRefused(FieldProblem(field, f"{len(data)} bytes", message))
    with PROBES.hold(1, settings.max_decode_processes, settings.decode_wait_seconds):
        found = probe(data, form, Limits.of(settings), field)
    return InputInfo(form.media_type, len(data), hashlib.sha256(data).hexdigest(), found)
