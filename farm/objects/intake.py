"""Input files: from an upload, data URL or URL to validated bytes in the storage.

A file comes as an upload, as a ``data:`` URL in the request, or as a URL to fetch. All three end in
:func:`farm.objects.inspection.inspect`, and under a key made of the content's SHA-256: the same file is stored once.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import ssl
from typing import Final
from urllib.parse import unquote_to_bytes

import httpx2

from farm.domain.job_spec import InputFile
from farm.domain.media import FORMATS
from farm.egress import guard
from farm.errors import FieldProblem, InputRefused
from farm.objects import keys
from farm.objects.inspection import inspect
from farm.objects.storage import Storage
from farm.settings import Settings

FETCH_SECONDS: Final = 20.0  #: for a whole input URL: resolving, connecting and reading to the end
_ACCEPT: Final = ", ".join(dict.fromkeys(one.media_type for one in FORMATS if one.is_input))


class Intake:
    """Accepts input files. Thread-safe; every method blocks."""

    def __init__(
        self,
        storage: Storage,
        settings: Settings,
        *,
        resolver: guard.Resolver | None = None,
        verify: ssl.SSLContext | None = None,
        fetch_seconds: float = FETCH_SECONDS,
    ) -> None:
        """``resolver`` and ``verify`` replace the system's name resolution and certificate authorities."""
        self._storage = storage
        self._settings = settings
        self._resolver = resolver
        self._verify = verify
        self._fetch_seconds = fetch_seconds

    def from_bytes(
        self, tenant_id: str, data: bytes, filename: str | None = None, *, field: str = "image"
    ) -> InputFile:
        """Take in an encoded file; ``filename`` only makes a refusal easier to read.

        Raises:
            InputRefused: it is not a file that may be used.
            StorageUnavailable: it could not be stored.
        """
        try:
            info = inspect(data, self._settings, field=field)
        except InputRefused as refused:
            if filename is None:
                raise
            raise InputRefused(
                *(FieldProblem(p.field, p.value, f"{filename[:100]!r}: {p.message}") for p in refused.problems)
            ) from refused
        key = keys.input_key(tenant_id, info.sha256, keys.extension(info.media_type))
        # Written even if there is such an object: its bytes may be damaged, and comparing them costs more.
        self._storage.put(key, data[: info.size], info.media_type)
        return InputFile(
            sha256=info.sha256, key=key, media_type=info.media_type, size=info.size, metadata=info.metadata
        )

    def from_data_url(self, tenant_id: str, url: str, *, field: str = "image") -> InputFile:
        """Take in a file written as ``data:image/png;base64,…`` (RFC 2397, base64 only).

        The declared type is not looked at; the content decides.

        Raises:
            InputRefused: it is not such a URL, or not of a file that may be used.
            StorageUnavailable: it could not be stored.
        """
        return self.from_bytes(tenant_id, self._decoded(url, field), field=field)

    def from_url(self, tenant_id: str, url: str, *, field: str = "image") -> InputFile:
        """Fetch a file and take it in. Not to be called on an event loop's thread.

        Raises:
            TargetRefused: the URL is not one that the farm connects to.
            InputRefused: it could not be fetched in time and size, or is not a file that may be used.
            StorageUnavailable: it could not be stored.
        """
        target = guard.parse(url, self._settings, field=field)
        # An event loop of its own for this one fetch: only a cancelled task ends a server that drips its headers,
        # which no per-read timeout does.
        return self.from_bytes(tenant_id, asyncio.run(self._fetched(target, field)), field=field)

    def _decoded(self, url: str, field: str) -> bytes:
        head, comma, data = url.partition(",")
        shown = url[:60]
        if not comma or not head[:5].lower() == "data:" or len(head) > 200:
            raise _refused(field, shown, "a data URL has the form data:image/png;base64,…")
        if head[5:].lower().split(";")[-1].strip() != "base64":
            raise _refused(field, shown, "only base64 data URLs are taken: data:image/png;base64,…")
        # Refused by its length before anything is decoded; an escape makes three characters of one.
        limit = self._settings.max_input_bytes
        longest = 4 * (limit // 3 + 1)
        if len(data) > (3 * longest if "%" in data else longest):
            raise _too_large(field, limit)
        try:
            return decode_base64(unquote_to_bytes(data) if "%" in data else data.encode("ascii"))
        except (binascii.Error, UnicodeEncodeError) as error:
            raise _refused(field, shown, f"the data URL is not valid base64 ({error})") from error

    async def _fetched(self, target: guard.Target, field: str) -> bytes:
        try:
            async with (
                asyncio.timeout(self._fetch_seconds),
                guard.async_client(
                    self._settings,
                    timeout=self._fetch_seconds,
                    resolver=self._resolver,
                    verify=self._verify,
                    max_connections=1,
                ) as client,
                client.stream("GET", target.url, headers={"Accept": _ACCEPT}) as answer,
            ):
                return await self._body(target, answer, field)
        except guard.TargetRefused as refused:  # the guard below the client does not know the field
            raise guard.TargetRefused(*(FieldProblem(field, p.value, p.message) for p in refused.problems)) from refused
        except (TimeoutError, httpx2.TimeoutException) as error:
            raise _refused(
                field, target.url, f"{target.host} did not send the file within {self._fetch_seconds:g} seconds"
            ) from error
        except httpx2.HTTPError as error:
            raise _refused(field, target.url, f"the file could not be fetched: {error}") from error

    async def _body(self, target: guard.Target, answer: httpx2.Response, field: str) -> bytes:
        if answer.is_redirect:
            raise _refused(
                field, target.url, f"{target.host} answered with a redirect, which is not followed; give the final URL"
            )
        if answer.status_code != 200:
            raise _refused(
                field, target.url, f"{target.host} answered {answer.status_code}; the URL must be readable by anyone"
            )
        if answer.headers.get("content-encoding", "identity").lower() != "identity":
            # None was offered. Unpacking it would let a small answer become a large one.
            raise _refused(field, target.url, f"{target.host} sent the file in a compressed form")
        limit = self._settings.max_input_bytes
        declared = answer.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > limit:
            raise _too_large(field, limit)
        parts: list[bytes] = []
        size = 0
        async for part in answer.aiter_raw():
            size += len(part)
            if size > limit:
                raise _too_large(field, limit)
            parts.append(part)
        return b"".join(parts)


def decode_base64(text: bytes) -> bytes:
    """What base64 stands for: with line ends as in mail (RFC 2045), and without padding, as in URLs.

    Raises:
        binascii.Error: it is something else.
    """
    text = text.translate(None, b" \t\r\n")
    return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)


def _too_large(field: str, limit: int) -> InputRefused:
    return _refused(field, f"more than {limit} bytes", f"the file is too large; at most {limit:,} bytes are allowed")


def _refused(field: str, value: str, message: str) -> InputRefused:
    return InputRefused(FieldProblem(field, value[:200], message))
