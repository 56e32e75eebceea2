"""The receiver behind ``farm webhooks listen``: on loopback, registered at the farm for as long as it runs."""

from __future__ import annotations

import json
import signal
import sys
import threading
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from farm.cli.screen import say
from farm.errors import BadInput, FarmError
from farm.webhooks import signature

if TYPE_CHECKING:
    from collections.abc import Sequence

    from farm.api_types import EventType
    from farm.client import Farm

DESCRIPTION: Final = "farm webhooks listen"
MAX_BODY: Final = 2**20  #: bytes; a webhook has fewer than 20,000
FORWARD_SECONDS: Final = 15.0  #: less than the farm waits


def listen(farm: Farm, port: int, events: Sequence[EventType], forward: str | None, *, as_json: bool) -> None:
    """Print each event that arrives, until SIGINT or SIGTERM. Raises `BadInput` when the port is taken."""
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), _Handler)
    except OSError as error:
        raise BadInput.of("port", port, f"port {port} cannot be used: {error.strerror}") from error
    server.daemon_threads = True
    address = f"http://127.0.0.1:{server.server_port}/"
    _forget_earlier(farm, address)
    made = farm.add_endpoint(address, events=events, description=DESCRIPTION)
    assert made.secret is not None
    _Handler.secret, _Handler.forward, _Handler.as_json = made.secret, forward, as_json
    ended = threading.Event()

    def end(_: int, __: FrameType | None) -> None:
        ended.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    serving.start()
    try:
        say(f"{made.id} gets {', '.join(made.events)} at {address}; Ctrl-C ends it", file=sys.stderr, flush=True)
        say(f"signed with {made.secret}", file=sys.stderr, flush=True)
        ended.wait()
    finally:
        try:
            farm.remove_endpoint(made.id)
        except FarmError as error:
            say(f"farm: {made.id} is still registered: {error}", file=sys.stderr)
        server.shutdown()
        server.server_close()


def _forget_earlier(farm: Farm, address: str) -> None:
    """Remove what an earlier listener left that was killed: the port is ours, so nobody else listens there."""
    for one in list(farm.endpoints(one_off=False)):
        if one.url == address and one.description == DESCRIPTION:
            farm.remove_endpoint(one.id)


class _Handler(BaseHTTPRequestHandler):
    """Prints one request and answers it."""

    protocol_version = "HTTP/1.1"
    secret: str
    forward: str | None
    as_json: bool
    printing = threading.Lock()

    def do_POST(self) -> None:
        """One webhook."""
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MAX_BODY:
            self.close_connection = True
            self.send_error(413)
            return
        body = self.rfile.read(int(length))
        headers = {name.lower(): value for name, value in self.headers.items()}
        refusal: str | None = None
        try:
            signature.verify(self.secret, headers, body)
        except BadInput as error:
            refusal = str(error)
        status, answer = (401, b"") if refusal else (204, b"")
        if refusal is None and self.forward is not None:
            status, answer = _forwarded(self.forward, headers, body)
        with self.printing:
            say(_line(headers, body, refusal, status, as_json=self.as_json), flush=True)
        self.send_response(status)
        if status != 204:
            self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Nothing: each event has its line."""


def _forwarded(url: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
    """What the developer's own handler answers."""
    import httpx2

    passed = {name: value for name, value in headers.items() if name.startswith("webhook-")}
    try:
        answer = httpx2.post(
            url,
            content=body,
            headers=passed | {"Content-Type": "application/json"},
            timeout=FORWARD_SECONDS,
            trust_env=False,
        )
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        return 502, f"{url} does not answer: {error}".encode()
    return (answer.status_code, b"" if answer.status_code == 204 else answer.content[:2_000])


def _line(headers: dict[str, str], body: bytes, refusal: str | None, status: int, *, as_json: bool) -> str:
    try:
        event: Any = json.loads(body)
    except ValueError:
        event = None
    given: dict[str, Any] = event if isinstance(event, dict) else {}
    message_id = headers.get(signature.ID, "")
    if as_json:
        record = {"id": message_id, "verified": refusal is None, "problem": refusal, "status": status, "event": event}
        return json.dumps(record, ensure_ascii=False)
    data = given.get("data")
    about: dict[str, Any] = data if isinstance(data, dict) else {}
    parts = [datetime.now().astimezone().strftime("%H:%M:%S"), str(given.get("type", "no event")).ljust(17)]
    parts += [str(about[name]) for name in ("id", "state") if about.get(name)]
    if isinstance(progress := about.get("progress"), dict):
        parts.append(f"step {progress.get('step')} of {progress.get('steps')}")
    if isinstance(error := about.get("error"), dict):
        parts.append(str(error.get("code")))
    parts += [f"verified, {message_id}" if refusal is None else f"NOT VERIFIED: {refusal}"]
    if status >= 300:
        parts.append(f"answered {status}")
    return "  ".join(parts)
