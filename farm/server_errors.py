"""What a server's driver raised, as one sentence for a person: which server, the driver's reason, and what to check.

One place for PostgreSQL, Redis and S3, so that services, commands and ``farm doctor`` say the same. The sentences name
hosts, users and buckets and hold no secrets.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final, NamedTuple

from farm.errors import BrokerUnavailable, DatabaseUnavailable, StorageUnavailable

_MOST: Final = 300  #: characters of a driver's reason


class _Advice(NamedTuple):
    """What to do about the reasons that a pattern matches."""

    pattern: str
    text: str


_ANY_SERVER: Final = (
    _Advice(r"refused", "nothing listens there: check host and port, and that the server runs"),
    _Advice(
        r"resolve host|translate host|[Nn]ame or service|nodename nor|[Nn]o address associated|[Nn]ame resolution",
        "check the host name",
    ),
    _Advice(
        r"certificate verify failed|self-signed|self.signed|unable to get local issuer|[Cc]ertificate is not valid|"
        r"root certificate file|does not match host name|doesn't match|[Hh]ostname mismatch|certificate has expired",
        "check the server's certificate and its host name, and name a private authority's certificate in FARM_CA_FILE",
    ),
    _Advice(
        r"WRONG_VERSION_NUMBER|wrong version number|record layer failure|packet length too long",
        "the server does not speak TLS on this port: check the URL's scheme and port",
    ),
    _Advice(r"timeout|timed out|Timeout", "check host, port and firewalls, and how busy the server is"),
    _Advice(r"[Nn]o route|unreachable", "check the address and the network"),
)

_POSTGRES: Final = (
    _Advice(r"password authentication failed", "check user and password in the database URL"),
    _Advice(r"no password supplied", "the database URL has no password"),
    _Advice(r'role ".*" does not exist|no such user', "create the role, or correct the user in the database URL"),
    _Advice(
        r'database ".*" does not exist|no such database', "create the database, or correct its name in the database URL"
    ),
    _Advice(r"no pg_hba.conf entry", "allow this client, user and database in the server's pg_hba.conf"),
    _Advice(r"does not support SSL|SSL required", "sslmode in the database URL must fit to the server"),
    _Advice(
        r"unsupported startup parameter",
        "a pooler refuses it: remove it from the database URL, or name it in PgBouncer's ignore_startup_parameters",
    ),
    _Advice(r"too many (clients|connections)|connection slots", "raise the server's limit, or run fewer processes"),
    _Advice(r"read-only", "this is a standby: name the primary, or add target_session_attrs=read-write to the URL"),
    _Advice(r"permission denied", "grant the role what the farm needs"),
    _Advice(r"starting up|shutting down|recovery mode|administrator command|closed the connection", "it restarts"),
    _Advice(r"No space left|could not extend", "the database server's disk is full"),
    *_ANY_SERVER,
)

_REDIS: Final = (
    _Advice(r"WRONGPASS|invalid username-password|invalid password", "check user and password in FARM_REDIS_URL"),
    _Advice(
        r"NOAUTH|Authentication required|already authenticated", "the server wants a password: add it to FARM_REDIS_URL"
    ),
    _Advice(r"no password is set|without any password", "the server has no password: remove it from FARM_REDIS_URL"),
    _Advice(r"NOPERM|no permissions|permission", "the server's ACL must allow it: docs/operations lists the commands"),
    _Advice(r"MOVED|cluster", "Redis Cluster cannot be used: name one server, or a Sentinel group"),
    _Advice(r"No master found", "check the Sentinels and master_name in FARM_REDIS_URL"),
    _Advice(r"READONLY|read.only|now a slave", "this is a replica: name the primary, or use Sentinel"),
    _Advice(r"OOM|maxmemory", "the server's memory is full: raise maxmemory"),
    _Advice(r"loading the dataset", "it is starting"),
    _Advice(r"DB index is out of range", "the server has fewer databases: correct the number in FARM_REDIS_URL"),
    *_ANY_SERVER,
)

_STORAGE: Final = (
    _Advice(r"RequestTimeTooSkewed|RequestExpired", "switch on NTP on this machine and on the server"),
    _Advice(
        r"SignatureDoesNotMatch",
        "check FARM_S3_SECRET_KEY, and that nothing between here and the server changes the Host header",
    ),
    _Advice(r"InvalidAccessKeyId|InvalidClientTokenId|UnrecognizedClient", "check FARM_S3_ACCESS_KEY"),
    _Advice(
        r"AuthorizationHeaderMalformed|PermanentRedirect|MovedPermanently|IllegalLocationConstraint|"
        r"TemporaryRedirect|InvalidRegion|Redirect",
        "set FARM_S3_REGION to the bucket's region, and FARM_S3_ENDPOINT_URL to that region's endpoint",
    ),
    _Advice(
        r"NoCredentials|Unable to locate credentials|PartialCredentials",
        "set FARM_S3_ACCESS_KEY and FARM_S3_SECRET_KEY",
    ),
    _Advice(r"AccessDenied|AllAccessDisabled|Forbidden|\b403\b", "this key may not do that: grant it the bucket"),
    _Advice(r"NoSuchBucket", "create the bucket with `farm init`, or correct FARM_S3_BUCKET"),
    _Advice(r"SlowDown|ServiceUnavailable|InternalError|\b50[0-9]\b", "the server is busy or has a problem of its own"),
    _Advice(r"Invalid endpoint", "FARM_S3_ENDPOINT_URL must be an http or https URL"),
    *_ANY_SERVER,
)

_NOISE: Final = (
    re.compile(r"^connection failed: "),
    re.compile(r"^- host: .*?(?:hostaddr: \S+)?: "),
    re.compile(r"connection to server (?:at|on) [^\n]*? failed: "),
    re.compile(r"^(?:FATAL|ERROR|PANIC): +"),
    re.compile(r"^Error \d+ connecting to \S+\. *"),
    re.compile(r"^Error \d+ while .*?: "),
)


def database_unavailable(error: BaseException, place: str = "") -> DatabaseUnavailable:
    """What to raise for an error of psycopg or of SQLAlchemy's pool; ``place`` is ``host:port/database``."""
    original = getattr(error, "orig", None) or error
    if type(original).__name__ == "TimeoutError":  # SQLAlchemy's pool
        reason = "all connections of this process are in use"
    else:
        reason = "; ".join(_postgres_reasons(str(original))) or type(original).__name__
    return DatabaseUnavailable(_sentence("PostgreSQL", place, reason, _POSTGRES))


