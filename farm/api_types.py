"""What is sent to the API, as types. Written by `python -m tools.api_types`.

None, where it is allowed, is the same as leaving the argument out. The file is long because it names every parameter.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, NotRequired, Protocol, TypeAlias, TypedDict

if TYPE_CHECKING:
    from PIL.Image import Image


class Named(Protocol):
    """An uploaded file, or a job whose first output is meant."""

    @property
    def id(self) -> str:
        """Its id."""


class OutputOfJob(Protocol):
    """An output of a job."""

    @property
    def job_id(self) -> str:
        """The job's id."""

    @property
    def index(self) -> int:
        """Its position among the job's outputs, from 0."""


#: A file: a path, encoded bytes, a Pillow image, a reference (``file_…``, ``sha256:…``, ``job_…``, a URL), an uploaded
#: file, a job whose first output it is, or an output of a job.
FileInput: TypeAlias = "str | os.PathLike[str] | bytes | Image | Named | OutputOfJob"


class ParameterInfo(NamedTuple):
    """A parameter of jobs."""

    kind: str  #: of its value
    description: str
    aliases: tuple[str, ...] = ()  #: its other names
    many: bool = False  #: of an ``input``: whether some task takes several files


#: An output of another job of the same batch.
LineOutput = TypedDict("LineOutput", {"from": str, "output": NotRequired[int]})


class Lora(TypedDict):
    """A LoRA of the model's registry entry."""

    #: One of the model's `loras` in `GET /v1/models`.
    name: str
    #: Its strength.
    scale: NotRequired[float]


Priority: TypeAlias = Literal["bulk", "normal", "interactive"]

OutputFormat: TypeAlias = Literal["png", "webp", "jpeg", "mp4", "webm", "gif", "wav", "flac", "ogg"]

Task: TypeAlias = Literal[
    "text-to-image",
    "image-to-image",
    "inpainting",
    "depth-to-image",
    "composite",
    "convert",
    "crop",
    "depth-estimation",
    "image-editing",
    "image-variation",
    "normal-estimation",
    "resize",
    "unconditional-image-generation",
    "upscaling",
    "image-to-video",
    "text-to-video",
    "video-to-video",
    "video-upscaling",
    "audio-to-audio",
    "text-to-audio",
    "unconditional-audio-generation",
]

JobState: TypeAlias = Literal["pending", "queued", "dispatched", "running", "succeeded", "failed", "canceled"]

EventType: TypeAlias = Literal[
    "job.started",
    "job.progress",
    "job.succeeded",
    "job.failed",
    "job.canceled",
    "batch.progress",
    "batch.completed",
    "endpoint.disabled",
]

DeliveryState: TypeAlias = Literal["pending", "delivered", "dead"]

DeliveryType: TypeAlias = Literal[
    "job.started",
    "job.progress",
    "job.succeeded",
    "job.failed",
    "job.canceled",
    "batch.progress",
    "batch.completed",
    "endpoint.disabled",
    "farm.test",
]


class ModelLimits(TypedDict):
    """What a job of the model may ask for."""

    min_side: NotRequired[int]
    max_side: NotRequired[int]
    max_pixels: NotRequired[int]
    max_outputs: NotRequired[int]
    max_frames: NotRequired[int]
    max_seconds: NotRequired[float]


class LoraFile(TypedDict):
    """A LoRA that jobs of a model may use."""

    name: str
    #: A `.safetensors` file, or a Hub repository.
    source: str
    #: The file in the repository.
    weight_name: NotRequired[str | None]
    #: The Hub revision to pin.
    revision: NotRequired[str | None]
    #: For people.
    description: NotRequired[str]


Scope: TypeAlias = Literal["submit", "read", "operate", "admin"]


