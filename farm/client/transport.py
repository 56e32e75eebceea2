"""What both clients know of HTTP: where the farm is, how a call becomes a request, and when it is sent again."""

from __future__ import annotations

import ipaddress
import json
import os
import time
from typing import Any, Final
from urllib.parse import urlsplit

import httpx2

from farm import authorities
from farm.client import requests
from farm.client.errors import ApiError, Unreachable
from farm.client.protocol import Call, Fetched, Open
from farm.errors import BadInput

_CONNECT_SECONDS: Final = 10.0


class Transport:
    """A farm's address and key, and the rules of repeating."""

    def __init__(self, url: str | None, api_key: str | None, retries: int, timeout: float) -> None:
        found = url or os.environ.get("FARM_URL")
        if not found:
            raise BadInput.of("url", None, "is missing: give it, or set FARM_URL")
        key = api_key or os.environ.get("FARM_API_KEY")
        if not key:
            raise BadInput.of("api_key", None, "is missing: give it, or set FARM_API_KEY")
        if urlsplit(found).scheme not in ("http", "https") or not urlsplit(found).hostname:
            raise BadInput.of("url", found, f"{found!r} is not an http or https URL")
        if not key.isascii() or not key.isprintable():
            raise BadInput.of("api_key", None, "has characters that API keys do not have")
        self.url = found.rstrip("/")
        self.retries = retries
        # A proxy of the surroundings does not know what is on this machine's loopback.
        trust_env = not _is_loopback(found)
        #: for an httpx client
        self.options: dict[str, Any] = {
            "timeout": httpx2.Timeout(timeout, connect=_CONNECT_SECONDS),
            "trust_env": trust_env,
            "verify": authorities.context_of_environment(trust_env=trust_env) or True,
            "headers": {"User-Agent": "farm-client"},
        }
        self._headers = {"Authorization": f"Bearer {key}"}

    def request(self, call: Call[Any]) -> dict[str, Any]:
        """The arguments of ``build_request``, but for the body of a call that streams one."""
        if call.foreign:
            return {"method": call.method, "url": call.path, "headers": dict(call.headers)}
        more: dict[str, Any] = {}
        if call.timeout is not None:
            more["timeout"] = httpx2.Timeout(call.timeout, connect=_CONNECT_SECONDS)
        return more | {
            "method": call.method,
            "url": self.url + call.path,
            "json": call.json,
            "params": call.params or None,
            "headers": {**self._headers, **call.headers},
            "files": None if call.file is None else {"file": call.file},
        }

    def stream(self, opened: Open) -> dict[str, Any]:
        """The same for an answer that is streamed."""
        made = self.request(opened.call)
        if opened.silence is not None:
            made["timeout"] = httpx2.Timeout(_CONNECT_SECONDS, read=opened.silence)
        return made

    def meaning(self, call: Call[Any], response: httpx2.Response) -> Any:
        """What an answer means. Raises `ApiError`, or `Unreachable` if it is no farm's."""
        if call.foreign:
            return call.read(Fetched(response.status_code, response.content))
        if not response.is_success and response.status_code not in call.answers:
            raise ApiError.of(response.status_code, response.content)
        try:
            body = response.json()
        except ValueError as error:
            raise Unreachable(f"{self.url} answers, but is not a farm: set FARM_URL to a farm's API") from error
        return call.read(body)

    def after_answer(self, call: Call[Any], attempt: int, response: httpx2.Response) -> float | None:
        """Seconds until the call is sent again after this answer; None: the answer counts.

        A call that is not repeatable is sent again only when it did certainly nothing: the connection was refused, or
        the farm refused to take it up.
        """
        if response.status_code in call.answers:
            return None
        refused = response.status_code in (429, 503)
        if attempt >= self.retries or response.status_code not in requests.RETRIED or not (call.repeatable or refused):
            return None
        return requests.delay(attempt, response.headers.get("Retry-After"), time.time())

    def after_error(self, call: Call[Any], attempt: int, error: Exception) -> float:
        """The same when no answer came. Raises `Unreachable` where sending again is no use."""
        nothing_done = isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout)
        hopeless = isinstance(error, httpx2.UnsupportedProtocol | httpx2.InvalidURL)
        if attempt >= self.retries or hopeless or not (call.repeatable or nothing_done):
            if call.foreign:
                url = urlsplit(call.path)
                raise Unreachable(f"{url.scheme}://{url.netloc} does not answer: {reason(error)}") from error
            raise Unreachable(f"no farm answers at {self.url}: {reason(error)}") from error
        return requests.delay(attempt)

    def broken(self, error: Exception) -> Unreachable:
        """What a streamed answer that ends early means."""
        return Unreachable(f"the answer of {self.url} broke off: {reason(error)}")


#: What sending a request may end with instead of an answer.
NO_ANSWER: Final = (httpx2.TransportError, httpx2.InvalidURL)


def line(text: str) -> Any:
    """A line of JSON."""
    return json.loads(text)


def reason(error: Exception) -> str:
    """Why no answer came, for a person."""
    if isinstance(error, httpx2.TimeoutException):
        return "it did not answer in time"
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return f"{error}; name a private authority's certificate in FARM_CA_FILE"
    return str(error) or type(error).__name__


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
