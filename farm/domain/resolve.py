"""From what a client asked to what will be rendered: every limit of the model checked, every parameter known to it."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from farm.domain.job_spec import InputFile, JobSpec
from farm.domain.media import EMPTY_MASK, input_formats, media_of, titles
from farm.domain.model import Model, Registry
from farm.domain.own_names import default_of, own_inputs, own_parameter
from farm.domain.requests import AnyJobRequest, JobRequest
from farm.domain.schedulers import check_options, class_of, listed
from farm.errors import BadInput, FieldProblem
from farm.fields import MAX_SIDE, CellText
from farm.pipelines.catalogue import catalogue
from farm.pipelines.checks import Unfit
from farm.pipelines.spec import Media, PipelineSpec
from farm.tasks.spec import TaskSpec

#: PNDM is a four-step method: with fewer, diffusers' scheduler runs off the end of its history.
PNDM_STEPS: Final = 4
RANDOM_SEED_LIMIT: Final = 2**32  #: random seeds are below this, so that tools that hold 32 bits can copy them

MAX_SCHEDULE_AHEAD: Final = timedelta(days=366)  #: how far ahead a job's times may lie

_ARTICLES: Final = {Media.IMAGE: "an", Media.VIDEO: "a", Media.AUDIO: "an"}
Inputs = Mapping[str, tuple[InputFile, ...]]


def random_seed() -> int:
    """A seed for a request that names none."""
    return secrets.randbelow(RANDOM_SEED_LIMIT)


def check_times(request: AnyJobRequest, now: datetime) -> list[FieldProblem]:
    """What is wrong with the request's ``not_before`` and ``deadline``."""
    found = []
    for name, moment in (("not_before", request.not_before), ("deadline", request.deadline)):
        if moment is not None and moment > now + MAX_SCHEDULE_AHEAD:
            message = f"is more than {MAX_SCHEDULE_AHEAD.days} days ahead: name an earlier time"
            found.append(FieldProblem(name, moment.isoformat(), message))
    begin, end = request.not_before, request.deadline
    if end is not None and end <= now:
        found.append(FieldProblem("deadline", end.isoformat(), "has passed already: name a later time, or none"))
    elif end is not None and begin is not None and end <= begin:
        message = f"is not after not_before ({begin.isoformat()}): the job could never begin"
        found.append(FieldProblem("deadline", end.isoformat(), message))
    return found


def choose_model(request: AnyJobRequest, registry: Registry) -> Model:
    """The model that the request names or gets by default; `BadInput` names the choice there is."""
    capable = [model.id for model in registry.models if request.task in model.tasks]
    if request.model is None:
        model = registry.default_for(request.task)
        if model is None:
            raise BadInput.of("task", request.task, "no model of this farm does this task")
        return model
    model = registry.get(request.model)
    if model is None:
        reason = registry.refusals.get(request.model, "there is no such model")
        raise BadInput.of("model", request.model, f"{reason}; for this task: {', '.join(capable) or 'none'}")
    if request.task not in model.tasks:
        raise BadInput.of(
            "model", request.model, f"does not do {request.task}; models that do: {', '.join(capable) or 'none'}"
        )
    return model


def resolve(request: AnyJobRequest, model: Model, inputs: Inputs) -> JobSpec:
    """The job's spec.

    Args:
        request: a valid request of a task that the model does.
        model: the entry of the registry.
        inputs: the request's input files by role, stored and checked already.

    Raises:
        BadInput: with every problem found.
    """
    return _Resolution(request, model, inputs).spec()


def fit_to_input(spec: JobSpec, model: Model) -> JobSpec:
    """The spec with the size of the input that decides it, where that was not known when the job was submitted."""
    files = spec.inputs.get(spec.task_spec.resized or "", ())
    if not files or files[0].job is None or spec.width is not None or spec.height is not None:
        return spec
    width, height = files[0].width, files[0].height
    if width is None or height is None:
        return spec
    pipeline = None if spec.pipeline is None else catalogue().pipeline(spec.pipeline)
    fitted = model.fit(width, height, model.side_multiple(pipeline))
    return spec.model_copy(update={"common": spec.common | {"width": fitted[0], "height": fitted[1]}})