class JobParameters(TypedDict, total=False):
    """A job's parameters; what is left out is decided by the model's defaults."""

    #: What the output does not show. null: none, whatever the model's defaults say.
    negative_prompt: str | None
    #: Denoising steps.
    num_inference_steps: int | None
    #: a1111: (text:1.3) and [text] weigh parts of the prompts, BREAK and prompts beyond the encoder's window
    #: begin another chunk. none: prompts are read as they stand. For Stable Diffusion and Stable Diffusion XL.
    prompt_weighting: Literal["none", "a1111"] | None
    #: How closely the output follows the prompt.
    guidance_scale: float | None
    #: Pixels.
    width: int | None
    #: Pixels.
    height: int | None
    #: How closely control images are followed; a list has one value for each image.
    control_scale: float | Sequence[float] | None
    #: The part of the steps at which control begins, from 0 to 1; a list has one for each image.
    control_start: float | Sequence[float] | None
    #: The part of the steps at which control ends, from 0 to 1; a list has one for each image.
    control_end: float | Sequence[float] | None
    #: What control images show, as the number of the model's ControlNet mode.
    control_kind: int | Sequence[int] | None
    #: A model id from `GET /v1/models`; the first model that does the task if absent.
    model: str | None
    #: The sampling method: a name such as `euler`, or a class. `GET /v1/models/{id}` lists those of a model;
    #: its own if absent.
    scheduler: str | None
    #: Options of the scheduler, such as `use_karras_sigmas`.
    scheduler_options: Mapping[str, Any] | None
    #: What only the model's pipeline takes, such as `clip_skip`. `GET /v1/models/{id}` has the schema.
    parameters: Mapping[str, Any] | None
    #: Files that only the model's pipeline takes, such as `ip_adapter_image`: by the pipeline's name, one
    #: reference or a list.
    inputs: Mapping[str, FileInput | Sequence[FileInput]] | None
    #: Output i of a job is rendered from seed + i; drawn at random if absent.
    seed: int | None
    #: How many outputs.
    num_outputs: int | None
    #: true: the same bytes for the same parameters, whatever else the device renders. false: faster where jobs
    #: share a device; a value may differ by 1/255.
    exact: bool | None
    #: LoRAs of the model.
    loras: Sequence[Lora] | None
    #: Whether the job's events carry small images while it is rendered.
    preview: bool | None
    #: Whether an output of one colour, saturated or silent fails the job as `suspicious_output`.
    fail_on_suspicious: bool | None
    #: Jobs of a higher priority are dispatched first.
    priority: Priority | None
    #: Your own name for the job; results and webhooks carry it.
    custom_id: str | None
    #: Your own texts by name; results carry them.
    metadata: Mapping[str, str] | None
    #: A URL that is notified when the job is finished.
    webhook: str | None
    #: The earliest time at which the job is dispatched to a worker.
    not_before: str | datetime | None
    #: A job that still waits at this time fails as `deadline_exceeded`. A running job is not stopped.
    deadline: str | datetime | None
    #: A numerics class (`GET /v1/numerics`): only its workers render the job. Exact jobs with the same
    #: parameters then have the same bytes. Any worker if absent.
    numerics: str | None
    #: The file format.
    output_format: OutputFormat | None
    #: What ControlNets and adapters follow: edges, poses, depth; one for each of the model's, in their order.
    #: The id of an uploaded file (`file_…`), the `sha256:…` of one, an https URL, a base64 data URL, or an
    #: output of another job (`job_…`, `job_…/1`; in a batch also `{"from": "CUSTOM_ID"}`). PNG, WebP or JPEG.
    control_image: FileInput | Sequence[FileInput] | None
    #: Another name of `num_inference_steps`.
    steps: int | None
    #: Another name of `num_outputs`.
    num_images_per_prompt: int | None
    #: Another name of `num_outputs`.
    num_videos_per_prompt: int | None
    #: Another name of `num_outputs`.
    num_waveforms_per_prompt: int | None
    #: Another name of `num_outputs`.
    n: int | None
    #: How much of the input is replaced: 0 keeps it, 1 ignores it.
    strength: float | None
    #: Render only the masked part with a margin of so many pixels, enlarged to the whole size.
    padding_mask_crop: int | None
    #: Its white part is replaced. The id of an uploaded file (`file_…`), the `sha256:…` of one, an https URL, a
    #: base64 data URL, or an output of another job (`job_…`, `job_…/1`; in a batch also `{"from":
    #: "CUSTOM_ID"}`). PNG, WebP or JPEG.
    mask_image: FileInput | None
    #: Images whose subjects or style are used. The id of an uploaded file (`file_…`), the `sha256:…` of one, an
    #: https URL, a base64 data URL, or an output of another job (`job_…`, `job_…/1`; in a batch also `{"from":
    #: "CUSTOM_ID"}`). PNG, WebP or JPEG.
    reference_images: FileInput | Sequence[FileInput] | None
    #: Brighter is nearer; estimated from the image by the model if absent. The id of an uploaded file
    #: (`file_…`), the `sha256:…` of one, an https URL, a base64 data URL, or an output of another job (`job_…`,
    #: `job_…/1`; in a batch also `{"from": "CUSTOM_ID"}`). PNG, WebP or JPEG.
    depth_map: FileInput | None
    #: Pixels from the left edge.
    left: int | None
    #: Pixels from the upper edge.
    top: int | None
    #: How much of the upper image shows: 0 nothing, 1 it alone.
    opacity: float | None
    #: The upper image; what leaves the lower one is cut off. The id of an uploaded file (`file_…`), the
    #: `sha256:…` of one, an https URL, a base64 data URL, or an output of another job (`job_…`, `job_…/1`; in a
    #: batch also `{"from": "CUSTOM_ID"}`). PNG, WebP or JPEG.
    overlay_image: FileInput | None
    #: rgb, or grey: the luminance (ITU-R 601).
    colours: Literal["rgb", "grey"] | None
    #: Grey values from this one on become white, the others black: a mask.
    threshold: int | None
    #: Whether dark becomes bright, at last.
    invert: bool | None
    #: cover: fills the size, and the middle is kept. contain: fits into the size, so one side may be shorter.
    #: stretch: both sides exactly.
    fit: Literal["cover", "contain", "stretch"] | None
    #: How values between pixels are computed.
    resample: Literal["lanczos", "bicubic", "bilinear", "box", "nearest"] | None
    #: Frames of the video.
    num_frames: int | None
    #: Frames per second of the file. A pipeline that is conditioned on it gets it too.
    fps: int | None
    #: The last frame. The id of an uploaded file (`file_…`), the `sha256:…` of one, an https URL, a base64 data
    #: URL, or an output of another job (`job_…`, `job_…/1`; in a batch also `{"from": "CUSTOM_ID"}`). PNG, WebP
    #: or JPEG.
    last_image: FileInput | None
    #: What the video follows: edges, poses, depth. The id of an uploaded file (`file_…`), the `sha256:…` of
    #: one, an https URL, a base64 data URL, or an output of another job (`job_…`, `job_…/1`; in a batch also
    #: `{"from": "CUSTOM_ID"}`). MP4, WebM, QuickTime, animated WebP or GIF.
    control_video: FileInput | None
    #: The video to begin with. The id of an uploaded file (`file_…`), the `sha256:…` of one, an https URL, a
    #: base64 data URL, or an output of another job (`job_…`, `job_…/1`; in a batch also `{"from":
    #: "CUSTOM_ID"}`). MP4, WebM, QuickTime, animated WebP or GIF.
    video: FileInput | None
    #: Its white part is replaced. The id of an uploaded file (`file_…`), the `sha256:…` of one, an https URL, a
    #: base64 data URL, or an output of another job (`job_…`, `job_…/1`; in a batch also `{"from":
    #: "CUSTOM_ID"}`). MP4, WebM, QuickTime, animated WebP or GIF.
    mask_video: FileInput | None
    #: Length of the sound.
    seconds: float | None
    #: The sound to begin with. The id of an uploaded file (`file_…`), the `sha256:…` of one, an https URL, a
    #: base64 data URL, or an output of another job (`job_…`, `job_…/1`; in a batch also `{"from":
    #: "CUSTOM_ID"}`). WAV, FLAC, Ogg or MP3.
    audio: FileInput | None


