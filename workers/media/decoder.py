"""From the bytes of an input to what pipelines take."""

from __future__ import annotations

from typing import Final

from farm.domain.job_spec import InputFile
from farm.domain.media import media_of
from farm.errors import FieldProblem, InputRefused
from farm.objects import clips, containers, images, sounds
from farm.objects.limits import Limits
from farm.pipelines.spec import Media
from farm.settings import Settings
from workers.media.artifacts import Artifact, Clip, Sound

#: How an image is decoded, by its role; the others are RGB.
_IMAGES: Final = {"mask_image": images.load_mask, "depth_map": images.load_depth}


def decode(role: str, file: InputFile, data: bytes, settings: Settings) -> Artifact:
    """The decoded input: an image is RGB (a mask L, a depth map L or I;16), a clip has RGB frames.

    Args:
        role: of the input.
        file: what was recorded of it when it was checked.
        data: its bytes.
        settings: the limits that hold for it.

    Raises:
        InputRefused: it does not decode, or exceeds the limits of this process.
        DecodersBusy: the process decodes too many pixels at this moment.
    """
    if media_of(file.media_type, file.metadata) is Media.IMAGE:
        return _IMAGES.get(role, images.load_rgb)(data, settings, field=role)
    form = containers.recognise(data)
    if form is None:
        raise InputRefused(FieldProblem(role, "an unknown file", "the file has no format that is decoded"))
    if form.media is Media.AUDIO:
        sound = sounds.load(data, form, Limits.of(settings), role)
        return Sound(sound.samples, sound.sample_rate)
    clip = clips.load(data, form, Limits.of(settings), role)
    return Clip(clip.frames, clip.fps)
