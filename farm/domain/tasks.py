"""What may be asked of the farm: one request shape per task, with diffusers' parameter names.

A request says what the client wants and leaves the rest open; ``resolve`` closes every gap (defaults of the model,
the size, a drawn seed) and gives the :class:`JobSpec` that is stored, rendered and, later, reproduced.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    AliasChoices,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from farm.domain.media import MediaMetadata, output_format, pixels
from farm.domain.states import Priority
from farm.pipelines.spec import Media

MAX_SEED: Final = 2**63 - 1  #: what a signed 64-bit column and a torch generator both take
MAX_STEPS: Final = 150
MAX_OUTPUTS: Final = 16
MAX_LORAS: Final = 8
MAX_SIDE: Final = 4096  #: pixels; a model's own limit is usually lower
SIDE_MULTIPLE: Final = 8  #: the VAE's reduction: latents have whole sizes


class Task(StrEnum):
    """What a job asks for, under the Hub's names."""

    TEXT_TO_IMAGE = "text-to-image"
    IMAGE_TO_IMAGE = "image-to-image"
    INPAINTING = "inpainting"
    DEPTH_TO_IMAGE = "depth-to-image"


class Scheduler(StrEnum):
    """The sampling schedulers that every SD-family pipeline takes; `workers/pipelines.py` maps them to classes."""

    DDIM = "ddim"
    DDPM = "ddpm"
    PNDM = "pndm"
    EULER = "euler"
    EULER_ANCESTRAL = "euler-ancestral"
    HEUN = "heun"
    DPM_SOLVER = "dpm-solver"
    UNIPC = "unipc"


class OutputFormat(StrEnum):
    """The file format of a job's outputs."""

    PNG = "png"
    WEBP = "webp"
    JPEG = "jpeg"

    @property
    def media_type(self) -> str:
        """The MIME type."""
        return output_format(Media.IMAGE, self.value).media_type


def storable(text: str) -> str:
    """Return text that PostgreSQL can store: without NUL and lone surrogates. Raises `ValueError`."""
    if "\x00" in text:
        raise ValueError("must not contain NUL characters")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("must not contain lone surrogates: send valid Unicode text") from None
    return text


_MOMENT: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}.*", re.ASCII)


def _written_out(text: object) -> object:
    """Refuse what pydantic would take for seconds since 1970."""
    if not isinstance(text, str) or not _MOMENT.fullmatch(text):
        raise ValueError("must be a date and time with an offset: 2026-01-31T12:00:00Z")
    return text


Moment = Annotated[AwareDatetime, BeforeValidator(_written_out)]
Storable = AfterValidator(storable)
# The pattern says in the schema what the validator enforces, so that clients can check before sending.
NoNul = Field(json_schema_extra={"pattern": r"^[^\u0000]*$"})
Prompt = Annotated[str, StringConstraints(max_length=10_000), Storable, NoNul]
CustomId = Annotated[str, StringConstraints(min_length=1, max_length=200), Storable, NoNul]
MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=64), Storable, NoNul]
MetadataValue = Annotated[str, StringConstraints(max_length=1_000), Storable, NoNul]
Metadata = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=50)]
Side = Annotated[int, Field(strict=True, ge=SIDE_MULTIPLE, le=MAX_SIDE, multiple_of=SIDE_MULTIPLE)]
Steps = Annotated[int, Field(strict=True, ge=1, le=MAX_STEPS)]
Guidance = Annotated[float, Field(strict=True, ge=0, le=50, allow_inf_nan=False)]
Strength = Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)]
Seed = Annotated[int, Field(strict=True, ge=0, le=MAX_SEED)]
Count = Annotated[int, Field(strict=True, ge=1, le=MAX_OUTPUTS)]

InputReference = Annotated[
    str,
    StringConstraints(min_length=1),  # the API limits the whole request
    Field(
        description=(
            "An image: the id of an uploaded file (`file_…`), the `sha256:…` of one, an https URL, or a base64 data "
            "URL. PNG, JPEG or WebP."
        ),
        examples=["file_0199d3f0c1de7c3c8f0b6a2d9a1f4e55"],
    ),
]


class FrozenValue(BaseModel):
    """Base of values that are validated once and never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Lora(FrozenValue):
    """A LoRA of the model's registry entry."""

    name: str = Field(min_length=1, max_length=100, description="One of the model's `loras` in `GET /v1/models`.")
    scale: Annotated[float, Field(ge=-4, le=4, allow_inf_nan=False)] = Field(1.0, description="Its strength.")


def _add_aliases(schema: dict[str, Any], request: type[JobRequest]) -> None:
    """Add the other names of parameters to a request's JSON Schema, which has only the stored ones."""
    for name, field in request.model_fields.items():
        if isinstance(field.validation_alias, AliasChoices):
            for alias in map(str, field.validation_alias.choices):
                if alias != name:
                    schema["properties"][alias] = schema["properties"][name] | {
                        "description": f"Another name of `{name}`.",
                        "title": alias.capitalize(),
                    }