class BatchDefaults(TypedDict, total=False):
    """Parameters of a batch, and those that its jobs leave open."""

    #: Notified of the batch's milestones and its end.
    webhook: str | None
    #: Whether `webhook` is also notified when each job is finished.
    webhook_jobs: bool | None
    #: A numerics class (`GET /v1/numerics`) for the jobs that name none; or `one`: all jobs are rendered in the
    #: class of the worker that gets the first, so that exact jobs of the whole batch compare bit by bit.
    numerics: str | None
    #: What the output shows.
    prompt: str | None
    #: What the output does not show. null: none, whatever the model's defaults say.
    negative_prompt: str | None
    #: Denoising steps.
    num_inference_steps: int | None
    #: a1111: (text:1.3) and [text] weigh parts of the prompts, BREAK and prompts beyond the encoder's window
    #: begin another chunk. none: prompts are read as they stand. For Stable Diffusion and Stable Diffusion XL.
    prompt_weighting: Literal["none", "a1111"] | None
    #: How closely the output follows the prompt.
    guidance_scale: float | None
    #: Pixels.
    width: int | None
    #: Pixels.
    height: int | None
    #: How closely control images are followed; a list has one value for each image. Several are separated by
    #: spaces.
    control_scale: str | None
    #: The part of the steps at which control begins, from 0 to 1; a list has one for each image. Several are
    #: separated by spaces.
    control_start: str | None
    #: The part of the steps at which control ends, from 0 to 1; a list has one for each image. Several are
    #: separated by spaces.
    control_end: str | None
    #: What control images show, as the number of the model's ControlNet mode. Several are separated by spaces.
    control_kind: str | None
    #: A model id from `GET /v1/models`; the first model that does the task if absent.
    model: str | None
    #: The sampling method: a name such as `euler`, or a class. `GET /v1/models/{id}` lists those of a model;
    #: its own if absent.
    scheduler: str | None
    #: Options of the scheduler, such as `use_karras_sigmas`. As JSON.
    scheduler_options: str | None
    #: What only the model's pipeline takes, such as `clip_skip`. `GET /v1/models/{id}` has the schema. As JSON.
    parameters: str | None
    #: Files that only the model's pipeline takes, such as `ip_adapter_image`: by the pipeline's name, one
    #: reference or a list. As JSON.
    inputs: str | None
    #: Output i of a job is rendered from seed + i; drawn at random if absent.
    seed: int | None
    #: How many outputs.
    num_outputs: int | None
    #: true: the same bytes for the same parameters, whatever else the device renders. false: faster where jobs
    #: share a device; a value may differ by 1/255.
    exact: bool | None
    #: LoRAs of the model. As `NAME` or `NAME:SCALE`, separated by commas.
    loras: str | None
    #: Whether the job's events carry small images while it is rendered.
    preview: bool | None
    #: Whether an output of one colour, saturated or silent fails the job as `suspicious_output`.
    fail_on_suspicious: bool | None
    #: `bulk` if absent: after the jobs of all higher priorities.
    priority: Priority | None
    #: The earliest time at which the job is dispatched to a worker.
    not_before: str | datetime | None
    #: A job that still waits at this time fails as `deadline_exceeded`. A running job is not stopped.
    deadline: str | datetime | None
    #: The file format.
    output_format: OutputFormat | None
    task: Task | None
    #: What ControlNets and adapters follow: edges, poses, depth; one for each of the model's, in their order.
    #: The id of an uploaded file (`file_…`), the `sha256:…` of one, an https URL, a base64 data URL, or an
    #: output of another job (`job_…`, `job_…/1`; in a batch also `{"from": "CUSTOM_ID"}`). PNG, WebP or JPEG.
    #: Several are separated by spaces.
    control_image: str | None
    #: How much of the input is replaced: 0 keeps it, 1 ignores it.
    strength: float | None
    #: The image to begin with. The id of an uploaded file (`file_…`), the `sha256:…` of one, an https URL, a
    #: base64 data URL, or an output of another job (`job_…`, `job_…/1`; in a batch also `{"from":
    #: "CUSTOM_ID"}`). PNG, WebP or JPEG. Several are separated by spaces.
    image: str | None
    #: Render only the masked part with a margin of so many pixels, enlarged to the whole size.
    padding_mask_crop: int | None
    #: Its white part is replaced. The id of an uploaded file (`file_…`), the `sha256:…` of one, an https URL, a
    #: base64 data URL, or an output of another job (`job_…`, `job_…/1`; in a batch also `{"from":
    #: "CUSTOM_ID"}`). PNG, WebP or JPEG.
    mask_image: str | None
    #: Images whose subjects or style are used. The id of an uploaded file (`file_…`), the `sha256:…` of one, an
    #: https URL, a base64 data URL, or an output of another job (`job_…`, `job_…/1`; in a batch also `{"from":
    #: "CUSTOM_ID"}`). PNG, WebP or JPEG. Several are separated by spaces.
    reference_images: str | None
    #: Brighter is nearer; estimated from the image by the model if absent. The id of an uploaded file
    #: (`file_…`), the `sha256:…` of one, an https URL, a base64 data URL, or an output of another job (`job_…`,
    #: `job_…/1`; in a batch also `{"from": "CUSTOM_ID"}`). PNG, WebP or JPEG.
    depth_map: str | None
    #: Pixels from the left edge.
    left: int | None
    #: Pixels from the upper edge.
    top: int | None
    #: How much of the upper image shows: 0 nothing, 1 it alone.
    opacity: float | None
    #: The upper image; what leaves the lower one is cut off. The id of an uploaded file (`file_…`), the
    #: `sha256:…` of one, an https URL, a base64 data URL, or an output of another job (`job_…`, `job_…/1`; in a
    #: batch also `{"from": "CUSTOM_ID"}`). PNG, WebP or JPEG.
    overlay_image: str | None
    #: rgb, or grey: the luminance (ITU-R 601).
    colours: Literal["rgb", "grey"] | None
    #: Grey values from this one on become white, the others black: a mask.
    threshold: int | None
    #: Whether dark becomes bright, at last.
    invert: bool | None
    #: cover: fills the size, and the middle is kept. contain: fits into the size, so one side may be shorter.
    #: stretch: both sides exactly.
    fit: Literal["cover", "contain", "stretch"] | None
    #: How values between pixels are computed.
    resample: Literal["lanczos", "bicubic", "bilinear", "box", "nearest"] | None
    #: Frames of the video.
    num_frames: int | None
    #: Frames per second of the file. A pipeline that is conditioned on it gets it too.
    fps: int | None
    #: The last frame. The id of an uploaded file (`file_…`), the `sha256:…` of one, an https URL, a base64 data
    #: URL, or an output of another job (`job_…`, `job_…/1`; in a batch also `{"from": "CUSTOM_ID"}`). PNG, WebP
    #: or JPEG.
    last_image: str | None
    #: What the video follows: edges, poses, depth. The id of an uploaded file (`file_…`), the `sha256:…` of
    #: one, an https URL, a base64 data URL, or an output of another job (`job_…`, `job_…/1`; in a batch also
    #: `{"from": "CUSTOM_ID"}`). MP4, WebM, QuickTime, animated WebP or GIF.
    control_video: str | None
    #: The video to begin with. The id of an uploaded file (`file_…`), the `sha256:…` of one, an https URL, a
    #: base64 data URL, or an output of another job (`job_…`, `job_…/1`; in a batch also `{"from":
    #: "CUSTOM_ID"}`). MP4, WebM, QuickTime, animated WebP or GIF.
    video: str | None
    #: Its white part is replaced. The id of an uploaded file (`file_…`), the `sha256:…` of one, an https URL, a
    #: base64 data URL, or an output of another job (`job_…`, `job_…/1`; in a batch also `{"from":
    #: "CUSTOM_ID"}`). MP4, WebM, QuickTime, animated WebP or GIF.
    mask_video: str | None
    #: Length of the sound.
    seconds: float | None
    #: The sound to begin with. The id of an uploaded file (`file_…`), the `sha256:…` of one, an https URL, a
    #: base64 data URL, or an output of another job (`job_…`, `job_…/1`; in a batch also `{"from":
    #: "CUSTOM_ID"}`). WAV, FLAC, Ogg or MP3.
    audio: str | None


