"""``farm render`` and ``farm rerun``: render one job and save its images."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from farm.api_types import Lora, OutputFormat, Priority, Task
from farm.cli import output_files
from farm.cli.comparison import Comparison, compare, difference
from farm.cli.connect import HERE, ApiKey, AsJson, DataDir, Url, connect, print_json
from farm.cli.parameter_options import with_parameters
from farm.cli.progress import watching
from farm.cli.screen import say
from farm.domain.numerics import differences
from farm.errors import BadInput

if TYPE_CHECKING:
    from farm.client import Farm, Job, Output


MAX_FILE: Final = 512 * 2**20  #: bytes of a file that is rendered again

Where = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="The file or directory. Default: a name from prompt and seed."),
]
Force = Annotated[bool, typer.Option("--force", "-f", help="Overwrite files.")]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Submit and print the job's id; save nothing.")]
NotBefore = Annotated[
    str | None, typer.Option(metavar="TIME", help="Do not start before this time: 2026-01-31T22:00:00+01:00.")
]
Deadline = Annotated[
    str | None, typer.Option(metavar="TIME", help="Fail the job if it still waits at this time, written the same way.")
]
Steps = Annotated[int | None, typer.Option("--steps", "--num-inference-steps", help="Denoising steps.")]
Guidance = Annotated[
    float | None, typer.Option("--guidance", "--guidance-scale", help="How closely to follow the prompt.")
]
Negative = Annotated[
    str | None, typer.Option("--negative", "--negative-prompt", help="What the output should not show.")
]
Loras = Annotated[
    list[str] | None, typer.Option("--lora", metavar="NAME[:SCALE]", help="Apply a LoRA of the model; may be repeated.")
]
Exact = Annotated[
    bool | None,
    typer.Option("--exact/--no-exact", help="The same bytes whatever else the device renders. Default: the model's."),
]
Preview = Annotated[
    bool | None, typer.Option("--preview/--no-preview", help="Send previews with the events of the job's progress.")
]
Params = Annotated[
    list[str] | None,
    typer.Option(
        "--param",
        "-p",
        "--parameters",
        metavar="NAME=VALUE",
        help="What only the model's pipeline takes; may be repeated. `farm models MODEL` lists it.",
    ),
]
SchedulerOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--scheduler-option",
        "--scheduler-options",
        metavar="NAME=VALUE",
        help="Option of the scheduler; may be repeated.",
    ),
]
#: The options that say how many outputs a job has.
COUNT: Final = (
    "--n",
    "-n",
    "--num-outputs",
    "--num-images-per-prompt",
    "--num-videos-per-prompt",
    "--num-waveforms-per-prompt",
)
Numerics = Annotated[
    str | None, typer.Option(metavar="CLASS", help="Render only on workers of this numerics class (`farm workers`).")
]


@dataclass(frozen=True)
class Saved:
    """One image on this machine's disk."""

    path: Path
    output: Output
    data: bytes


