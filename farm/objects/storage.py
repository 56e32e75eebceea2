"""The farm's one door to S3.

Speaks plain S3 (path style, signature v4), so AWS, SeaweedFS, MinIO, Ceph and R2 do equally. A PUT carries the SHA-256
of the body: the server checks it and refuses a body that was damaged on the way. What a GET returns is checked against
the stored checksum by the SDK.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Final, Self
from urllib.parse import quote, urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, FlexibleChecksumError, NoCredentialsError
from urllib3.exceptions import HTTPError

from farm import authorities
from farm.errors import NotFound, StorageUnavailable
from farm.objects.presign import Credentials, Presigner
from farm.server_errors import storage_unavailable
from farm.settings import Settings

if TYPE_CHECKING:
    from botocore.response import StreamingBody
    from mypy_boto3_s3 import S3Client

MAX_PUT_BYTES: Final = 5 * 2**30  #: S3's own limit for one PUT
_SHA256: Final = "farm-sha256"  #: metadata of objects on servers without checksums
_CHUNK: Final = 256 * 2**10
_MISSING: Final = frozenset({"404", "NoSuchKey", "NotFound"})


@dataclass(frozen=True, slots=True)
class StoredObject:
    """What the storage says about one object."""

    key: str
    bytes: int
    content_type: str
    sha256: str | None  #: hex; None where the object was not written with its SHA-256
    metadata: Mapping[str, str]
    modified: datetime | None  #: None straight after a PUT, which does not tell


@dataclass(frozen=True, slots=True)
class ListedObject:
    """One line of a listing."""

    key: str
    bytes: int
    modified: datetime


class OpenObject:
    """An object being read: iterate over its chunks, and leave the ``with`` block to give the connection back."""

    def __init__(self, about: StoredObject, body: StreamingBody, place: str = "") -> None:
        self.about = about
        self._body = body
        self._place = place

    def __iter__(self) -> Iterator[bytes]:
        """Chunks of at most 256 KiB.

        Raises:
            StorageUnavailable: the connection broke, or the content does not match its checksum.
        """
        with _translated("GET", self.about.key, self._place):
            yield from self._body.iter_chunks(_CHUNK)

    def close(self) -> None:
        """Give the connection back."""
        self._body.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Storage:
    """One bucket. Safe to share between threads; make one per process."""

    def __init__(self, settings: Settings) -> None:
        self.bucket = settings.s3_bucket
        self._region = settings.s3_region
        self._checksums = settings.s3_checksums
        self._place = _place(settings.s3_endpoint_url)
        # A session of its own, because boto3's default one is not safe to make clients from in several threads; one
        # for all three clients, because each new session reads the description of S3 again (150 ms).
        session = boto3.session.Session()
        self._client = _client(session, settings, settings.s3_endpoint_url)
        # One try and short times: a readiness probe must answer before its caller gives up.
        self._probe = _client(session, settings, settings.s3_endpoint_url, attempts=1, connect=1, read=3)
        # A presigned URL is a signature over the host, so it is made for the host that the client will ask.
        public = settings.s3_public_url
        self._signer = self._client if public is None else _client(session, settings, public)
        self._presigner = Presigner(
            self._signer.meta.endpoint_url,
            self.bucket,
            self._signer.meta.region_name,
            _credentials(session, settings),
            virtual=settings.s3_addressing == "virtual",
        )

    def of_bucket(self, bucket: str) -> Storage:
        """Another bucket of the same server, with the same credentials and connections; for reading."""
        other = copy.copy(self)
        other.bucket = bucket
        return other

    def put(
        self,
        key: str,
        body: bytes,
        content_type: str,
        metadata: Mapping[str, str] | None = None,
    ) -> StoredObject:
        """Write an object whole, or not at all. ``metadata`` is ASCII.

        Raises:
            StorageUnavailable: nothing was written.
        """
        digest = hashlib.sha256(body)
        return self._put(key, body, len(body), digest.digest(), content_type, metadata)

    def put_file(
        self,
        key: str,
        path: Path,
        content_type: str,
        metadata: Mapping[str, str] | None = None,
    ) -> StoredObject:
        """Write a file's content as an object, without holding it in memory; at most 5 GiB.

        Raises:
            OSError: the file cannot be read.
            StorageUnavailable: nothing was written.
        """
        with path.open("rb") as file:
            size = path.stat().st_size
            if size > MAX_PUT_BYTES:
                raise ValueError(f"{path.name} has {size} bytes; one object has at most {MAX_PUT_BYTES}")
            digest = hashlib.file_digest(file, "sha256")
            file.seek(0)
            return self._put(key, file, size, digest.digest(), content_type, metadata)

    def _put(
        self,
        key: str,
        body: bytes | IO[bytes],
        size: int,
        sha256: bytes,
        content_type: str,
        metadata: Mapping[str, str] | None,
    ) -> StoredObject:
        kept = dict(metadata or {})
        checksum: dict[str, str] = {}
        if self._checksums:
            checksum["ChecksumSHA256"] = base64.b64encode(sha256).decode()
        else:
            kept[_SHA256] = sha256.hex()
        with self._translated("PUT", key):
            self._client.put_object(
                Bucket=self.bucket,
                Key=key,
                Body=body,
                ContentLength=size,
                ContentType=content_type,
                Metadata=kept,
                **checksum,  # type: ignore[arg-type]
            )
        return StoredObject(key, size, content_type, sha256.hex(), kept, None)

    def get(self, key: str) -> bytes:
        """An object's content, checked against its stored checksum.

        Raises:
            NotFound: there is no such object.
            StorageUnavailable: the storage does not answer, or the content is damaged.
        """
        with self.open(key) as opened:
            return b"".join(opened)

    def open(self, key: str) -> OpenObject:
        """Begin to read an object; what is wrong with it shows here, before the first chunk.

        Raises:
            NotFound: there is no such object.
            StorageUnavailable: the storage does not answer.
        """
        with self._translated("GET", key):
            answer = self._client.get_object(Bucket=self.bucket, Key=key, ChecksumMode="ENABLED")
        about = StoredObject(
            key,
            answer["ContentLength"],
            answer.get("ContentType", "application/octet-stream"),
            _hex(answer.get("ChecksumSHA256")) or answer.get("Metadata", {}).get(_SHA256),
            answer.get("Metadata", {}),
            answer.get("LastModified"),
        )
        return OpenObject(about, answer["Body"], self._place)

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """A part of an object's content, which no checksum covers.

        Raises:
            NotFound: there is no such object.
            StorageUnavailable: the storage does not answer.
        """
        with self._translated("GET", key):
            answer = self._client.get_object(Bucket=self.bucket, Key=key, Range=f"bytes={start}-{start + length - 1}")
        about = StoredObject(key, answer["ContentLength"], "", None, {}, None)
        with OpenObject(about, answer["Body"], self._place) as opened:
            return b"".join(opened)

    def head(self, key: str) -> StoredObject:
        """What is known about an object, without its content.

        Raises:
            NotFound: there is no such object.
            StorageUnavailable: the storage does not answer.
        """
        with self._translated("HEAD", key):
            answer = self._client.head_object(Bucket=self.bucket, Key=key, ChecksumMode="ENABLED")
        return StoredObject(
            key,
            answer["ContentLength"],
            answer.get("ContentType", "application/octet-stream"),
            _hex(answer.get("ChecksumSHA256")) or answer.get("Metadata", {}).get(_SHA256),
            answer.get("Metadata", {}),
            answer.get("LastModified"),
        )

    def sha256(self, key: str) -> str:
        """The SHA-256 of an object's content, hex; empty if the content is not what the storage itself was given.

        Raises:
            NotFound: there is no such object.
            StorageUnavailable: the storage does not answer.
        """
        digest = hashlib.sha256()
        try:
            with self.open(key) as opened:
                for chunk in opened:
                    digest.update(chunk)
        except StorageUnavailable as error:
            if isinstance(error.__cause__, FlexibleChecksumError):
                return ""
            raise
        return digest.hexdigest()

    def exists(self, key: str) -> bool:
        """Whether there is such an object.

        Raises:
            StorageUnavailable: the storage does not answer, which is not the same as "no".
        """
        try:
            self.head(key)
        except NotFound:
            return False
        return True

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there counts as removed.

        Raises:
            StorageUnavailable: the storage does not answer.
        """
        with self._translated("DELETE", key):
            self._client.delete_object(Bucket=self.bucket, Key=key)

    def delete_many(self, keys: Sequence[str]) -> None:
        """Remove up to 1,000 objects by one request; those that are not there count as removed.

        Raises:
            StorageUnavailable: the storage does not answer, or some are still there.
        """
        if not keys:
            return
        with self._translated("DELETE", keys[0]):
            answer = self._client.delete_objects(
                Bucket=self.bucket, Delete={"Objects": [{"Key": key} for key in keys], "Quiet": True}
            )
        for wrong in answer.get("Errors", ()):
            if wrong.get("Code") not in _MISSING:
                raise StorageUnavailable(f"S3 at {self._place}: {wrong.get('Code')} to DELETE {wrong.get('Key')}")

    def list(self, prefix: str) -> Iterator[ListedObject]:
        """All objects whose key starts with ``prefix``, in the order of their keys, fetched page by page.

        Raises:
            StorageUnavailable: the storage does not answer.
        """
        with self._translated("LIST", prefix):
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix):
                for entry in page.get("Contents", []):
                    yield ListedObject(entry["Key"], entry["Size"], entry["LastModified"])

    def presign_get(self, key: str, seconds: int, filename: str | None = None) -> str:
        """A URL that lets anyone read this object for ``seconds``; with ``filename``, saved under that name.

        The image opens in the browser; nothing is asked of the storage, so the object need not exist.
        """
        with self._translated("presign", key):
            return self._presigner.get(key, seconds, None if filename is None else content_disposition(filename))

    def presign_put(self, key: str, sha256: str, seconds: int) -> tuple[str, dict[str, str]]:
        """A URL that lets anyone write this object for ``seconds``, and the headers that have to come with it.

        The storage refuses a body of another SHA-256 (hex), if it checks bodies at all (``FARM_S3_CHECKSUMS``).
        """
        checksum = base64.b64encode(bytes.fromhex(sha256)).decode()
        headers = {"x-amz-checksum-sha256": checksum} if self._checksums else {f"x-amz-meta-{_SHA256}": sha256}
        with self._translated("presign", key):
            return self._presigner.put(key, seconds, headers), headers

    def _translated(self, operation: str, name: str) -> AbstractContextManager[None]:
        return _translated(operation, name, self._place)

    def ensure_bucket(self) -> None:
        """Make the bucket if it is not there.

        Raises:
            StorageUnavailable: the storage does not answer, or does not let this key make or see the bucket.
        """
        try:
            self.check()
        except StorageUnavailable as error:
            if not isinstance(error.__cause__, NotFound):
                raise
        else:
            return
        try:
            with self._translated("create bucket", self.bucket):
                if self._region == "us-east-1":  # S3 refuses its default region as a parameter
                    self._client.create_bucket(Bucket=self.bucket)
                else:
                    self._client.create_bucket(
                        Bucket=self.bucket,
                        CreateBucketConfiguration={"LocationConstraint": self._region},  # type: ignore[typeddict-item]
                    )
        except StorageUnavailable as error:
            cause = error.__cause__
            # Two processes may start at once; the second one finds the bucket made.
            if not (isinstance(cause, ClientError) and _code(cause) == "BucketAlreadyOwnedByYou"):
                raise

    def check(self) -> None:
        """Ask the storage for its bucket, once and quickly, for a readiness probe.

        Raises:
            StorageUnavailable: it does not answer within about 4 seconds, or there is no such bucket.
        """
        try:
            with self._translated("HEAD", self.bucket):
                try:
                    self._probe.head_bucket(Bucket=self.bucket)
                except ClientError as error:
                    # an answer to HEAD has no body, and only the body says whether key, region or clock is wrong
                    if _code(error) not in _MISSING:
                        self._probe.list_objects_v2(Bucket=self.bucket, MaxKeys=1)
                    raise
        except NotFound as error:
            raise StorageUnavailable(
                f"S3 at {self._place}: there is no bucket {self.bucket!r}; create it with `farm init`, or correct "
                "FARM_S3_BUCKET"
            ) from error

    def check_writes(self, key: str, body: bytes) -> None:
        """Write an object, once and quickly, and delete it again.

        Raises:
            StorageUnavailable: the storage does not answer, or does not take it.
        """
        with self._translated("PUT", key):
            self._probe.put_object(Bucket=self.bucket, Key=key, Body=body, ContentType="text/plain")
        with self._translated("DELETE", key):
            self._probe.delete_object(Bucket=self.bucket, Key=key)

    def close(self) -> None:
        """Close the idle connections."""
        for client in {id(c): c for c in (self._client, self._probe, self._signer)}.values():
            client.close()