class BatchChanges(TypedDict, total=False):
    """What may be changed of a batch."""

    name: str
    #: The batch's new metadata; replaces the old one.
    metadata: Mapping[str, str]
    #: The new priority of all its unfinished jobs.
    priority: Priority


class JobFilters(TypedDict, total=False):
    """Which jobs are meant; what is left out does not filter."""

    #: Any of these states.
    state: JobState | Sequence[JobState] | None
    task: Task | None
    model: str | None
    custom_id: str | None
    batch_id: str | None
    #: Why the jobs failed.
    error_code: str | None
    #: The worker that has the jobs, or had them last.
    worker: str | None
    created_after: str | datetime | None
    created_before: str | datetime | None


class OutputFilters(TypedDict, total=False):
    """Which outputs are meant; what is left out does not filter."""

    #: Words of the prompt, all of them; `"a phrase"`, `or` and `-without` as search engines have.
    q: str | None
    model: str | None
    task: Task | None
    media: str | None
    batch_id: str | None
    custom_id: str | None
    #: Of jobs whose `metadata` has this key.
    metadata_key: str | None
    #: And this value there.
    metadata_value: str | None
    #: true: only those with a star.
    star: bool | None
    tag: str | None
    collection: str | None
    #: Pixels.
    min_width: int | None
    #: Pixels.
    min_height: int | None
    #: Of jobs that were submitted after this time.
    created_after: str | datetime | None
    created_before: str | datetime | None


