"""``farm workers`` and ``farm models``: who renders, and what with."""

from __future__ import annotations

import sys

from farm.cli.connect import HERE, ApiKey, AsJson, DataDir, Url, connect, print_json
from farm.cli.jobs import age


def workers(as_json: AsJson = False, url: Url = None, api_key: ApiKey = None, data_dir: DataDir = HERE) -> None:
    """List the workers: their cards, what they hold, which models they have loaded."""
    with connect(url, api_key, data_dir) as farm:
        found = farm.workers()
    if as_json:
        print_json([worker.raw for worker in found])
        return
    if not found:
        print("no worker has joined yet: start one with `farm worker`", file=sys.stderr)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("worker", "state", "card", "memory", "dtype", "jobs", "models", "heard"):
        table.add_column(heading, justify="right" if heading in {"memory", "jobs", "heard"} else "left")
    for worker in found:
        table.add_row(
            worker.name,
            Text(worker.state, style={"online": "green", "draining": "yellow"}.get(worker.state, "red")),
            worker.device,
            f"{worker.memory_bytes / 2**30:.1f} GiB",
            worker.dtype,
            f"{worker.holds} of {worker.slots}",
            ", ".join(worker.models),
            f"{age(worker.heartbeat_at)} ago",
        )
    Console(highlight=False).print(table)


def models(as_json: AsJson = False, url: Url = None, api_key: ApiKey = None, data_dir: DataDir = HERE) -> None:
    """List the models: their tasks and sizes, prompts to try, and the words they know."""
    with connect(url, api_key, data_dir) as farm:
        found = farm.models()
    if as_json:
        print_json([model.raw for model in found])
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    screen = Console(highlight=False)
    for model in found:
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column(overflow="fold")
        limits, defaults = model.limits, model.defaults
        rows = {
            "tasks": ", ".join(model.tasks),
            "size": f"{defaults.get('width')}x{defaults.get('height')}; "
            f"sides of {limits.get('min_side')} to {limits.get('max_side')} pixels",
            "steps": f"{defaults.get('num_inference_steps')} with {defaults.get('scheduler')}, "
            f"guidance {defaults.get('guidance_scale')}",
            "loaded on": ", ".join(model.raw.get("loaded_on") or ()),
            **{kind: ", ".join(words) for kind, words in model.vocabulary.items()},
            "try": "\n".join(f'farm render "{prompt}"' for prompt in model.example_prompts),
        }
        for name, value in rows.items():
            if value:
                grid.add_row(f"  {name}", Text(value))
        screen.print(Text(model.id, style="bold"), Text(model.description))
        screen.print(grid)
