"""From a rendered artifact to the bytes of its file."""

from __future__ import annotations

from dataclasses import dataclass

from farm.domain.infotext import parameters_text
from farm.domain.job_spec import JobSpec
from farm.domain.media import MediaMetadata, output_format
from farm.domain.recipe import recipe_json
from workers.media import audio, images, video
from workers.media.artifacts import Artifact, Clip, Sound, media_of


@dataclass(frozen=True)
class EncodedFile:
    """An output as it is stored."""

    body: bytes
    media_type: str
    metadata: MediaMetadata  #: what the file holds, as it came out


def encode(artifact: Artifact, spec: JobSpec, index: int, made_with: dict[str, object]) -> EncodedFile:
    """The file of output ``index`` in the job's output format.

    The same artifact and recipe give the same bytes: no time and no id is written, and one thread encodes.

    Raises:
        ValueError: the artifact's kind of media has no such format.
    """
    form = output_format(media_of(artifact), spec.output_format)
    recipe = recipe_json(spec, index, made_with)
    if isinstance(artifact, Clip):
        body, metadata = video.encode(artifact, form.name, recipe)
    elif isinstance(artifact, Sound):
        body, metadata = audio.encode(artifact, form.name, recipe)
    else:
        body, metadata = images.encode(artifact, form.name, parameters_text(spec, index), recipe)
    return EncodedFile(body, form.media_type, metadata)