class LabelChanges(TypedDict, total=False):
    """What is changed on outputs."""

    #: true: give them a star; false: take it away.
    star: bool | None
    add_tags: Sequence[str] | None
    remove_tags: Sequence[str] | None
    #: Collections; one that is new begins with these outputs.
    add_to: Sequence[str] | None
    #: Collections; one without outputs is gone.
    remove_from: Sequence[str] | None


class EndpointChanges(TypedDict, total=False):
    """What may be changed of a webhook endpoint."""

    #: A new URL.
    url: str
    description: str
    #: The event types to send from now on.
    events: Sequence[EventType]
    #: `false`: nothing is sent. `true`: events are sent again, waiting ones included.
    enabled: bool
    #: `true`: webhooks also carry `v1a` signatures; a key pair is made unless there is one.
    asymmetric: bool


class DeliveryFilters(TypedDict, total=False):
    """Which webhook deliveries are meant; what is left out does not filter."""

    endpoint_id: str | None
    state: DeliveryState | None
    job_id: str | None
    type: DeliveryType | None
    created_after: str | datetime | None
    created_before: str | datetime | None


class ResendFilters(TypedDict, total=False):
    """Which dead deliveries are sent again; what is left out does not filter."""

    endpoint_id: str | None
    job_id: str | None
    type: DeliveryType | None
    created_after: str | datetime | None
    created_before: str | datetime | None


