"""All that decides what a job renders."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import Field

from farm.domain.media import MediaFormat, MediaMetadata, output_format, pixels
from farm.fields import MAX_SEED, FrozenValue
from farm.pipelines.spec import Media
from farm.tasks import TASKS
from farm.tasks.spec import TaskSpec


class Lora(FrozenValue):
    """A LoRA of the model's registry entry."""

    name: str = Field(min_length=1, max_length=100, description="One of the model's `loras` in `GET /v1/models`.")
    scale: Annotated[float, Field(ge=-4, le=4, allow_inf_nan=False)] = Field(1.0, description="Its strength.")


class InputFile(FrozenValue):
    """An input of a job: a stored file, named by its content, or an output of another job.

    An output that does not exist yet has neither hash nor key. Its media type and metadata are then what the other
    job's parameters say, as far as they say it.
    """

    sha256: str  #: of the file's bytes, hex
    key: str  #: object key
    media_type: str  #: by the content: ``image/png``
    size: int  #: bytes
    metadata: MediaMetadata = Field(default_factory=dict)
    job: str | None = Field(None, exclude_if=lambda value: value is None)  #: whose output it is; None: no job's
    output: int = Field(0, exclude_if=lambda value: value == 0)  #: which output of that job, from 0

    @property
    def known(self) -> bool:
        """Whether its bytes are known: an output of a job that has not succeeded is not."""
        return bool(self.sha256)

    @property
    def width(self) -> int | None:
        """Pixels; None for media without."""
        return pixels(self.metadata, "width")

    @property
    def height(self) -> int | None:
        """Pixels; None for media without."""
        return pixels(self.metadata, "height")

    @property
    def reference(self) -> str:
        """What a request calls the file."""
        return f"sha256:{self.sha256}" if self.job is None else f"{self.job}/{self.output}"


#: What `JobSpec.request` leaves out where it says nothing.
_WHERE_USED: Final = ("parameters", "scheduler", "scheduler_options", "loras", "preview", "fail_on_suspicious")


class JobSpec(FrozenValue):
    """All that decides what a job renders. Stored as JSON with the job.

    What nobody gave is absent from ``common`` and ``parameters``: the pipeline's own default holds then. A None there
    was given and is passed on.
    """

    task: str
    model: str
    pipeline: str | None = None  #: the class that the parameters were checked against; None: it was not known
    common: dict[str, Any]  #: the parameters that the task declares
    parameters: dict[str, Any] = Field(default_factory=dict)  #: those that only the pipeline class takes
    scheduler: str | None = None  #: a public name or a class; None: the model's own
    scheduler_options: dict[str, Any] = Field(default_factory=dict)
    seed: int
    num_outputs: int
    output_format: str  #: of the task's media: `farm.domain.media.output_formats`
    inputs: dict[str, tuple[InputFile, ...]] = Field(default_factory=dict)  #: by role, or by the pipeline's name
    exact: bool = True  #: whether the bytes must not depend on what else the device renders
    loras: tuple[Lora, ...] = ()  #: in the order they were given
    preview: bool = False  #: whether its progress carries small images; decides no pixel
    fail_on_suspicious: bool = False  #: whether an output that looks wrong fails the job; decides no pixel

    @property
    def depends_on(self) -> tuple[str, ...]:
        """The jobs whose outputs are its inputs, each once."""
        jobs = (file.job for files in self.inputs.values() for file in files)
        return tuple(dict.fromkeys(job for job in jobs if job is not None))

    @property
    def task_spec(self) -> TaskSpec:
        """What the task declares."""
        return TASKS[self.task]

    @property
    def media(self) -> Media:
        """What comes out."""
        return self.task_spec.output

    @property
    def format(self) -> MediaFormat:
        """How outputs are encoded."""
        return output_format(self.media, self.output_format)

    @property
    def prompt(self) -> str:
        """The prompt; empty where there is none."""
        return self.common.get("prompt") or ""

    @property
    def negative_prompt(self) -> str | None:
        """None where there is none."""
        return self.common.get("negative_prompt")

    @property
    def num_inference_steps(self) -> int | None:
        """Denoising steps; None: the pipeline's own default."""
        return self.common.get("num_inference_steps")

    @property
    def guidance_scale(self) -> float | None:
        """None: the pipeline's own default."""
        return self.common.get("guidance_scale")

    @property
    def strength(self) -> float | None:
        """How much of the input is replaced; None: the pipeline's own default, or a task without."""
        return self.common.get("strength")

    @property
    def width(self) -> int | None:
        """Pixels; None: the pipeline's own default, or a task without."""
        return self.common.get("width")

    @property
    def height(self) -> int | None:
        """Pixels; None: the pipeline's own default, or a task without."""
        return self.common.get("height")

    @property
    def num_frames(self) -> int | None:
        """Frames of a video; None: the pipeline's own default, or a task without."""
        return self.common.get("num_frames")

    @property
    def seconds(self) -> float | None:
        """Length of a sound; None: the pipeline's own default, or a task without."""
        return self.common.get("seconds")

    def seed_of(self, index: int) -> int:
        """The seed of output ``index``: consecutive, wrapping at the largest seed."""
        return (self.seed + index) % (MAX_SEED + 1)

    def request(self) -> dict[str, Any]:
        """The parameters as the API shows them: what a client would send to get the same outputs."""
        shown = self.model_dump(mode="json", exclude={"inputs", "common", "pipeline"})
        for name in _WHERE_USED:
            if not shown[name]:
                del shown[name]
        roles = self.task_spec.inputs
        files: dict[str, Any] = {}
        for role, given in self.inputs.items():
            listed = [one.reference for one in given]
            if role in roles:
                files[role] = listed[0] if roles[role].max == 1 else listed
            else:  # only the pipeline takes it
                files.setdefault("inputs", {})[role] = listed
        return {"task": shown.pop("task"), "model": shown.pop("model")} | self.common | shown | files
