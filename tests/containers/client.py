"""The farm's HTTP API, by the standard library: submissions under load, and what became of them."""

from __future__ import annotations

import hashlib
import http.client
import json
import ssl
import struct
import threading
import time
import urllib.request
import zlib
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self
from urllib.parse import urlsplit

TERMINAL: Final = frozenset({"succeeded", "failed", "canceled"})
RETRIED: Final = frozenset({429, 502, 503, 504})  #: answers that tell a client to send the request again
#: Small, so that a processor renders several of them in a second.
JOB: Final[Mapping[str, Any]] = {
    "task": "text-to-image", "model": "starter", "prompt": "a red ball on a blue background",
    "width": 64, "height": 64, "num_inference_steps": 4,
}  # fmt: skip


class ApiFailed(Exception):
    """An answer that is an error."""


@dataclass(frozen=True)
class Answer:
    """An HTTP answer."""

    status: int
    body: Any


@dataclass(frozen=True)
class Client:
    """A farm's address and key."""

    url: str
    key: str = ""
    seconds: float = 120  #: for an answer
    ca_file: str | None = None

    def ask(self, method: str, path: str, body: object = None, name: str | None = None) -> Answer:
        """One request on a connection of its own, sent once. Raises OSError or HTTPException where no answer comes.

        Args:
            method: of HTTP.
            path: with its query.
            body: sent as JSON.
            name: the ``Idempotency-Key``.
        """
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        connection: http.client.HTTPConnection
        if parts.scheme == "https":
            context = ssl.create_default_context(cafile=self.ca_file)
            connection = http.client.HTTPSConnection(parts.hostname, parts.port, timeout=self.seconds, context=context)
        else:
            connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=self.seconds)
        headers = {"Authorization": f"Bearer {self.key}", "Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if name is not None:
            headers["Idempotency-Key"] = name
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        try:
            return Answer(answer.status, json.loads(text) if text else None)
        except ValueError:
            return Answer(answer.status, text.decode("utf-8", "replace"))

    def get(self, path: str) -> Any:
        """The answer's JSON. Raises `ApiFailed`."""
        answer = self.ask("GET", path)
        if answer.status != 200:
            raise ApiFailed(f"GET {path}: {answer.status} {answer.body}")
        return answer.body

    def submit(self, name: str | None = None, **changes: object) -> str:
        """Submit a job and return its id. Raises `ApiFailed`."""
        answer = self.ask("POST", "/v1/jobs", {**JOB, **changes}, name)
        if answer.status not in (200, 201):
            raise ApiFailed(f"POST /v1/jobs: {answer.status} {answer.body}")
        return str(answer.body["id"])

    def wait(self, job_id: str, seconds: float = 300) -> dict[str, Any]:
        """The job when it has ended. Raises `ApiFailed` if it did not in that time, or did not succeed."""

        def ended() -> dict[str, Any] | None:
            found: dict[str, Any] = self.get(f"/v1/jobs/{job_id}")
            return found if found["state"] in TERMINAL else None

        job: dict[str, Any] = until(ended, seconds, f"the job {job_id} has ended")
        if job["state"] != "succeeded":
            raise ApiFailed(f"{job_id} {job['state']}: {job.get('error')}")
        return job

    def download(self, job: Mapping[str, Any]) -> list[bytes]:
        """The outputs of a job. Raises `ApiFailed` for one whose SHA-256 is not the recorded one."""
        found = []
        for index, output in enumerate(job["outputs"]):
            context = ssl.create_default_context(cafile=self.ca_file) if self.ca_file else None
            with urllib.request.urlopen(output["url"], timeout=60, context=context) as answer:
                data: bytes = answer.read()
            if hashlib.sha256(data).hexdigest() != output["sha256"]:
                raise ApiFailed(f"output {index} of {job['id']} is not what was recorded")
            found.append(data)
        return found


def until(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """Ask until the condition is truthy, and return its value. Raises `ApiFailed` after so many seconds."""
    deadline = time.monotonic() + seconds
    last: object = None
    while True:
        try:
            found = condition()
            if found:
                return found
        except (OSError, http.client.HTTPException, ApiFailed) as error:
            last = error
        if time.monotonic() > deadline:
            raise ApiFailed(f"not within {seconds:.0f} s: {what}" + (f" ({last})" if last else ""))
        time.sleep(0.25)


def png(width: int = 64, height: int = 64, colour: tuple[int, int, int] = (200, 60, 40)) -> str:
    """An image of one colour with a white square in it, as a data URL."""
    rows = bytearray()
    for y in range(height):
        rows.append(0)
        for x in range(width):
            inside = width // 4 <= x < 3 * width // 4 and height // 4 <= y < 3 * height // 4
            rows += bytes((255, 255, 255) if inside else colour)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    data += chunk(b"IDAT", zlib.compress(bytes(rows))) + chunk(b"IEND", b"")
    return "data:image/png;base64," + b64encode(data).decode()


@dataclass
class Load:
    """Submits jobs at a steady rate while something happens to the farm. Use it as a context."""

    client: Client
    every: float = 0.5  #: seconds between two submissions
    #: whether a refused submission is sent again with its name, as every client does; its wait then counts
    insists: bool = False
    jobs: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    slowest: float = 0.0  #: seconds until a job was accepted

    def __post_init__(self) -> None:
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)
        self._number = 0

    @property
    def sent(self) -> int:
        """Submissions so far."""
        return self._number

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._thread.join(300)
        if self._thread.is_alive():
            self.errors.append("the last submission had no answer within 300 s")

    def _run(self) -> None:
        stamp = time.time_ns()
        due = time.monotonic()
        while not self._closing.wait(max(0.0, due - time.monotonic())):
            due = max(due + self.every, time.monotonic() - 5 * self.every)
            self._number += 1
            self._submit(f"load {stamp} {self._number}")

    def _submit(self, name: str) -> None:
        began = time.monotonic()
        while True:
            try:
                answer = self.client.ask("POST", "/v1/jobs", {**JOB, "seed": self._number}, name)
            except (OSError, http.client.HTTPException) as error:
                said = f"{type(error).__name__}: {error}"
            else:
                if answer.status in (200, 201):
                    self.jobs.append(answer.body["id"])
                    self.slowest = max(self.slowest, time.monotonic() - began)
                    return
                said = f"{answer.status} {answer.body}"
                if answer.status not in RETRIED:
                    self.errors.append(said)
                    return
            if not self.insists or time.monotonic() - began > 240:
                self.errors.append(said)
                return
            time.sleep(0.5)