class TenantLimits(TypedDict, total=False):
    """A tenant's weight and limits."""

    #: Jobs that may wait.
    max_queued: int | None
    #: Jobs that may be at workers at once; more wait.
    max_running: int | None
    #: When a day (UTC) has used so many, new jobs are refused until the next day.
    device_seconds_per_day: float | None
    #: Bytes of outputs and inputs; above this limit new jobs are refused.
    storage_bytes: int | None
    #: Days after which finished jobs and their outputs are deleted.
    retention_days: int | None
    #: Its share of the farm, relative to the other tenants.
    weight: float | None
    #: Other names of models, to their ids: what the tenant's clients call them.
    model_aliases: Mapping[str, str] | None


class TenantChanges(TypedDict, total=False):
    """What may be changed of a tenant; None removes a limit."""

    #: Jobs that may wait.
    max_queued: int | None
    #: Jobs that may be at workers at once; more wait.
    max_running: int | None
    #: When a day (UTC) has used so many, new jobs are refused until the next day.
    device_seconds_per_day: float | None
    #: Bytes of outputs and inputs; above this limit new jobs are refused.
    storage_bytes: int | None
    #: Days after which finished jobs and their outputs are deleted.
    retention_days: int | None
    #: The tenant's name, unique in the farm.
    name: str
    #: Its share of the farm, relative to the other tenants.
    weight: float
    #: Other names of models, to their ids: what the tenant's clients call them.
    model_aliases: Mapping[str, str]


class ModelFields(TypedDict, total=False):
    """What is stated of a model; its files or the farm decide what is left out."""

    #: For people.
    description: str | None
    #: What a job gets that leaves these open: any parameter of a task, `scheduler`, `scheduler_options`,
    #: `parameters`, `exact`.
    defaults: Mapping[str, Any] | None
    #: What a job may ask for.
    limits: ModelLimits | None
    #: Only devices with so much memory get its jobs; null: any device is tried.
    memory_bytes: int | None
    #: Only workers with all of these tags get its jobs.
    tags: Sequence[str] | None
    #: The words it knows, by kind, where it knows only some.
    vocabulary: Mapping[str, Sequence[str]] | None
    #: Prompts to try.
    example_prompts: Sequence[str] | None
    #: What its jobs may name in `loras`.
    loras: Sequence[LoraFile] | None
    #: The Hub revision to pin.
    revision: str | None
    #: Where a single checkpoint file gets configs and tokenizers from, and text encoders that it lacks: a model
    #: of the farm, a folder, or a Hub repository.
    config: str | None
    #: The class of diffusers; a folder says it itself.
    pipeline: str | None
    #: Another class, by task.
    pipelines: Mapping[str, str] | None
    #: The class of the model's own scheduler; a folder says it itself.
    scheduler: str | None
    #: All that the class can do, if absent.
    tasks: Sequence[Task] | None
    #: Of the weights.
    dtype: Literal["auto", "float32", "float16", "bfloat16"] | None
    #: The weights' file variant, such as `fp16`.
    variant: str | None


