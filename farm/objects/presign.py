"""Presigned URLs (AWS signature version 4, in the query), made without a request.

A signature's key is good for a day and takes four hashes; the SDK makes it anew for each URL and spends most of its
time on other things. A list of a thousand images is a thousand URLs, so here the key is kept, and a URL costs two
hashes.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final, NamedTuple
from urllib.parse import quote, urlsplit

_ALGORITHM: Final = "AWS4-HMAC-SHA256"
_PLAIN: Final = re.compile(r"[A-Za-z0-9_./~-]+")  #: a key that is its own quotation, as all of ours are


class Credentials(NamedTuple):
    """What signs."""

    access_key: str
    secret_key: str
    token: str | None


class _Dated(NamedTuple):
    stamp: str
    scope: str
    query: str


class Presigner:
    """Signs GETs and PUTs of one bucket's objects. Safe to share between threads.

    ``credentials`` is asked for each URL: where they come from a role, they change every few hours.
    """

    def __init__(
        self,
        endpoint_url: str,
        bucket: str,
        region: str,
        credentials: Callable[[], Credentials],
        *,
        virtual: bool = False,
    ) -> None:
        """With ``virtual`` the bucket stands in the host's name."""
        parts = urlsplit(endpoint_url)
        # clients leave the scheme's own port out of the Host header, which is signed
        host = parts.netloc.rpartition("@")[2].removesuffix({"http": ":80", "https": ":443"}.get(parts.scheme, ":-"))
        self._host = f"{bucket}.{host}" if virtual else host
        self._origin = f"{parts.scheme}://{self._host}"
        self._path = f"{parts.path.rstrip('/')}/" + ("" if virtual else f"{quote(bucket, safe='')}/")
        self._region = region
        self._credentials = credentials
        self._key: tuple[str, str, bytes] = ("", "", b"")
        self._dated: tuple[tuple[int, int, Credentials] | None, _Dated] = (None, _Dated("", "", ""))

    def get(self, key: str, seconds: int, disposition: str | None = None, *, now: datetime | None = None) -> str:
        """A URL that lets anyone read the object for ``seconds``; ``disposition`` is the header that it comes with."""
        credentials = self._credentials()
        stamp, scope, query = self._for_a_second(int((now or datetime.now(UTC)).timestamp()), seconds, credentials)
        secret_key = credentials.secret_key
        if disposition is not None:
            query += f"&response-content-disposition={quote(disposition, safe='')}"
        path = self._path + (key if _PLAIN.fullmatch(key) else quote(key, safe="/~"))
        request = f"GET\n{path}\n{query}\nhost:{self._host}\n\nhost\nUNSIGNED-PAYLOAD"
        text = f"{_ALGORITHM}\n{stamp}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
        signature = hmac.digest(self._signing_key(stamp[:8], secret_key), text.encode(), "sha256").hex()
        return f"{self._origin}{path}?{query}&X-Amz-Signature={signature}"

    def put(self, key: str, seconds: int, headers: Mapping[str, str], *, now: datetime | None = None) -> str:
        """A URL that lets anyone write the object for ``seconds``, with exactly these headers (lower case)."""
        credentials = self._credentials()
        moment = int((now or datetime.now(UTC)).timestamp())
        stamp, scope, query = self._for_a_second(moment, seconds, credentials)
        signed = sorted({**headers, "host": self._host}.items())
        names = ";".join(name for name, _ in signed)
        query = query.removesuffix("host") + quote(names, safe="")
        path = self._path + (key if _PLAIN.fullmatch(key) else quote(key, safe="/~"))
        lines = "".join(f"{name}:{value}\n" for name, value in signed)
        request = f"PUT\n{path}\n{query}\n{lines}\n{names}\nUNSIGNED-PAYLOAD"
        text = f"{_ALGORITHM}\n{stamp}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
        signature = hmac.digest(self._signing_key(stamp[:8], credentials.secret_key), text.encode(), "sha256").hex()
        return f"{self._origin}{path}?{query}&X-Amz-Signature={signature}"

    def _for_a_second(self, moment: int, seconds: int, credentials: Credentials) -> _Dated:
        """What all URLs made in one second have in common; the last one is kept."""
        asked = (moment, seconds, credentials)
        known, dated = self._dated
        if known == asked:
            return dated
        stamp = datetime.fromtimestamp(moment, UTC).strftime("%Y%m%dT%H%M%SZ")
        scope = f"{stamp[:8]}/{self._region}/s3/aws4_request"
        # in the order of their names, as they are signed
        query = (
            f"X-Amz-Algorithm={_ALGORITHM}&X-Amz-Credential={quote(f'{credentials.access_key}/{scope}', safe='')}"
            f"&X-Amz-Date={stamp}&X-Amz-Expires={seconds}"
        )
        if credentials.token is not None:
            query += f"&X-Amz-Security-Token={quote(credentials.token, safe='')}"
        dated = _Dated(stamp, scope, query + "&X-Amz-SignedHeaders=host")
        self._dated = (asked, dated)
        return dated

    def _signing_key(self, day: str, secret_key: str) -> bytes:
        known_day, known_secret, key = self._key
        if (known_day, known_secret) != (day, secret_key):
            key = f"AWS4{secret_key}".encode()
            for part in (day, self._region, "s3", "aws4_request"):
                key = hmac.digest(key, part.encode(), "sha256")
            self._key = (day, secret_key, key)
        return key
