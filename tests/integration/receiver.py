"""A webhook receiver on loopback that does what a test tells it, and keeps what it got."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Received:
    """One POST."""

    path: str
    headers: dict[str, str]  #: names in lower case
    body: bytes
    at: float  #: `time.monotonic`, seconds

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def event(self) -> dict[str, Any]:
        return dict(json.loads(self.body))


#: Answers the handler's request; the number of POSTs that came to that path before is given.
Behaviour = Callable[[BaseHTTPRequestHandler, int], None]


def answer(status: int, body: bytes = b"ok", **headers: str) -> Behaviour:
    def act(handler: BaseHTTPRequestHandler, _: int) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return act


def in_turn(*behaviours: Behaviour) -> Behaviour:
    """The n-th behaviour for the n-th POST; the last one from there on."""

    def act(handler: BaseHTTPRequestHandler, before: int) -> None:
        behaviours[min(before, len(behaviours) - 1)](handler, before)

    return act


def reset(handler: BaseHTTPRequestHandler, _: int) -> None:
    """End the connection as a crashed process does."""
    handler.close_connection = True
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()


def hang(until: threading.Event) -> Behaviour:
    def act(handler: BaseHTTPRequestHandler, _: int) -> None:
        until.wait(60)
        handler.close_connection = True

    return act


def stream(status: int, part: bytes, pause: float) -> Behaviour:
    """A body without an end: ``part`` again and again, every ``pause`` seconds."""

    def act(handler: BaseHTTPRequestHandler, _: int) -> None:
        handler.close_connection = True
        handler.send_response(status)
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(part)
                handler.wfile.flush()
                if pause:
                    time.sleep(pause)
        except OSError:
            return

    return act


class Receiver:
    """The receiver: paths without a behaviour answer 200."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.received: list[Received] = []
        self.behaviours: dict[str, Behaviour] = {}

    def url(self, path: str = "/hook") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def at(self, path: str) -> list[Received]:
        return [one for one in self.received if one.path == path]

    def about(self, path: str, job_id: str) -> list[Received]:
        return [one for one in self.at(path) if one.event["data"]["id"] == job_id]


@contextmanager
def receiver() -> Iterator[Receiver]:
    lock = threading.Lock()
    counts: Counter[str] = Counter()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            body = self.rfile.read(length)
            if len(body) < length:
                return  # the sender died in the middle: nothing arrived
            headers = {name.lower(): value for name, value in self.headers.items()}
            with lock:
                before = counts[self.path]
                counts[self.path] += 1
                made.received.append(Received(self.path, headers, body, time.monotonic()))
            made.behaviours.get(self.path, answer(200))(self, before)

        do_GET = do_POST  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 256

        def handle_error(self, *_: object) -> None:  # a client that hangs up is part of the tests
            pass

    server = Server(("127.0.0.1", 0), Handler)
    made = Receiver(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