def _render(
    prompt: Annotated[str | None, typer.Argument(help="What to render; some tasks need no text.")] = None,
    output: Where = None,
    task: Annotated[
        Task | None,
        typer.Option(help="The task. Default: from the given files (image and mask: inpainting…)."),
    ] = None,
    image: Annotated[
        list[str] | None, typer.Option(help="The input image (file, URL, file_…, sha256:…, job_…); may be repeated.")
    ] = None,
    mask: Annotated[str | None, typer.Option(help="The mask; its white part is repainted.")] = None,
    depth: Annotated[str | None, typer.Option(help="The depth map; brighter is nearer.")] = None,
    steps: Steps = None,
    guidance: Guidance = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same image. Default: random.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="ddim, euler, dpm-solver, …, or a class of diffusers.")] = None,
    scheduler_option: SchedulerOptions = None,
    param: Params = None,
    size: Annotated[str | None, typer.Option(metavar="WxH", help="Pixels, multiples of 8.")] = None,
    n: Annotated[int | None, typer.Option(*COUNT, help="How many outputs.")] = None,
    model: Annotated[str | None, typer.Option(help="A model of `farm models`.")] = None,
    negative: Negative = None,
    lora: Loras = None,
    exact: Exact = None,
    preview: Preview = None,
    file_format: Annotated[
        OutputFormat | None, typer.Option("--format", "--output-format", help="Default: from the file's extension.")
    ] = None,
    priority: Annotated[Priority | None, typer.Option(help="Default: interactive, or normal with --no-wait.")] = None,
    custom_id: Annotated[str | None, typer.Option(help="A custom_id for the job.")] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Metadata of the job; may be repeated.")
    ] = None,
    webhook: Annotated[str | None, typer.Option(help="A URL that receives the job's events.")] = None,
    not_before: NotBefore = None,
    deadline: Deadline = None,
    numerics: Numerics = None,
    force: Force = False,
    no_wait: NoWait = False,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = HERE,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Render one prompt and save the output. Ctrl-C stops waiting, not the job."""
    if prompt is None and task is None and not (image or more):
        raise BadInput.of("prompt", None, "is required, but for tasks that need no text: name one with --task")
    width, height = size_of(size)
    wanted = output_files.format_of(output, file_format)
    if output is not None and not output_files.is_directory(output) and not no_wait:
        output_files.refuse_taken(output_files.numbered(_with_suffix(output, wanted), n or 1), force=force)
    with connect(url, api_key, data_dir) as farm:
        job = farm.submit(
            prompt,
            task=task,
            image=image[0] if image and len(image) == 1 else image or None,
            mask=mask,
            depth=depth,
            num_inference_steps=steps,
            guidance_scale=guidance,
            seed=seed,
            scheduler=scheduler,
            scheduler_options=values_of("scheduler-option", scheduler_option),
            parameters=values_of("param", param),
            width=width,
            height=height,
            num_outputs=n,
            model=model,
            negative_prompt=negative,
            loras=loras_of(lora),
            exact=exact,
            preview=preview,
            output_format=wanted,
            priority=priority or ("normal" if no_wait else "interactive"),
            custom_id=custom_id,
            metadata=metadata_of(metadata),
            webhook=webhook,
            not_before=not_before,
            deadline=deadline,
            numerics=numerics,
            **_files_by_name(more),
        )
        _print_waiting_reason(job)
        if no_wait:
            _submitted(job, as_json=as_json)
            return
        started = time.monotonic()
        job = wait_for(farm, job, as_json=as_json)
        saved = _download(farm, job, output, output_files.slug(prompt or ""), force=force)
    if as_json:
        print_json(_with_files(job, saved))
        return
    seconds = time.monotonic() - started
    for one in saved:
        say(f"{one.path}  seed {one.output.seed}  {_extent(one.output)}{seconds:.1f} s")


#: The parameters that `farm render` has options of its own for.
_OWN: Final = frozenset(
    {
        *("task", "prompt", "negative_prompt", "image", "mask_image", "depth_map", "num_inference_steps", "seed"),
        *("guidance_scale", "scheduler", "scheduler_options", "parameters", "width", "height", "num_outputs", "model"),
        *("loras", "exact", "preview", "output_format", "priority", "custom_id", "metadata", "webhook", "not_before"),
        *("deadline", "numerics"),
    }
)
render = with_parameters(_render, _OWN)


def _files_by_name(more: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters with the files of ``--inputs NAME=FILE`` as lists by name."""
    found = dict(more)
    named: dict[str, list[str]] = {}
    for text in found.pop("inputs", ()):
        name, separator, file = text.partition("=")
        if not separator:
            raise BadInput.of("inputs", text, f"{text!r} has no file: write it as NAME=FILE")
        named.setdefault(name, []).append(file)
    return found | ({"inputs": named} if named else {})


def _extent(output: Output) -> str:
    """How large or long an output is, followed by spaces."""
    size = "" if output.width is None else f"{output.width}x{output.height}  "
    seconds = output.metadata.get("seconds")
    return size if seconds is None else f"{size}{seconds:g} s  "


