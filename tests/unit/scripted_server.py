"""A real HTTP server that answers what a test has written down, and remembers what it was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Asked:
    """One request."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Answer:
    """One response. Without a status the connection is dropped; ``cut`` drops it after the body, without its end."""

    status: int | None = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False


DROP = Answer(None)
Script = Callable[[Asked, int], Answer]


class Scripted:
    """The running server."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.asked: list[Asked] = []


@contextmanager
def serving(script: Script) -> Iterator[Scripted]:
    """Answer with ``script(request, number of the request)`` while the block runs."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked = Asked(self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body)
            with lock:
                number = len(known.asked)
                known.asked.append(asked)
            answer = script(asked, number)
            if answer.status is None:
                self.close_connection = True
                return
            data = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
            self.send_response(answer.status)
            for name, value in {"Content-Type": "application/json", **answer.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data) + (1 if answer.cut else 0)))
            self.end_headers()
            self.wfile.write(data)
            if answer.cut:
                self.close_connection = True

        do_GET = do_POST = do_DELETE = _answer  # noqa: N815 - the library's names

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        known = Scripted(f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield known
        finally:
            server.shutdown()
            thread.join()


def job(state: str = "queued", **more: Any) -> dict[str, Any]:
    """A job as the API answers it."""
    return {
        "id": f"job_{1:032x}",
        "state": state,
        "task": "text-to-image",
        "model": "starter",
        "priority": "normal",
        "progress": None,
        "outputs": [],
        "error": None,
        "attempts": 0,
        "worker": None,
        "parameters": {},
        "custom_id": None,
        "metadata": {},
        "retry_of": None,
        "created_at": "2026-01-01T00:00:00Z",
        **more,
    }