def content_disposition(filename: str) -> str:
    """The header with which a browser shows a file, and saves it as ``filename`` (RFC 6266, RFC 8187)."""
    name = re.sub(r"[\x00-\x1f\x7f/\\]", "_", filename) or "file"
    plain = re.sub(r'[^\x20-\x7e]|["%]', "_", name)
    value = f'inline; filename="{plain}"'
    if plain != name:
        value += f"; filename*=UTF-8''{quote(name.encode('utf-8', 'replace'), safe='')}"
    return value


def _place(endpoint_url: str | None) -> str:
    """The endpoint without a login, for messages."""
    return "AWS" if endpoint_url is None else re.sub(r"//[^/@]*@", "//", endpoint_url)


def _client(
    session: boto3.session.Session,
    settings: Settings,
    endpoint_url: str | None,
    *,
    attempts: int = 4,
    connect: float = 3,
    read: float = 30,
) -> S3Client:
    secret = settings.s3_secret_key
    config = Config(
        signature_version="s3v4",
        s3={"addressing_style": settings.s3_addressing},
        # only what is asked for here: many servers refuse the SDK's own checksums
        request_checksum_calculation="when_required",
        response_checksum_validation="when_supported" if settings.s3_checksums else "when_required",
        # a server on this machine is never reached through a proxy of the environment
        proxies={} if urlsplit(endpoint_url or "").hostname in ("127.0.0.1", "::1", "localhost") else None,
        # "standard" waits a random part of 1, 2, 4… seconds between tries, also on 503 SlowDown.
        retries={"mode": "standard", "total_max_attempts": attempts},
        connect_timeout=connect,
        read_timeout=read,
        max_pool_connections=32,
        tcp_keepalive=True,
    )
    made = session.client(
        "s3",
        endpoint_url=endpoint_url,
        region_name=settings.s3_region,
        aws_access_key_id=settings.s3_access_key,
        aws_secret_access_key=None if secret is None else secret.get_secret_value(),
        config=config,
        verify=None if settings.ca_file is None else authorities.bundle(settings.ca_file),
    )
    # some servers take no bulk delete without it, and none refuses it
    made.meta.events.register("before-call.s3.DeleteObjects", _add_content_md5)
    return made