def rerun(
    source: Annotated[str, typer.Argument(metavar="FILE|JOB", help="An output of a farm, or a job's id.")],
    output: Where = None,
    force: Force = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Require the output's numerics class: wait for a worker that has it.")
    ] = False,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = HERE,
) -> None:
    """Render an output again from the recipe in its metadata, and compare.

    A worker of the output's numerics class renders it, if one is online: exact jobs then give the same bytes. Else any
    worker does, and the command says what differs. Exits 1 if the pixels or samples differ in the same class, or if
    they cannot be compared.
    """
    output_files.format_of(output, None)
    path = Path(source)
    if path.is_file():
        file = read_output(path)
        before, request, name, wanted = [file.data], file.request, f"{path.stem}-again", file.numerics
    elif re.fullmatch(r"job_[0-9a-f]{32}", source):
        before, request, name, wanted = [], None, f"{source}-again", None
    else:
        raise BadInput.of("source", source, f"there is no file {source!r}, and it is no job id")
    if output is not None and not output_files.is_directory(output):
        output_files.refuse_taken([output], force=force)
    with connect(url, api_key, data_dir) as farm:
        if request is None:
            first = farm.get(source)
            request = first.parameters
            before = [farm.download(one) for one in first.outputs]
            wanted = (first.raw.get("recipe") or {}).get("numerics")
        if strict and wanted is None:
            raise BadInput.of("source", source, f"{source} does not say in which numerics class it was rendered")
        if strict or any(one.name == wanted and one.workers for one in farm.numerics()):
            request = request | {"numerics": wanted}
        job = farm.submit_body(request | {"priority": "interactive"})
        _print_waiting_reason(job)
        job = wait_for(farm, job, as_json=as_json)
        saved = _download(farm, job, output, None, name=name, force=force)
        another = _another_class(farm, wanted, (job.raw.get("recipe") or {}).get("numerics"))
    # A job without images has nothing to be compared to: rendering it is all that was asked.
    pairs = list(zip_longest(before, (one.data for one in saved), fillvalue=b"")) if before else []
    verdicts = [compare(*pair) for pair in pairs]
    sentences = [one.sentence for one in verdicts]
    if another:
        sentences = [
            f"{another}; {difference(*pair)}" if one is Comparison.DIFFERENT else f"{one.sentence}; {another}"
            for one, pair in zip(verdicts, pairs, strict=True)
        ]
    if as_json:
        same = [comparison.value for comparison in verdicts]
        print_json(_with_files(job, saved) | {"same": same, "comparison": sentences})
    else:
        for index, one in enumerate(saved):
            sentence = f"  {sentences[index]}" if sentences else ""
            say(f"{one.path}  seed {one.output.seed}{sentence}")
    if Comparison.UNKNOWN in verdicts or (Comparison.DIFFERENT in verdicts and not another):
        raise typer.Exit(1)


@dataclass(frozen=True)
class OutputFile:
    """An output on this machine's disk."""

    data: bytes
    request: dict[str, Any]  #: renders it again
    numerics: str | None  #: the numerics class in which it was rendered; None: its recipe does not say


def read_output(path: Path) -> OutputFile:
    """Read an output and its recipe.

    Raises:
        BadInput: the file cannot be read, carries no recipe, or is larger than any output.
    """
    from farm.domain.recipe import numerics_of_recipe, request_from_recipe
    from farm.objects import recipes

    try:
        with path.open("rb") as file:
            text = recipes.read(file)
            size = file.seek(0, os.SEEK_END)
            if text is not None and size <= MAX_FILE:
                file.seek(0)
                return OutputFile(file.read(), request_from_recipe(text), numerics_of_recipe(text))
    except OSError as error:
        raise BadInput.of("file", str(path), f"{path} cannot be read: {error.strerror}") from error
    if text is not None:
        raise BadInput.of("file", str(path), f"{path} has {size:,} bytes; at most {MAX_FILE:,} are read")
    raise BadInput.of(
        "file",
        str(path),
        f"{path} has no recipe in its metadata: it was not made by a farm, or another program saved it again",
    )


def _another_class(farm: Farm, wanted: str | None, got: str | None) -> str:
    """That an output was rendered again in another numerics class, and what differs; empty if it was the same."""
    if wanted is None or got is None or wanted == got:
        return ""
    facts = {one.name: one.facts for one in farm.numerics()}
    why = f": {differences(facts[wanted], facts[got])}" if wanted in facts and got in facts else ""
    return f"another numerics class ({wanted} → {got}{why})"


def _print_waiting_reason(job: Job) -> None:
    if job.raw.get("waiting_reason"):
        say(f"Job {job.id} waits: {job.raw['waiting_reason']}.", file=sys.stderr)