def broker_unavailable(error: BaseException, place: str = "") -> BrokerUnavailable:
    """What to raise for an error of redis-py, kombu or the socket below them; ``place`` is ``host:port/number``."""
    # kombu's own error says less than the one that it was made of
    found = _deepest(error, ("redis.", "ssl", "socket"))
    reason = _last_quoted(_clean(str(found))) or type(found).__name__
    return BrokerUnavailable(_sentence("Redis", place, reason, _REDIS))


def storage_unavailable(error: BaseException, action: str, place: str = "") -> StorageUnavailable:
    """What to raise for an error of the S3 client; ``action`` is what was asked for, ``place`` is the endpoint."""
    response: dict[str, Any] = getattr(error, "response", None) or {}
    about = response.get("Error", {})
    if about:
        code, message = str(about.get("Code", "?")), _clean(str(about.get("Message", "")))
        reason = code if not message or message in (code, "Forbidden", "Bad Request") else f"{code} ({message})"
        skew = _skew(response)
        if "Skewed" in code and skew is not None:
            reason += f", this machine's clock is {abs(skew):.0f} s {'ahead' if skew > 0 else 'behind'}"
        region = about.get("Region") or about.get("Endpoint")
        if region:
            reason += f", it says {region}"
    else:
        found = _deepest(error, ("ssl", "socket", "urllib3"))
        reason = _last_quoted(_clean(str(found))) or type(found).__name__
        if type(error).__name__ not in reason:
            reason = f"{reason} ({type(error).__name__})"
    return StorageUnavailable(_sentence("S3", place, f"{action}: {reason}", _STORAGE))


def _sentence(server: str, place: str, reason: str, advice: Iterable[_Advice]) -> str:
    reason = reason[:_MOST].rstrip(". ")
    text = f"{server}{f' at {place}' if place else ''}: {reason}"
    what = next((one.text for one in advice if re.search(one.pattern, reason)), None)
    return text if what is None else f"{text}; {what}"


def _postgres_reasons(text: str) -> list[str]:
    """The distinct reasons in psycopg's text, which has a line for each address that was tried."""
    lines = [
        line for line in text.splitlines() if line.strip() and not line.startswith(("\t", "DETAIL", "HINT", "LINE"))
    ]
    if lines and lines[0].startswith("connection failed") and len(lines) > 1 and lines[0].rstrip().endswith("were:"):
        lines = lines[1:]
    lines = [line for line in lines if not re.search(r"[Aa]ll failures were:|^Multiple connection attempts", line)]
    return list(dict.fromkeys(filter(None, map(_clean, lines))))[:3]


def _clean(text: str) -> str:
    for pattern in _NOISE:
        text = pattern.sub("", text)
    return " ".join(text.split()).strip(" .")


def _last_quoted(text: str) -> str:
    """Drop the number that Python puts before the text of a system error: ``[Errno 111] Connection refused``."""
    return re.sub(r"\[Errno -?\d+\] ?", "", text)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        reason = getattr(error, "reason", None)  # urllib3's
        inner = reason if isinstance(reason, BaseException) else error.__cause__ or error.__context__
        if inner is None:
            return
        error = inner


def _deepest(error: BaseException, modules: tuple[str, ...]) -> BaseException:
    """The first cause that a driver or TLS itself raised."""
    chain = list(_chain(error))
    for one in chain:
        if isinstance(one, ssl.SSLError):
            return one
    for one in chain:
        if type(one).__module__.startswith(modules) and str(one):
            return one
    return next((one for one in chain if str(one)), error)


def _skew(response: dict[str, Any]) -> float | None:
    """Seconds that this machine's clock is ahead of the server's, by the answer's Date header."""
    date = response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    try:
        return None if date is None else (datetime.now(UTC) - parsedate_to_datetime(date)).total_seconds()
    except (TypeError, ValueError):
        return None