def _add_content_md5(params: dict[str, Any], **_: object) -> None:
    body = params["body"]
    digest = hashlib.md5(body if isinstance(body, bytes) else body.encode(), usedforsecurity=False).digest()
    params["headers"]["Content-MD5"] = base64.b64encode(digest).decode()


def _credentials(session: boto3.session.Session, settings: Settings) -> Callable[[], Credentials]:
    """What gives the credentials that sign: the settings', or those that the SDK finds in its surroundings."""
    if settings.s3_access_key is not None and settings.s3_secret_key is not None:
        own = Credentials(settings.s3_access_key, settings.s3_secret_key.get_secret_value(), None)
        return lambda: own
    found = session.get_credentials()

    def current() -> Credentials:
        if found is None:
            raise NoCredentialsError
        frozen = found.get_frozen_credentials()
        if frozen.access_key is None or frozen.secret_key is None:
            raise NoCredentialsError
        return Credentials(frozen.access_key, frozen.secret_key, frozen.token)

    return current


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", "?"))


def _hex(checksum: str | None) -> str | None:
    # A multipart object has "<checksum of checksums>-<parts>", which is not the SHA-256 of its content.
    if checksum is None or "-" in checksum:
        return None
    return base64.b64decode(checksum).hex()


@contextmanager
def _translated(operation: str, name: str, place: str) -> Iterator[None]:
    """Turn the SDK's errors into the farm's."""
    try:
        yield
    except ClientError as error:
        if _code(error) in _MISSING:
            raise NotFound("object", name) from error
        raise storage_unavailable(error, f"{operation} {name}", place) from error
    except (BotoCoreError, HTTPError, ValueError) as error:
        raise storage_unavailable(error, f"{operation} {name}", place) from error
