"""HTTPS in front of an API on loopback, as a proxy does it: TLS ends here, and a header says so to the API."""

from __future__ import annotations

import http.client
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

#: A key and a self-signed certificate for 127.0.0.1, made for this test and trusted by nothing else.
PEM = Path(__file__).parent / "tls" / "loopback.pem"
_HOP = {"connection", "transfer-encoding", "keep-alive"}


@contextmanager
def https(url: str) -> Iterator[str]:
    """The address (host and port) at which the API of that URL is reached over HTTPS."""
    target = urlsplit(url).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            there = http.client.HTTPConnection(target, timeout=30)
            try:
                headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP}
                there.request(self.command, self.path, body, headers | {"X-Forwarded-Proto": "https"})
                answer = there.getresponse()
                content = answer.read()
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in _HOP | {"content-length"}:
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
            finally:
                there.close()

        do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(PEM)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