class ModelChanges(TypedDict, total=False):
    """What may be changed of a model; None removes `memory_bytes`."""

    #: For people.
    description: str
    #: What a job gets that leaves these open: any parameter of a task, `scheduler`, `scheduler_options`,
    #: `parameters`, `exact`.
    defaults: Mapping[str, Any]
    #: What a job may ask for.
    limits: ModelLimits
    #: Only devices with so much memory get its jobs; null: any device is tried.
    memory_bytes: int | None
    #: Only workers with all of these tags get its jobs.
    tags: Sequence[str]
    #: The words it knows, by kind, where it knows only some.
    vocabulary: Mapping[str, Sequence[str]]
    #: Prompts to try.
    example_prompts: Sequence[str]
    #: What its jobs may name in `loras`.
    loras: Sequence[LoraFile]


#: By task and role: how many input files it takes, at least and at most.
TASK_INPUTS: Final[Mapping[Task, Mapping[str, tuple[int, int]]]] = {
    "text-to-image": {"control_image": (0, 8)},
    "image-to-image": {"image": (1, 1), "control_image": (0, 8)},
    "inpainting": {"image": (1, 1), "mask_image": (1, 1), "control_image": (0, 8), "reference_images": (0, 8)},
    "depth-to-image": {"image": (1, 1), "depth_map": (0, 1)},
    "composite": {"image": (1, 1), "overlay_image": (1, 1), "mask_image": (0, 1)},
    "convert": {"image": (1, 1)},
    "crop": {"image": (1, 1)},
    "depth-estimation": {"image": (1, 1)},
    "image-editing": {"image": (1, 4)},
    "image-variation": {"image": (1, 4)},
    "normal-estimation": {"image": (1, 1)},
    "resize": {"image": (1, 1)},
    "unconditional-image-generation": {},
    "upscaling": {"image": (1, 1)},
    "image-to-video": {"image": (1, 1), "last_image": (0, 1), "control_video": (0, 1)},
    "text-to-video": {"control_video": (0, 1), "reference_images": (0, 8)},
    "video-to-video": {"video": (1, 1), "mask_video": (0, 1), "control_video": (0, 1), "reference_images": (0, 8)},
    "video-upscaling": {"video": (1, 1)},
    "audio-to-audio": {"audio": (1, 1)},
    "text-to-audio": {},
    "unconditional-audio-generation": {},
}
#: The parameters of jobs by name.
PARAMETERS: Final[Mapping[str, ParameterInfo]] = {
    "prompt": ParameterInfo("text", "What the output shows."),
    "negative_prompt": ParameterInfo("text", "What the output does not show."),
    "num_inference_steps": ParameterInfo("integer", "Denoising steps.", aliases=("steps",)),
    "prompt_weighting": ParameterInfo(
        "choice",
        "a1111: (text:1.3) and [text] weigh parts of the prompts, BREAK and prompts beyond the encoder's window begin another chunk.",
    ),
    "guidance_scale": ParameterInfo("number", "How closely the output follows the prompt."),
    "width": ParameterInfo("integer", "Pixels."),
    "height": ParameterInfo("integer", "Pixels."),
    "control_scale": ParameterInfo(
        "numbers", "How closely control images are followed; a list has one value for each image."
    ),
    "control_start": ParameterInfo(
        "numbers", "The part of the steps at which control begins, from 0 to 1; a list has one for each image."
    ),
    "control_end": ParameterInfo(
        "numbers", "The part of the steps at which control ends, from 0 to 1; a list has one for each image."
    ),
    "control_kind": ParameterInfo("numbers", "What control images show, as the number of the model's ControlNet mode."),
    "model": ParameterInfo("text", "A model id from `GET /v1/models`; the first model that does the task if absent."),
    "scheduler": ParameterInfo("text", "The sampling method: a name such as `euler`, or a class."),
    "scheduler_options": ParameterInfo("object", "Options of the scheduler, such as `use_karras_sigmas`."),
    "parameters": ParameterInfo("object", "What only the model's pipeline takes, such as `clip_skip`."),
    "inputs": ParameterInfo(
        "inputs",
        "Files that only the model's pipeline takes, such as `ip_adapter_image`: by the pipeline's name, one reference or a list.",
    ),
    "seed": ParameterInfo("integer", "Output i of a job is rendered from seed + i; drawn at random if absent."),
    "num_outputs": ParameterInfo(
        "integer",
        "How many outputs.",
        aliases=("num_images_per_prompt", "num_videos_per_prompt", "num_waveforms_per_prompt", "n"),
    ),
    "exact": ParameterInfo(
        "boolean", "true: the same bytes for the same parameters, whatever else the device renders."
    ),
    "loras": ParameterInfo("loras", "LoRAs of the model."),
    "preview": ParameterInfo("boolean", "Whether the job's events carry small images while it is rendered."),
    "fail_on_suspicious": ParameterInfo(
        "boolean", "Whether an output of one colour, saturated or silent fails the job as `suspicious_output`."
    ),
    "priority": ParameterInfo("choice", "Jobs of a higher priority are dispatched first."),
    "custom_id": ParameterInfo("text", "Your own name for the job; results and webhooks carry it."),
    "metadata": ParameterInfo("metadata", "Your own texts by name; results carry them."),
    "webhook": ParameterInfo("text", "A URL that is notified when the job is finished."),
    "not_before": ParameterInfo("time", "The earliest time at which the job is dispatched to a worker."),
    "deadline": ParameterInfo("time", "A job that still waits at this time fails as `deadline_exceeded`."),
    "numerics": ParameterInfo("text", "A numerics class (`GET /v1/numerics`): only its workers render the job."),
    "output_format": ParameterInfo("choice", "The file format."),
    "task": ParameterInfo("choice", ""),
    "control_image": ParameterInfo(
        "input",
        "What ControlNets and adapters follow: edges, poses, depth; one for each of the model's, in their order.",
        many=True,
    ),
    "strength": ParameterInfo("number", "How much of the input is replaced: 0 keeps it, 1 ignores it."),
    "image": ParameterInfo("input", "The image to begin with.", many=True),
    "padding_mask_crop": ParameterInfo(
        "integer", "Render only the masked part with a margin of so many pixels, enlarged to the whole size."
    ),
    "mask_image": ParameterInfo("input", "Its white part is replaced."),
    "reference_images": ParameterInfo("input", "Images whose subjects or style are used.", many=True),
    "depth_map": ParameterInfo("input", "Brighter is nearer; estimated from the image by the model if absent."),
    "left": ParameterInfo("integer", "Pixels from the left edge."),
    "top": ParameterInfo("integer", "Pixels from the upper edge."),
    "opacity": ParameterInfo("number", "How much of the upper image shows: 0 nothing, 1 it alone."),
    "overlay_image": ParameterInfo("input", "The upper image; what leaves the lower one is cut off."),
    "colours": ParameterInfo("choice", "rgb, or grey: the luminance (ITU-R 601)."),
    "threshold": ParameterInfo("integer", "Grey values from this one on become white, the others black: a mask."),
    "invert": ParameterInfo("boolean", "Whether dark becomes bright, at last."),
    "fit": ParameterInfo("choice", "cover: fills the size, and the middle is kept."),
    "resample": ParameterInfo("choice", "How values between pixels are computed."),
    "num_frames": ParameterInfo("integer", "Frames of the video."),
    "fps": ParameterInfo("integer", "Frames per second of the file."),
    "last_image": ParameterInfo("input", "The last frame."),
    "control_video": ParameterInfo("input", "What the video follows: edges, poses, depth."),
    "video": ParameterInfo("input", "The video to begin with."),
    "mask_video": ParameterInfo("input", "Its white part is replaced."),
    "seconds": ParameterInfo("number", "Length of the sound."),
    "audio": ParameterInfo("input", "The sound to begin with."),
}