class _Resolution:
    """One request on its way to a spec; collects what is wrong with it."""

    def __init__(self, request: JobRequest, model: Model, inputs: Inputs) -> None:
        self.request, self.model, self.inputs = request, model, inputs
        self.task: TaskSpec = request.task_spec
        self.pipeline: PipelineSpec | None = model.pipeline_for(request.task)
        self.problems: list[FieldProblem] = []

    def refuse(self, field: str, value: object, message: str) -> None:
        self.problems.append(FieldProblem(field, value, message))

    def spec(self) -> JobSpec:
        request, model = self.request, self.model
        given = request.common()
        self._check_inputs()
        self._check_taken(given)
        parameters = self._parameters(given)
        common = self._common(given, parameters)
        self._check_size(common)
        self._check_step(common)
        self._check_lists(common)
        self._check_frames(common)
        self._check_guidance(common, parameters)
        self._check_steps(common)
        scheduler, options = self._scheduler(common)
        self._check_loras()
        if request.num_outputs > model.limits.max_outputs:
            self.refuse(
                "num_outputs", request.num_outputs, f"model {model.id} gives at most {model.limits.max_outputs} per job"
            )
        if self.problems:
            raise BadInput(*self.problems)
        exact = model.defaults.get("exact", True) if request.exact is None else request.exact
        return JobSpec(
            task=request.task,
            model=model.id,
            pipeline=None if self.pipeline is None else self.pipeline.name,
            common=common,
            parameters=parameters,
            scheduler=scheduler,
            scheduler_options=options,
            seed=random_seed() if request.seed is None else request.seed,
            num_outputs=request.num_outputs,
            output_format=request.output_format,
            inputs=dict(self.inputs),
            exact=exact,
            loras=request.loras,
            preview=request.preview,
            fail_on_suspicious=request.fail_on_suspicious,
        )

    # -- parameters ----------------------------------------------------------------------------------------------------

    def _is_taken(self, name: str) -> bool:
        """Whether a common parameter has an effect: the class has it, or the farm honours it itself."""
        if self.pipeline is None or name in self.task.honoured:
            return True
        parameter = own_parameter(self.pipeline, name)
        return parameter is not None and parameter.offered

    def _check_taken(self, given: Mapping[str, Any]) -> None:
        """Refuse the common parameters that the class does not take, and miss those that it cannot do without."""
        if self.pipeline is None:
            return
        for name, value in given.items():
            if not self._is_taken(name):
                self.refuse(name, value, self._not_taken())
            elif value is not None and (parameter := own_parameter(self.pipeline, name)) is not None:
                try:
                    parameter.check(value)
                except Unfit as error:
                    self.refuse(name, value, str(error))
        for name in self.task.params.model_fields:
            parameter = own_parameter(self.pipeline, name)
            if parameter is None or not parameter.required:
                continue
            missing = given.get(name) is None and name not in self.model.defaults
            if missing and parameter.name not in self.request.parameters:
                self.refuse(name, None, f"is required by {self.pipeline.name}, the pipeline of model {self.model.id}")

    def _not_taken(self) -> str:
        assert self.pipeline is not None
        taken = ", ".join(name for name in self.task.params.model_fields if self._is_taken(name)) or "none"
        return f"model {self.model.id} ({self.pipeline.name}) takes no such parameter; of this task's it takes {taken}"

    def _parameters(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The values of ``parameters`` in the types that the pipeline expects."""
        wanted = self.request.parameters
        if self.pipeline is None:
            found = {name: _plain(value) for name, value in wanted.items()}
            return {**self.model.defaults.get("parameters", {}), **found}
        found = {
            name: value
            for name, value in self.model.defaults.get("parameters", {}).items()
            if name in self.pipeline.offered
        }
        names = {self.pipeline.own_name(name): name for name in self.task.params.model_fields}
        names[self.pipeline.own_name("num_outputs")] = "num_outputs"
        for name, value in wanted.items():
            common = names.get(name)
            if common is not None and (common == name or common in given or common == "num_outputs"):
                message = "is a field of the request itself: give it there, not in parameters"
                if common != name:
                    message = f"is what model {self.model.id} calls {common}: give it as {common}, not in parameters"
                self.refuse(f"parameters.{name}", value, message)
                continue
            parameter = self.pipeline.offered.get(name)
            try:
                if value is None and parameter is not None and parameter.default is None and not parameter.required:
                    found[name] = None  # the class's own word for "not given"
                elif isinstance(value, CellText) and parameter is not None:
                    found[name] = parameter.parse(value)
                else:
                    found[name] = self.pipeline.check(name, value)
            except Unfit as error:
                self.refuse(f"parameters.{name}", value, str(error))
            except BadInput as error:
                self.problems += error.problems
        missing = [
            name
            for name, parameter in self.pipeline.offered.items()
            if parameter.required and name not in names and name not in found
        ]
        for name in missing:
            self.refuse(f"parameters.{name}", None, f"is required by {self.pipeline.name}")
        return found

    def _common(self, given: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
        """The task's parameters: as given, by the size of the input, by the model's defaults, or absent."""
        found: dict[str, Any] = {}
        if not self.task.needs_model:  # nothing else has defaults
            names = self.task.params.model_fields
            return {name: value for name in names if (value := getattr(self.request, name)) is not None}
        fitted = self._fitted()
        for name in self.task.params.model_fields:
            if name in given:
                found[name] = given[name]
            elif name in fitted:
                found[name] = fitted[name]
            elif name in self.model.defaults and self._is_taken(name):
                parameter = own_parameter(self.pipeline, name)
                if parameter is None or parameter.name not in parameters:
                    found[name] = self.model.defaults[name]
        return found

    def _fitted(self) -> dict[str, int]:
        """The size of the input that is resized to the job's, within the model's limits."""
        files = self.inputs.get(self.task.resized or "", ())
        if not files or files[0].width is None or files[0].height is None:
            return {}
        width, height = self.model.fit(files[0].width, files[0].height, self.model.side_multiple(self.pipeline))
        return {"width": width, "height": height}

    # -- limits --------------------------------------------------------------------------------------------------------

    def _check_inputs(self) -> None:
        for role, spec in self.task.inputs.items():
            files = self.inputs.get(role, ())
            other = self.inputs.get(spec.same_size_as or "", ())
            if _differ_in_size(files, other):
                self.refuse(
                    role,
                    f"{files[0].width}x{files[0].height}",
                    f"must have the size of {spec.same_size_as}, which is {other[0].width}x{other[0].height} pixels",
                )
            if role == "mask_image" and any(EMPTY_MASK in one.metadata for one in files):
                message = "has no white pixel, so nothing would be repainted: white is repainted, black is kept"
                self.refuse(role, "a black mask", message)
            self._check_input_taken(role, len(files))
            self._check_media(role, spec.media, files)
        self._check_own_inputs()

    def _check_media(self, field: str, media: Media, files: tuple[InputFile, ...]) -> None:
        for file in files:
            if not file.media_type:  # of an output that is not known yet: checked when its job is
                continue
            given = media_of(file.media_type, file.metadata)  # an animated WebP is no image
            if given is not media:
                wanted = f"must be {_ARTICLES[media]} {media}: {titles(input_formats(media))}"
                self.refuse(field, f"{given} ({file.media_type})", wanted)

    def _check_own_inputs(self) -> None:
        """Refuse files that the class does not take, or takes under another name, and miss those that it needs."""
        if self.pipeline is None:
            return
        roles = {parameter.name: role for role, parameter in own_inputs(self.pipeline, self.task).items()}
        own = {name: one for name, one in self.pipeline.inputs.items() if name not in roles}
        for name, files in self.request.inputs.items():
            field = f"inputs.{name}"
            if name in roles or name in self.task.inputs:
                self.refuse(
                    field, f"{len(files)} files", f"is the input {roles.get(name, name)}: give it beside inputs"
                )
            elif name not in own:
                takes = ", ".join(own) or "none"
                self.refuse(field, f"{len(files)} files", f"{self.pipeline.name} has no such input; it takes {takes}")
            elif (given := own[name].input) is not None:
                if len(files) > 1 and not given.many:
                    self.refuse(field, f"{len(files)} files", f"{self.pipeline.name} takes one")
                self._check_media(field, given.media, self.inputs.get(name, ()))
        for name, parameter in own.items():
            if parameter.required and name not in self.request.inputs:
                self.refuse(f"inputs.{name}", None, f"is required by {self.pipeline.name}")

    def _check_input_taken(self, role: str, count: int) -> None:
        if self.pipeline is None:
            return
        taken = own_inputs(self.pipeline, self.task)
        parameter = taken.get(role)
        if parameter is None or parameter.input is None:
            if count and self.task.resized != role:
                takes = ", ".join(taken)
                self.refuse(
                    role,
                    f"{count} files",
                    f"model {self.model.id} ({self.pipeline.name}) takes no such input; it takes {takes or 'none'}",
                )
        elif count > 1 and not parameter.input.many:
            self.refuse(role, f"{count} files", f"model {self.model.id} ({self.pipeline.name}) takes one")
        elif parameter.required and not count:
            self.refuse(role, None, f"is required by {self.pipeline.name}, the pipeline of model {self.model.id}")

    def _check_size(self, common: Mapping[str, Any]) -> None:
        limits, id_ = self.model.limits, self.model.id
        sides = {name: common[name] for name in ("width", "height") if common.get(name) is not None}
        before = len(self.problems)
        for name, value in sides.items():
            if not limits.min_side <= value <= limits.max_side:
                self.refuse(name, value, f"model {id_} renders sides of {limits.min_side} to {limits.max_side} pixels")
            elif value % (multiple := self.model.side_multiple(self.pipeline)):
                low = value // multiple * multiple
                nearest = f"{low} or {low + multiple}" if low else f"{multiple}"
                self.refuse(name, value, f"model {id_} renders multiples of {multiple} pixels: give {nearest}")
        if len(self.problems) > before or len(sides) < len(("width", "height")):
            return
        width, height = sides["width"], sides["height"]
        if width * height > limits.max_pixels:
            field = "width" if "width" in self.request.model_fields_set else "height"
            message = f"model {id_} renders at most {limits.max_pixels} pixels in all"
            self.refuse(field, f"{width}x{height}", message)

    def _check_step(self, common: Mapping[str, Any]) -> None:
        """Check the parameters of a task that needs no model against the size of its input, as far as it is known."""
        if self.task.output_size is None:
            return
        for name in ("scheduler", "scheduler_options", "parameters", "inputs"):
            if value := getattr(self.request, name):
                self.refuse(name, value, f"is for pipelines; {self.task.name} needs none")
        files = self.inputs.get("image", ())
        size = (MAX_SIDE, MAX_SIDE)
        if files and files[0].width is not None and files[0].height is not None:
            size = (files[0].width, files[0].height)
        try:
            width, height = self.task.output_size(common, size)
        except ValueError as error:
            self.refuse("width", common.get("width"), str(error))
            return
        if max(width, height) > MAX_SIDE:
            self.refuse("width", common.get("width"), f"gives {width}x{height} pixels; {MAX_SIDE} are allowed")

    def _check_lists(self, common: Mapping[str, Any]) -> None:
        """A list has one value for each control image."""
        count = len(self.inputs.get("control_image", ()))
        for name, value in common.items():
            if isinstance(value, list) and len(value) != count:
                self.refuse(name, value, f"has {len(value)} values for {count} control images")

    def _check_frames(self, common: Mapping[str, Any]) -> None:
        frames, seconds, limits = common.get("num_frames"), common.get("seconds"), self.model.limits
        if frames is not None:
            if frames > limits.max_frames:
                self.refuse("num_frames", frames, f"model {self.model.id} renders at most {limits.max_frames} frames")
            elif (step := self.model.frame_step(self.pipeline)) is not None:
                multiple, offset = step
                if (frames - offset) % multiple:
                    low = max(0, (frames - offset) // multiple) * multiple + offset
                    self.refuse(
                        "num_frames",
                        frames,
                        f"model {self.model.id} renders k × {multiple} + {offset} frames: give {low} or "
                        f"{low + multiple}",
                    )
        if seconds is not None and seconds > limits.max_seconds:
            self.refuse("seconds", seconds, f"model {self.model.id} renders at most {limits.max_seconds:g} seconds")

    def _check_guidance(self, common: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
        """Refuse a negative prompt or a scale that the pipeline would ignore."""
        rule = None if self.pipeline is None else self.pipeline.guidance
        if rule is None or self.pipeline is None or self.pipeline.own_name("negative_prompt") is None:
            return
        is_common = self.pipeline.own_name("guidance_scale") == rule.scale and rule.scale not in parameters
        values = common if is_common else parameters
        name = "guidance_scale" if is_common else rule.scale
        scale = values.get(name, self.pipeline.parameters[rule.scale].default)
        if not isinstance(scale, int | float):
            return
        field = name if is_common else f"parameters.{name}"
        asked = self.request.common()
        negative = asked.get("negative_prompt")
        if negative and scale <= rule.above:
            message = f"would be ignored: {field} is {scale:g}; give more than {rule.above:g}, or leave this out"
            self.refuse("negative_prompt", negative, message)
        is_asked = name in (asked if is_common else self.request.parameters)
        if rule.needs_negative and is_asked and scale > rule.above and common.get("negative_prompt") is None:
            message = "would be ignored without a negative prompt: give negative_prompt, which may be empty"
            self.refuse(field, scale, message)

    def _check_steps(self, common: Mapping[str, Any]) -> None:
        steps = common.get("num_inference_steps") or default_of(self.pipeline, "num_inference_steps")
        strength = common.get("strength")
        if steps is not None and strength is not None and steps * strength < 1:
            self.refuse(
                "strength",
                strength,
                f"num_inference_steps × strength is {steps * strength:g}, which leaves no denoising step; "
                f"at {steps} steps use a strength of at least {1 / steps:.3g}",
            )

    def _scheduler(self, common: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
        """The scheduler and its options, checked against those that run with the model."""
        defaults = self.model.defaults
        name = self.request.scheduler
        wanted = {key: _plain(value) for key, value in self.request.scheduler_options.items()}
        choices = self.model.schedulers(self.pipeline)
        fitting = {one.spec.name for one in choices}
        default = defaults.get("scheduler")
        # the entry's default may be for another of its pipelines
        if name is None and default is not None and (self.pipeline is None or class_of(default) in fitting):
            name, wanted = default, {**defaults.get("scheduler_options", {}), **wanted}
        cls = self.model.scheduler if name is None else class_of(name)
        if name is not None and (cls is None or (self.pipeline is not None and cls not in fitting)):
            message = f"{name!r} is not a scheduler"
            if self.pipeline is not None:
                model = f"model {self.model.id} ({self.pipeline.name})"
                wrong = message if cls is None else f"{name} does not run with this model"
                message = f"{wrong}; those that run with {model}: {listed(choices)}"
            self.refuse("scheduler", name, message)
            return name, wanted
        if not wanted:
            return self._with_steps(name, cls, common), {}
        if cls is None:
            message = f"name a scheduler: the own one of model {self.model.id} is not known here"
            if self.pipeline is not None and self.pipeline.scheduler is None:
                message = f"model {self.model.id} ({self.pipeline.name}) has no scheduler"
            self.refuse("scheduler_options", ", ".join(wanted), message)
            return name, wanted
        options, problems = check_options(catalogue().scheduler(cls), wanted)
        self.problems += problems
        return self._with_steps(name, cls, common), options

    def _with_steps(self, name: str | None, cls: str | None, common: Mapping[str, Any]) -> str | None:
        steps = common.get("num_inference_steps")
        if cls == "PNDMScheduler" and steps is not None and steps < PNDM_STEPS:
            self.refuse("num_inference_steps", steps, f"the scheduler pndm needs at least {PNDM_STEPS} steps")
        return name

    def _check_loras(self) -> None:
        known = ", ".join(lora.name for lora in self.model.loras) or "none"
        names = [lora.name for lora in self.request.loras]
        for index, name in enumerate(names):
            if self.model.lora(name) is None:
                message = f"model {self.model.id} has no such LoRA; it has: {known}"
                self.refuse(f"loras.{index}.name", name, message)
            elif name in names[:index]:
                self.refuse(f"loras.{index}.name", name, "is named twice; give it one scale")


def _differ_in_size(files: tuple[InputFile, ...], others: tuple[InputFile, ...]) -> bool:
    """Whether two inputs have different sizes; the size of an output that does not exist yet may not be known."""
    sizes = [(one[0].width, one[0].height) for one in (files, others) if one and (one[0].known or one[0].width)]
    return len(sizes) > 1 and sizes[0] != sizes[1]


def _plain(value: Any) -> Any:
    """The value of a CSV cell where no class says its type: JSON, or the text itself."""
    if not isinstance(value, CellText):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return str(value)
