"""Trains modules: steps, averaged weights, checkpoints that resume exactly, and a record of the loss."""

import csv
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from tools.starter import chart

#: While this file exists, training waits: somebody is measuring something on this machine.
PAUSE: Final = os.environ.get("STARTER_PAUSE_FILE", "data/starter/pause")


@dataclass(frozen=True, slots=True)
class StepRandom:
    """The randomness of one step. It depends on the seed and the step alone, which makes resuming exact."""

    numpy: np.random.Generator
    torch: torch.Generator

    @classmethod
    def of(cls, seed: int, step: int) -> "StepRandom":
        """The randomness of a step under a seed."""
        return cls(np.random.default_rng((seed, step)), torch.Generator().manual_seed(seed * 1_000_003 + step))


#: Returns the loss to descend, and named numbers for the record.
Step = Callable[[int, StepRandom], tuple[Tensor, Mapping[str, float]]]


class Trainer:
    """Trains the parameters of some modules by AdamW and keeps a running average of them.

    The rate rises over the first steps, stays, and falls to nothing over the last quarter; the state just before it
    falls is kept as `trunk.pt`, so that a longer training can start where the rate was still high. The average follows
    the power-law profile of Karras et al. 2024 (arXiv:2312.02696), which does not depend on the number of steps.

    Args:
        name: of the stage; its files are in a folder of that name.
        folder: where all stages keep their files.
        modules: by name; only parameters that require a gradient are trained.
        steps: of the whole training.
        rate: the highest learning rate.
        samples: in one step, for the record.
    """

    WARM_UP: Final = 100
    COOL_DOWN: Final = 0.25
    AVERAGE: Final = 14  # the average reaches back over about a fifteenth of the steps
    SAVE_EVERY: Final = 120  # seconds

    def __init__(
        self,
        name: str,
        folder: Path,
        modules: Mapping[str, nn.Module],
        *,
        steps: int,
        rate: float,
        samples: int,
        decay: float = 0.01,
        seed: int = 0,
    ) -> None:
        self._name, self._folder, self._steps, self._rate = name, folder / name, steps, rate
        self._samples, self._seed = samples, seed
        self._modules = dict(modules)
        self._live = {
            f"{name}.{key}": parameter
            for name, module in self._modules.items()
            for key, parameter in module.named_parameters()
            if parameter.requires_grad
        }
        self._average = {key: parameter.detach().clone() for key, parameter in self._live.items()}
        self._optimizer = torch.optim.AdamW(
            self._live.values(), lr=rate, betas=(0.9, 0.99), weight_decay=decay, foreach=True
        )
        self._step, self._seconds = 0, 0.0
        self._folder.mkdir(parents=True, exist_ok=True)
        if (self._folder / "last.pt").exists():
            self._restore(self._folder / "last.pt")

    @property
    def finished(self) -> bool:
        """Whether no step is left."""
        return self._step >= self._steps

    def run(self, step: Step) -> None:
        """Trains up to the last step, from the last checkpoint on. Safe to interrupt."""
        if self.finished:
            return
        console = Console()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("loss {task.fields[loss]:.4f}"),
        )
        recent: dict[str, float] = {}
        saved = time.monotonic()
        try:
            with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
                bar = progress.add_task(self._name, total=self._steps, completed=self._step, loss=0.0)
                while not self.finished:
                    self._wait_while_paused()
                    if self._step == self._cooling and self._cooling > 0:
                        self._save("trunk.pt")
                    began = time.monotonic()
                    for key, value in self._advance(step).items():
                        recent[key] = value if key not in recent else recent[key] * 0.97 + value * 0.03
                    self._seconds += time.monotonic() - began
                    progress.update(bar, completed=self._step, loss=recent["loss"])
                    if self._step % 50 == 0 or self.finished:
                        self._record(recent)
                        if not console.is_terminal:
                            console.print(self._line(recent), soft_wrap=True, highlight=False)
                    if time.monotonic() - saved > self.SAVE_EVERY:
                        self._save("last.pt")
                        saved = time.monotonic()
        finally:
            self._save("last.pt")

    def average(self) -> None:
        """Puts the averaged weights into the modules. Call it after `run`, before saving them."""
        with torch.no_grad():
            for key, parameter in self._live.items():
                parameter.copy_(self._average[key])
        for module in self._modules.values():
            module.eval()

    @property
    def _cooling(self) -> int:
        return int(self._steps * (1 - self.COOL_DOWN))

    def _advance(self, step: Step) -> dict[str, float]:
        rate = self._rate * min(1, (self._step + 1) / self.WARM_UP)
        if self._step >= self._cooling:
            rate *= 1 - (self._step - self._cooling) / (self._steps - self._cooling)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        loss, numbers = step(self._step, StepRandom.of(self._seed, self._step))
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._live.values(), 1.0)
        self._optimizer.step()
        self._step += 1
        weight = 1 - (1 - 1 / (self._step + 1)) ** (self.AVERAGE + 1)
        torch._foreach_lerp_(
            list(self._average.values()), [parameter.detach() for parameter in self._live.values()], weight
        )
        return {"loss": loss.item(), **numbers}

    def _wait_while_paused(self) -> None:
        while Path(PAUSE).exists():
            time.sleep(2)

    def _line(self, recent: Mapping[str, float]) -> str:
        numbers = " ".join(f"{key} {value:.4f}" for key, value in recent.items())
        speed = self._step * self._samples / max(self._seconds, 1e-9)
        return f"{self._name} {self._step}/{self._steps} {self._seconds:.0f}s {speed:.1f}/s {numbers}"

    def _record(self, recent: Mapping[str, float]) -> None:
        path = self._folder / "metrics.csv"
        new = not path.exists()
        with path.open("a", newline="") as file:
            rows = csv.writer(file)
            if new:
                rows.writerow(["step", "seconds", "samples", *recent])
            rows.writerow([self._step, f"{self._seconds:.1f}", self._step * self._samples,
                           *(f"{value:.6f}" for value in recent.values())])  # fmt: skip
        if self._step % 500 == 0 or self.finished:
            chart.draw(path, self._folder / "metrics.png")

    def _save(self, name: str) -> None:
        state = {
            "step": self._step,
            "seconds": self._seconds,
            "optimizer": self._optimizer.state_dict(),
            "modules": {name: module.state_dict() for name, module in self._modules.items()},
            "average": self._average,
        }
        # Renaming is atomic: a crash while writing leaves the older checkpoint whole.
        torch.save(state, self._folder / f"{name}.new")
        (self._folder / f"{name}.new").rename(self._folder / name)

    def _restore(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        self._step, self._seconds = state["step"], state["seconds"]
        self._optimizer.load_state_dict(state["optimizer"])
        for name, module in self._modules.items():
            module.load_state_dict(state["modules"][name])
        self._average = state["average"]
