"""What is sent to the API, as types. Written by `python -m tools.api_types`.

None, where it is allowed, is the same as leaving the argument out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, NotRequired, TypeAlias, TypedDict


class Lora(TypedDict):
    """A LoRA of the model's registry entry."""

    #: One of the model's `loras` in `GET /v1/models`.
    name: str
    #: Its strength.
    scale: NotRequired[float]


Priority: TypeAlias = Literal["bulk", "normal", "interactive"]

OutputFormat: TypeAlias = Literal["png", "webp", "jpeg"]

Task: TypeAlias = Literal["text-to-image", "image-to-image", "inpainting", "depth-to-image"]

JobState: TypeAlias = Literal["queued", "dispatched", "running", "succeeded", "failed", "canceled"]

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

Scope: TypeAlias = Literal["submit", "read", "operate", "admin"]


class JobParameters(TypedDict, total=False):
    """A job's parameters; what is left out is decided by the model's defaults."""

    #: What the output does not show. null: none, whatever the model's defaults say.
    negative_prompt: str | None
    #: Denoising steps.
    num_inference_steps: int | None
    #: How closely the output follows the prompt.
    guidance_scale: float | None
    #: Pixels.
    width: int | None
    #: Pixels.
    height: int | None
    #: A model id from `GET /v1/models`; the first model that does the task if absent.
    model: str | None
    #: The sampling method: a name such as `euler`, or a class. `GET /v1/models/{id}` lists those of a model;
    #: its own if absent.
    scheduler: str | None
    #: Options of the scheduler, such as `use_karras_sigmas`.
    scheduler_options: Mapping[str, Any] | None
    #: What only the model's pipeline takes, such as `clip_skip`. `GET /v1/models/{id}` has the schema.
    parameters: Mapping[str, Any] | None
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
    #: The file format.
    output_format: OutputFormat | None
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


class BatchDefaults(TypedDict, total=False):
    """Parameters of a batch, and those that its jobs leave open."""

    #: Notified of the batch's milestones and its end.
    webhook: str | None
    #: Whether `webhook` is also notified when each job is finished.
    webhook_jobs: bool | None
    #: What the output shows.
    prompt: str | None
    #: What the output does not show. null: none, whatever the model's defaults say.
    negative_prompt: str | None
    #: Denoising steps.
    num_inference_steps: int | None
    #: How closely the output follows the prompt.
    guidance_scale: float | None
    #: Pixels.
    width: int | None
    #: Pixels.
    height: int | None
    #: A model id from `GET /v1/models`; the first model that does the task if absent.
    model: str | None
    #: The sampling method: a name such as `euler`, or a class. `GET /v1/models/{id}` lists those of a model;
    #: its own if absent.
    scheduler: str | None
    #: Options of the scheduler, such as `use_karras_sigmas`. As JSON.
    scheduler_options: str | None
    #: What only the model's pipeline takes, such as `clip_skip`. `GET /v1/models/{id}` has the schema. As JSON.
    parameters: str | None
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
    #: `bulk` if absent: after the jobs of all higher priorities.
    priority: Priority | None
    #: The earliest time at which the job is dispatched to a worker.
    not_before: str | datetime | None
    #: A job that still waits at this time fails as `deadline_exceeded`. A running job is not stopped.
    deadline: str | datetime | None
    #: The file format.
    output_format: OutputFormat | None
    task: Task | None
    #: How much of the input is replaced: 0 keeps it, 1 ignores it.
    strength: float | None
    #: The image to begin with. The id of an uploaded file (`file_…`), the `sha256:…` of one, an https URL, or a
    #: base64 data URL. PNG, WebP or JPEG.
    image: str | None
    #: Render only the masked part with a margin of so many pixels, enlarged to the whole size.
    padding_mask_crop: int | None
    #: Its white part is replaced. The id of an uploaded file (`file_…`), the `sha256:…` of one, an https URL,
    #: or a base64 data URL. PNG, WebP or JPEG.
    mask_image: str | None
    #: Brighter is nearer; estimated from the image by the model if absent. The id of an uploaded file
    #: (`file_…`), the `sha256:…` of one, an https URL, or a base64 data URL. PNG, WebP or JPEG.
    depth_map: str | None


class BatchChanges(TypedDict, total=False):
    """What may be changed of a batch."""

    name: str | None
    #: The batch's new metadata; replaces the old one.
    metadata: Mapping[str, str] | None
    #: The new priority of all its unfinished jobs.
    priority: Priority | None


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


class EndpointChanges(TypedDict, total=False):
    """What may be changed of a webhook endpoint."""

    #: A new URL.
    url: str | None
    description: str | None
    #: The event types to send from now on.
    events: Sequence[EventType] | None
    #: `false`: nothing is sent. `true`: events are sent again, waiting ones included.
    enabled: bool | None
    #: `true`: webhooks also carry `v1a` signatures; a key pair is made unless there is one.
    asymmetric: bool | None


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
    name: str | None
    #: Its share of the farm, relative to the other tenants.
    weight: float | None