class JobRequest(FrozenValue):
    """The parameters of every task. What is absent is decided by the model's defaults."""

    model_config = ConfigDict(json_schema_extra=_add_aliases)

    model: str | None = Field(
        None,
        max_length=200,
        description="A model id from `GET /v1/models`; the first model that does the task if absent.",
    )
    prompt: Prompt = Field(description="What the image shows.")
    negative_prompt: Prompt = Field("", description="What the image does not show.")
    num_inference_steps: Steps | None = Field(
        None,
        validation_alias=AliasChoices("num_inference_steps", "steps"),
        description="Denoising steps.",
    )
    guidance_scale: Guidance | None = Field(None, description="How closely the image follows the prompt.")
    scheduler: Scheduler | None = Field(None, description="The sampling method.")
    seed: Seed | None = Field(
        None, description="Image i of a job is rendered from seed + i; drawn at random if absent."
    )
    num_images_per_prompt: Count = Field(1, description="How many images.")
    width: Side | None = Field(None, description="Pixels.")
    height: Side | None = Field(None, description="Pixels.")
    exact: bool | None = Field(
        None,
        strict=True,
        description=(
            "true: the same bytes for the same parameters, whatever else the device renders. false: faster where jobs "
            "share a device; a value may differ by 1/255."
        ),
    )
    loras: Annotated[tuple[Lora, ...], Field(max_length=MAX_LORAS)] = Field((), description="LoRAs of the model.")
    preview: bool = Field(
        False, strict=True, description="Whether the job's events carry small images while it is rendered."
    )
    output_format: OutputFormat = Field(OutputFormat.PNG, description="The file format.")
    priority: Priority = Field(Priority.NORMAL, description="Jobs of a higher class are dispatched first.")
    custom_id: CustomId | None = Field(None, description="Your own name for the job; results and webhooks carry it.")
    metadata: Metadata = Field(default_factory=dict, description="Your own texts by name; results carry them.")
    webhook: str | None = Field(None, max_length=2_000, description="A URL that is notified when the job is finished.")
    not_before: Moment | None = Field(None, description="The earliest time at which the job is dispatched to a worker.")
    deadline: Moment | None = Field(
        None,
        description="A job that still waits at this time fails as `deadline_exceeded`. A running job is not stopped.",
    )


class TextToImageRequest(JobRequest):
    """An image from text."""

    task: Literal[Task.TEXT_TO_IMAGE]


class ImageToImageRequest(JobRequest):
    """An image from text and an image."""

    task: Literal[Task.IMAGE_TO_IMAGE]
    image: InputReference
    strength: Strength = Field(0.8, description="How much of the image is replaced: 0 keeps it, 1 ignores it.")


class InpaintingRequest(JobRequest):
    """The white part of a mask is replaced."""

    task: Literal[Task.INPAINTING]
    image: InputReference
    mask_image: InputReference
    strength: Strength = 1.0


class DepthToImageRequest(JobRequest):
    """An image from text with the depth of another image."""

    task: Literal[Task.DEPTH_TO_IMAGE]
    image: InputReference
    depth_map: InputReference | None = Field(
        None, description="Brighter is nearer; estimated from the image by the model if absent."
    )
    strength: Strength = 0.8


AnyJobRequest = Annotated[
    TextToImageRequest | ImageToImageRequest | InpaintingRequest | DepthToImageRequest, Field(discriminator="task")
]

#: The class of each task's requests.
REQUESTS: Final[dict[Task, type[JobRequest]]] = {
    Task.TEXT_TO_IMAGE: TextToImageRequest,
    Task.IMAGE_TO_IMAGE: ImageToImageRequest,
    Task.INPAINTING: InpaintingRequest,
    Task.DEPTH_TO_IMAGE: DepthToImageRequest,
}

#: The image fields of each task, in the order they are shown.
INPUT_FIELDS: Final[dict[Task, tuple[str, ...]]] = {
    Task.TEXT_TO_IMAGE: (),
    Task.IMAGE_TO_IMAGE: ("image",),
    Task.INPAINTING: ("image", "mask_image"),
    Task.DEPTH_TO_IMAGE: ("image", "depth_map"),
}


class InputFile(FrozenValue):
    """A stored input of a job, named by its content."""

    sha256: str  #: of the file's bytes, hex
    key: str  #: object key
    media_type: str  #: by the content: ``image/png``
    size: int  #: bytes
    metadata: MediaMetadata = Field(default_factory=dict)

    @property
    def width(self) -> int | None:
        """Pixels; None for media without."""
        return pixels(self.metadata, "width")

    @property
    def height(self) -> int | None:
        """Pixels; None for media without."""
        return pixels(self.metadata, "height")


class JobSpec(FrozenValue):
    """All that decides what a job renders: nothing is left open. Stored as JSON with the job."""

    task: Task
    model: str
    prompt: str
    negative_prompt: str
    num_inference_steps: int
    guidance_scale: float
    scheduler: Scheduler
    seed: int
    num_images_per_prompt: int
    width: int  #: pixels
    height: int  #: pixels
    strength: float | None
    output_format: OutputFormat
    inputs: dict[str, InputFile]  #: by field name: ``image``, ``mask_image``, ``depth_map``
    exact: bool = True  #: whether the bytes must not depend on what else the device renders
    loras: tuple[Lora, ...] = ()  #: in the order they were given
    preview: bool = False  #: whether its progress carries small images; decides no pixel

    @model_validator(mode="after")
    def _inputs_fit_the_task(self) -> Self:
        unknown = set(self.inputs) - set(INPUT_FIELDS[self.task])
        if unknown:
            raise ValueError(f"{self.task} takes no {', '.join(sorted(unknown))}")
        return self

    def seed_of(self, index: int) -> int:
        """The seed of output ``index``: consecutive, wrapping at the largest seed."""
        return (self.seed + index) % (MAX_SEED + 1)

    def parameters(self) -> dict[str, Any]:
        """The parameters as the API shows them: what a client would send to get the same images."""
        shown = self.model_dump(mode="json", exclude={"inputs", "strength", "loras", "preview"})
        if self.strength is not None:
            shown["strength"] = self.strength
        if self.loras:
            shown["loras"] = [lora.model_dump(mode="json") for lora in self.loras]
        if self.preview:
            shown["preview"] = True
        return shown | {name: f"sha256:{image.sha256}" for name, image in self.inputs.items()}
