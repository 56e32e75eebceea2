"""``farm demo``: start a whole farm, render all four tasks, make a contact sheet, stop the farm."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from PIL import Image, ImageDraw
from rich.table import Table
from rich.text import Text

from farm.api_types import Task
from farm.cli import output_files
from farm.cli.connect import running
from farm.cli.contact_sheet import Section, Tile, sheet
from farm.cli.progress import watching
from farm.cli.screen import open_console
from farm.client import Farm
from farm.errors import FarmError, SetupError

if TYPE_CHECKING:
    from farm.cli.progress import Watch
    from farm.client import Job

TEXT: Final[Task] = "text-to-image"
IMAGE: Final[Task] = "image-to-image"
INPAINT: Final[Task] = "inpainting"
DEPTH: Final[Task] = "depth-to-image"


@dataclass(frozen=True)
class Wish:
    """One job of the demo."""

    task: Task
    prompt: str
    seed: int
    source: int | None = None  #: which of the first wishes' images it begins with
    strength: float | None = None
    #: the part of the image that is painted anew: left, top, right, bottom, from 0 to 1
    hole: tuple[float, float, float, float] | None = None


FROM_WORDS: Final = (
    Wish(TEXT, "a red ball on a blue background", 7),
    Wish(TEXT, "a green cube and a yellow cone on a white background", 11),
    Wish(TEXT, "a large purple cylinder on a yellow background", 3),
    Wish(TEXT, "a small orange cone on the left on a black background", 5),
    Wish(TEXT, "a cyan sphere on the right on a pink background", 2),
    Wish(TEXT, "a white box and a red cylinder on a green background", 4),
)
FROM_IMAGES: Final = (
    Wish(IMAGE, "a yellow ball on a green background", 21, source=0, strength=0.75),
    Wish(IMAGE, "a large pink cylinder on a cyan background", 22, source=2, strength=0.75),
    Wish(INPAINT, "a green cube on a blue background", 23, source=0, hole=(0.2, 0.2, 0.8, 0.85)),
    Wish(INPAINT, "a blue sphere on the right on a pink background", 24, source=4, hole=(0.45, 0.2, 1.0, 0.85)),
    Wish(DEPTH, "a blue cube and a red cone on a yellow background", 25, source=1, strength=1.0),
    Wish(DEPTH, "a green cylinder on a white background", 26, source=2, strength=1.0),
)


@dataclass
class DemoResult:
    """The result of one job of the demo."""

    wish: Wish
    job: Job | None = None
    image: bytes = b""
    path: Path | None = None
    mask: Image.Image | None = None
    problem: str = ""
    seconds: float = field(default=0.0)  #: from the submission to the image


def demo(
    out: Annotated[Path, typer.Option(help="The directory for the images.")] = Path("demo-out"),
    data_dir: Annotated[
        Path | None, typer.Option(help="The farm's data directory. Default: a temporary one, removed at the end.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="How many workers. Default: one per device.")] = None,
) -> None:
    """Start a farm, render all four tasks into a folder with a contact sheet, and stop the farm.

    Exits 1 unless every job succeeded.
    """
    begun = time.monotonic()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(f"{out} cannot be made: {error.strerror}") from error
    _end_on_sigterm()
    with _directory(data_dir) as directory, _farm_in(directory, workers) as addresses:
        ready = time.monotonic()
        with Farm(addresses["url"], addresses["api_key"]) as farm:
            results = _render_all(farm, out)
        rendered = time.monotonic()
        _draw_sheet(results, rendered - ready, out / "sheet.png")
    _print_summary(results, out, started=ready - begun, rendering=rendered - ready, total=time.monotonic() - begun)
    if any(result.problem for result in results):
        raise typer.Exit(1)


def _render_all(farm: Farm, out: Path) -> list[DemoResult]:
    """Each wave's jobs are all submitted at once; the second one begins with images of the first."""
    names: dict[str, str] = {}
    pool = ThreadPoolExecutor(max_workers=max(len(FROM_WORDS), len(FROM_IMAGES)))
    try:
        with watching(lambda job: names.get(job.id, job.id)) as watch:

            def work(number: int, wish: Wish, source: DemoResult | None) -> DemoResult:
                return _render(farm, wish, source, out, number, _naming(names, wish, watch))

            first = list(pool.map(work, range(1, 1 + len(FROM_WORDS)), FROM_WORDS, [None] * len(FROM_WORDS)))
            sources = [first[wish.source or 0] for wish in FROM_IMAGES]
            numbers = range(1 + len(first), 1 + len(first) + len(FROM_IMAGES))
            return first + list(pool.map(work, numbers, FROM_IMAGES, sources))
    finally:
        # After Ctrl-C the farm is stopped although threads still follow jobs.
        pool.shutdown(wait=False, cancel_futures=True)


def _naming(names: dict[str, str], wish: Wish, watch: Watch) -> Callable[[Job], None]:
    def tell(job: Job) -> None:
        names[job.id] = f"{wish.task}, {wish.prompt}"
        watch(job)

    return tell


def _render(
    farm: Farm, wish: Wish, source: DemoResult | None, out: Path, number: int, tell: Callable[[Job], None]
) -> DemoResult:
    result = DemoResult(wish)
    begun = time.monotonic()
    try:
        if source is not None and source.problem:
            result.problem = "its input image was not rendered"
            return result
        image = source.image if source is not None else None
        if wish.hole is not None and image is not None:
            result.mask = _mask(image, wish.hole)
        rendered = farm.run(
            wish.prompt,
            task=wish.task,
            image=image,
            mask=result.mask,
            strength=wish.strength,
            seed=wish.seed,
            metadata={"made_by": "farm demo"},
            on_progress=tell,
        )
        result.job, result.image = rendered.job, rendered.images[0].data
        stem = f"{number:02}-{wish.task}-{output_files.slug(wish.prompt)}"
        result.path = out / f"{stem}{rendered.job.outputs[0].suffix}"
        output_files.save(result.path, result.image)
        if result.mask is not None:
            result.mask.save(out / f"{stem}-mask.png")
    except FarmError as error:
        result.problem = str(error)
    finally:
        result.seconds = time.monotonic() - begun
    return result


