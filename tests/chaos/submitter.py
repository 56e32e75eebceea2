"""Who uses the farm while it is being broken: jobs, batches and cancels of three tenants, through the API alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from random import Random

import httpx2

from farm.client import Farm
from farm.client.errors import FarmClientError
from tests.chaos.farm import CAPS, POISON, uuid_of


class Submitter(threading.Thread):
    """Submits until stopped, at most ``ahead`` jobs more than have finished; ``poison`` of them crash their workers."""

    def __init__(self, url: str, keys: dict[str, str], chance: Random, ahead: int, poison: float) -> None:
        super().__init__(name="submitter", daemon=True)
        self._url = url
        self._keys = keys
        self._chance = chance
        self._ahead = ahead
        self._poison = poison
        self._closing = threading.Event()
        self.accepted: set[str] = set()  #: UUIDs of the jobs in 2xx responses
        self.asked = 0
        self.refused = 0  #: calls that came to nothing
        self.open = 0  #: jobs that have not finished, as the driver counts them

    def close(self) -> None:
        self._closing.set()
        if self.is_alive():
            self.join(60)

    def run(self) -> None:
        # one try and little grace_seconds, so that a farm that is down is asked again and again
        farms = {name: Farm(self._url, self._keys[name], retries=1, timeout=8.0) for name in CAPS}
        mine: dict[str, list[str]] = {name: [] for name in CAPS}
        while not self._closing.wait(0.03 if self.open < self._ahead else 0.3):
            name = self._chance.choice(list(CAPS))
            try:
                self._act(farms[name], mine[name])
            except (FarmClientError, httpx2.HTTPError):
                self.refused += 1
        for farm in farms.values():
            farm.close()

    def _act(self, farm: Farm, mine: list[str]) -> None:
        chance = self._chance
        roll = chance.random()
        if roll < 0.12 and mine:
            farm.cancel(chance.choice(mine[-20:]))
        elif self.open >= self._ahead:
            return
        elif roll < 0.22:
            self.asked += 1
            batch = farm.submit_batch([self._job() for _ in range(chance.randint(2, 12))], name="chaos")
            if chance.random() < 0.2:
                farm.cancel_batch(batch.id)
        elif roll < 0.28:
            self.asked += 1
            farm.submit_batch([job for number in range(chance.randint(1, 4)) for job in self._chain(number)])
        else:
            self.asked += 1
            body = self._job(poison=chance.random() < self._poison)
            if mine and chance.random() < 0.15:  # refused if that job has failed
                body = self._edit(body, chance.choice(mine[-10:]))
            job = farm.submit_body(body)
            mine.append(job.id)
            self.accepted.add(uuid_of(job.id))

    def _chain(self, number: int) -> Iterator[dict[str, object]]:
        """Jobs of which each but the last has an output of the next as an input."""
        length = self._chance.randint(2, 3)
        for level in reversed(range(length)):
            job = self._job() | {"custom_id": f"{number}-{level}"}
            yield self._edit(job, {"from": f"{number}-{level - 1}"}) if level else job

    def _edit(self, job: dict[str, object], image: object) -> dict[str, object]:
        return job | {"task": "image-to-image", "image": image, "strength": 0.9}

    def _job(self, *, poison: bool = False) -> dict[str, object]:
        chance = self._chance
        return {
            "task": "text-to-image",
            "model": "starter",
            "prompt": f"a red ball {chance.randrange(10**6)}" + (f" with {POISON}" if poison else ""),
            "num_inference_steps": chance.choice((2, 3, 4, 30)),
            "num_outputs": chance.choice((1, 1, 2)),
            "width": 64,
            "height": 64,
            "seed": chance.randrange(10**6),
        }
