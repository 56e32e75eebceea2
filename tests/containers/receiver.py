"""A receiver of webhooks in a container: ``POST /`` is kept, ``GET /`` gives the ids that came."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

came: list[str] = []


class Receiver(BaseHTTPRequestHandler):
    """Answers 204 to each webhook."""

    def do_POST(self) -> None:
        """Keep what came."""
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        came.append(self.headers.get("webhook-id", ""))
        self.send_response(204)
        self.end_headers()

    def do_GET(self) -> None:
        """What came so far."""
        body = json.dumps(came).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    ThreadingHTTPServer(("0.0.0.0", 8080), Receiver).serve_forever()