def _mask(image: bytes, hole: tuple[float, float, float, float]) -> Image.Image:

    size = _opened(image).size
    mask = Image.new("L", size, 0)
    left, top, right, bottom = hole
    box = (left * size[0], top * size[1], right * size[0] - 1, bottom * size[1] - 1)
    ImageDraw.Draw(mask).rounded_rectangle(box, radius=size[0] / 10, fill=255)
    return mask


def _opened(data: bytes) -> Image.Image:

    return Image.open(io.BytesIO(data))


# -- the farm for as long as it is needed ----------------------------------------------------------------------------


@contextmanager
def _directory(given: Path | None) -> Iterator[Path]:
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="farm-demo-", ignore_cleanup_errors=True) as made:
        yield Path(made)


@contextmanager
def _farm_in(directory: Path, workers: int | None) -> Iterator[dict[str, Any]]:
    """A farm in that directory, and its addresses; stopped at the end, unless it ran before."""
    before = running(directory)
    if before:
        yield before
        return
    print("starting the farm: PostgreSQL, Valkey, S3, the API, the dispatcher, workers…", file=sys.stderr, flush=True)
    asked = [] if workers is None else ["--workers", str(workers)]
    try:
        up = _run("up", "--detach", "--json", "--data-dir", str(directory), *asked)
        try:
            addresses = json.loads(up.stdout)
        except ValueError:
            raise SetupError("the farm did not start; the lines above say why") from None
        yield addresses
    finally:
        print("stopping the farm…", file=sys.stderr, flush=True)
        _run("down", "--data-dir", str(directory))


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    # The demo's farm must not use servers or a key from the environment.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FARM_")}
    environment |= {name: os.environ[name] for name in _KEPT if name in os.environ}
    return subprocess.run(  # noqa: S603 - this very program
        [sys.executable, "-P", "-m", "farm.cli", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        check=False,
    )


#: What a person may set for the demo's farm too.
_KEPT: Final = ("FARM_TORCH_THREADS", "FARM_LOG_JSON")


def _end_on_sigterm() -> None:
    """Let a SIGTERM run the clean-up, as Ctrl-C does."""

    def end(*_: object) -> None:
        raise SystemExit(143)

    signal.signal(signal.SIGTERM, end)


# -- results ---------------------------------------------------------------------------------------------------------


def _draw_sheet(results: list[DemoResult], seconds: float, path: Path) -> None:
    def tile(result: DemoResult) -> Tile:
        if not result.image or result.job is None:
            return Tile(_blank(), result.wish.prompt, result.problem[:30])
        steps = result.job.parameters.get("num_inference_steps")
        return Tile(_opened(result.image), result.wish.prompt, f"seed {result.wish.seed}, {steps} steps")

    def group(result: DemoResult) -> list[Tile]:
        source = results[result.wish.source or 0]
        before = Tile(_opened(source.image) if source.image else _blank(), "input image")
        if result.mask is not None:
            return [before, Tile(result.mask, "mask: white is repainted"), tile(result)]
        between = "its depth, estimated" if result.wish.task == DEPTH else "repainted"
        strength = f"strength {result.wish.strength:g}" if result.wish.strength is not None else ""
        return [before, Tile(None, between, strength), tile(result)]

    sections = [Section(TEXT, [tile(result) for result in results if result.wish.task == TEXT])]
    for task in (IMAGE, INPAINT, DEPTH):
        tiles = [one for result in results if result.wish.task == task for one in group(result)]
        sections.append(Section(task, tiles))
    done = sum(not result.problem for result in results)
    model = next((result.job.model for result in results if result.job), "")
    subtitle = f"{done} of {len(results)} jobs, four tasks, model {model}, {seconds:.0f} s on this machine"
    sheet("Rendered by the farm", subtitle, sections).save(path)


def _blank() -> Image.Image:

    return Image.new("RGB", (64, 64), (226, 224, 220))


def _print_summary(results: list[DemoResult], out: Path, *, started: float, rendering: float, total: float) -> None:

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("task", "jobs", "succeeded", "s per job"):
        table.add_column(heading, justify="left" if heading == "task" else "right")
    for task in (TEXT, IMAGE, INPAINT, DEPTH):
        these = [result for result in results if result.wish.task == task]
        on_device = [
            seconds
            for result in these
            if result.job and (seconds := (result.job.raw.get("timings") or {}).get("rendering_seconds")) is not None
        ]
        done = sum(not result.problem for result in these)
        each = f"{sum(on_device) / len(on_device):.2f}" if on_device else ""
        table.add_row(task, str(len(these)), Text(str(done), "green" if done == len(these) else "red"), each)
    screen = open_console()
    screen.print(table)
    for result in results:
        if result.problem:
            screen.print(Text(f"{result.wish.task}, {result.wish.prompt}: {result.problem}", "red"))
    print(f"{len(results)} jobs in {rendering:.1f} s; the farm started in {started:.1f} s; {total:.1f} s in all")
    print(f"images:      {out}/")
    print(f"contact sheet: {out / 'sheet.png'}")
    print('your own farm: `farm up`, then `farm render "a red ball on a blue background"`;')
    print("               it prints the address of its dashboard, where you see all of this at work, and of the API")