def loras_of(given: list[str] | None) -> list[Lora] | None:
    """The LoRAs of ``--lora NAME[:SCALE]``. Raises `BadInput` for a scale that is not a number."""
    if not given:
        return None
    found: list[Lora] = []
    for text in given:
        name, separator, scale = text.rpartition(":") if ":" in text else (text, "", "")
        one: Lora = {"name": name}
        if separator:
            try:
                one["scale"] = float(scale)
            except ValueError as error:
                raise BadInput.of("lora", text, f"{scale!r} is not a number: write it as NAME:0.8") from error
        found.append(one)
    return found


def metadata_of(given: list[str] | None) -> dict[str, str] | None:
    """The metadata of ``--metadata KEY=VALUE``. Raises `BadInput` for a text without ``=``."""
    if not given:
        return None
    found: dict[str, str] = {}
    for text in given:
        key, separator, value = text.partition("=")
        if not separator:
            raise BadInput.of("metadata", text, f"{text!r} has no value: write it as KEY=VALUE")
        found[key] = value
    return found


def values_of(option: str, given: list[str] | None) -> dict[str, Any] | None:
    """The values of ``--param NAME=VALUE``: JSON, or a text. Raises `BadInput` for one without ``=``."""
    if not given:
        return None
    found: dict[str, Any] = {}
    for text in given:
        key, separator, value = text.partition("=")
        if not separator:
            raise BadInput.of(option, text, f"{text!r} has no value: write it as NAME=VALUE")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found


def size_of(text: str | None) -> tuple[int | None, int | None]:
    """Width and height in pixels from ``WxH``. Raises `BadInput`."""
    if text is None:
        return None, None
    found = re.fullmatch(r"([0-9]{1,5})[x×X]([0-9]{1,5})", text.strip())
    if found is None:
        raise BadInput.of("size", text, f"{text!r} is not a size: write it as 512x512")
    return int(found[1]), int(found[2])


def wait_for(farm: Farm, job: Job, *, as_json: bool) -> Job:
    """The job once it has succeeded. Exits 1 if it does not, and with 130 on Ctrl-C, which does not stop the job."""
    from farm.client import JobFailed

    try:
        with watching() as watch:
            job = farm.wait(job, on_progress=watch)
    except KeyboardInterrupt:
        say(
            f"Job {job.id} is still running. `farm show {job.id}` shows it, `farm cancel {job.id}` stops it.",
            file=sys.stderr,
        )
        raise typer.Exit(130) from None
    if not job.succeeded:
        say(f"farm: {JobFailed(job)}", file=sys.stderr)
        if as_json:
            print_json(job.raw | {"files": []})
        raise typer.Exit(1)
    for warning in job.warnings:
        say(f"farm: warning: {warning}", file=sys.stderr)
    return job


def _download(
    farm: Farm, job: Job, output: Path | None, prompt_slug: str | None, *, name: str = "", force: bool
) -> list[Saved]:
    datas = [farm.download(one) for one in job.outputs]
    suffix = job.outputs[0].suffix if job.outputs else ".png"
    if output is None or output_files.is_directory(output):
        stem = name or f"{prompt_slug}-{job.outputs[0].seed}"
        paths = [
            output_files.free(path)
            for path in output_files.numbered((output or Path()) / f"{stem}{suffix}", len(datas))
        ]
    else:
        paths = output_files.numbered(output if output.suffix else output.with_suffix(suffix), len(datas))
        output_files.refuse_taken(paths, force=force)
    for path, data in zip(paths, datas, strict=True):
        output_files.save(path, data)
    return [Saved(*one) for one in zip(paths, job.outputs, datas, strict=True)]


def _with_suffix(output: Path, wanted: str | None) -> Path:
    return output if output.suffix else output.with_suffix(output_files.suffix_of(wanted))


def _submitted(job: Job, *, as_json: bool) -> None:
    if as_json:
        print_json(job.raw)
    else:
        say(job.id)


def _with_files(job: Job, saved: Sequence[Saved]) -> dict[str, Any]:
    files = [{"path": str(one.path), "sha256": one.output.sha256, "seed": one.output.seed} for one in saved]
    return job.raw | {"files": files}
