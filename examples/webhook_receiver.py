"""Receive webhooks and verify their signatures: python webhook_receiver.py 9000

FARM_WEBHOOK_SECRET is the secret that `farm webhooks add URL` prints.
"""

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from farm.client import SignatureRefused, verify_webhook

SECRET = os.environ["FARM_WEBHOOK_SECRET"]
seen: set[str] = set()  # in production: a table with a unique column


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        try:
            verify_webhook(SECRET, headers, body)
        except SignatureRefused as error:
            print(f"refused: {error}", flush=True)
            self.send_response(401)
            self.end_headers()
            return
        # A webhook may arrive more than once, always with the same id.
        if headers["webhook-id"] not in seen:
            seen.add(headers["webhook-id"])
            event = json.loads(body)
            print(f"{event['type']} {event['data'].get('id')}", flush=True)
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Receiver).serve_forever()
