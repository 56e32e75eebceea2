"""The Redis or Valkey server of the farm: one place reads its URL, for Celery, the API, Flower and the checks.

    redis://[user:password@]host[:port][/number]
    rediss://…                                                  TLS, with the certificate and its host name verified
    unix:///path/to/socket[?db=number]
    sentinel://[user:password@]host:26379[;host:26379…]/number?master_name=NAME      ``sentinels://`` with TLS

What a URL does not allow is refused at the start, and so is Redis Cluster: a worker's queue is one list, and the
dispatcher reads those of all workers by one command.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from redis.sentinel import Sentinel

from farm.errors import SetupError
from farm.server_errors import broker_unavailable
from farm.settings import Settings

VARIABLE: Final = "FARM_REDIS_URL"
#: The rules of an ACL user that suffice for every process of the farm: its keys, all channels, no administration.
WORKER_ACL: Final = (
    "~worker.* ~_kombu.* ~unacked* ~*celery* ~farm.probe &* "
    "+@connection +@read +@write +@pubsub +@transaction +@scripting -@dangerous +info +time"
)

_SCHEMES: Final = ("redis", "rediss", "unix", "sentinel", "sentinels")
_VERIFY: Final = {"required": ssl.CERT_REQUIRED, "optional": ssl.CERT_OPTIONAL, "none": ssl.CERT_NONE}
_TLS_FILES: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_OPTIONS: Final = frozenset(
    {"db", "master_name", "sentinel_username", "sentinel_password", "ssl_cert_reqs", "ssl_check_hostname", *_TLS_FILES}
)


@dataclass(frozen=True)
class RedisServer:
    """Where the server is, and how to connect."""

    scheme: str
    hosts: tuple[tuple[str, int], ...]  #: of the server, or of the Sentinels
    number: int = 0  #: of the database
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    path: str | None = None  #: of a Unix socket
    master_name: str | None = None  #: of a Sentinel group
    sentinel_login: Mapping[str, str] = field(default_factory=dict, repr=False)
    tls: Mapping[str, Any] = field(default_factory=dict)  #: redis-py's options; empty: no TLS

    @classmethod
    def parse(cls, url: str, *, ca_file: Path | None = None) -> Self:
        """Read a URL. Raises `SetupError` for one that the farm cannot use."""
        scheme, separator, rest = url.partition("://")
        if "cluster" in scheme:
            raise SetupError(f"{VARIABLE} names a Redis Cluster, which cannot be used: name one server, or Sentinels")
        if not separator or scheme not in _SCHEMES:
            raise SetupError(f"{VARIABLE} must begin with {', '.join(f'{one}://' for one in _SCHEMES)}")
        try:
            return cls._parse(scheme, rest, ca_file)
        except ValueError as error:
            raise SetupError(
                f"{VARIABLE} cannot be used: {error}; characters such as / @ : ? # % in user or password must be "
                "percent-encoded"
            ) from error

    @classmethod
    def _parse(cls, scheme: str, rest: str, ca_file: Path | None) -> Self:
        before, query = re.sub(r";\s*sentinels?://", ";", rest).partition("?")[::2]
        pieces = [piece.partition("/") for piece in before.split(";")]  # each Sentinel may repeat login and number
        if any("@" in path for _, _, path in pieces):
            raise ValueError("its user and password cannot be separated from its host")
        login, at, _ = pieces[0][0].rpartition("@")
        path = next((path for _, _, path in pieces if path), "")
        options = dict(parse_qsl(query, keep_blank_values=True))
        unknown = sorted(options.keys() - _OPTIONS)
        if unknown:
            raise ValueError(f"{', '.join(unknown)} is no option; options are {', '.join(sorted(_OPTIONS))}")
        username, colon, password = login.partition(":")
        sentinel = scheme.startswith("sentinel")
        if sentinel and not options.get("master_name"):
            raise ValueError("a Sentinel URL needs ?master_name=, the name of the group")
        named = tuple(_host(netloc.rpartition("@")[2], sentinel=sentinel) for netloc, _, _ in pieces)
        if len(named) > 1 and not sentinel:
            raise ValueError("it names several hosts, which only sentinel:// can")
        number = options.get("db") or ("" if scheme == "unix" else path.strip("/"))
        if number and not (number.isascii() and number.isdigit()):
            raise ValueError("the number of its database is not a number")
        return cls(
            scheme,
            () if scheme == "unix" else named,
            int(number or 0),
            unquote(username) or None if at else None,
            unquote(password) if at and colon else None,
            f"/{unquote(path)}" if scheme == "unix" else None,
            options.get("master_name"),
            {
                name.removeprefix("sentinel_"): options[name]
                for name in ("sentinel_username", "sentinel_password")
                if options.get(name)
            },
            _tls(options, ca_file) if scheme in ("rediss", "sentinels") else {},
        )

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The server of the settings. Raises `SetupError` without ``FARM_REDIS_URL``."""
        if settings.redis_url is None:
            raise SetupError(
                f"{VARIABLE} is not set: point it at a Redis or Valkey server, or start the farm with `farm up`"
            )
        return cls.parse(settings.redis_url.get_secret_value(), ca_file=settings.ca_file)

    @property
    def place(self) -> str:
        """``host:port/number`` without user and password, for messages."""
        where = self.path or ",".join(f"{host}:{port}" for host, port in self.hosts)
        group = f" (Sentinels of {self.master_name})" if self.master_name else ""
        return f"{where}/{self.number}{group}"

    def client(self, seconds: float = 2.0) -> redis.Redis:
        """A client that answers or fails within about ``seconds``; of the group's primary where there are Sentinels."""
        common: dict[str, Any] = {
            "db": self.number,
            "username": self.username,
            "password": self.password,
            "socket_timeout": seconds,
            "socket_connect_timeout": seconds,
            "health_check_interval": 0,
            "retry": Retry(NoBackoff(), 0),
        }
        if self.path is not None:
            del common["socket_connect_timeout"]
            return redis.Redis(unix_socket_path=self.path, **common)
        secure: dict[str, Any] = {"ssl": True, **self.tls} if self.tls else {}
        if self.master_name is None:
            ((host, port),) = self.hosts
            return redis.Redis(host=host, port=port, **common, **secure)
        asked = {**self.sentinel_login, **secure, "socket_timeout": seconds, "retry": Retry(NoBackoff(), 0)}
        group = Sentinel(list(self.hosts), sentinel_kwargs=asked, **common, **secure)  # type: ignore[no-untyped-call]
        found: redis.Redis = group.master_for(self.master_name)  # type: ignore[no-untyped-call]
        return found

    @property
    def broker_url(self) -> str:
        """The URL as Celery takes it."""
        login = ""
        if self.username is not None or self.password is not None:
            login = f"{quote(self.username or '', safe='')}:{quote(self.password or '', safe='')}@"
        if self.path is not None:
            return f"redis+socket://{login}{self.path}?virtual_host={self.number}"
        scheme = "sentinel" if self.master_name else self.scheme
        return ";".join(
            f"{scheme}://{login}{f'[{host}]' if ':' in host else host}:{port}/{self.number}"
            for host, port in self.hosts
        )

    @property
    def broker_options(self) -> dict[str, Any]:
        """What Celery's transport needs beside the URL."""
        if self.master_name is None:
            return {}
        secure: dict[str, Any] = {"ssl": True, **self.tls} if self.tls else {}
        return {
            "master_name": self.master_name,
            "sentinel_kwargs": {
                **self.sentinel_login, **secure, "socket_timeout": 2, "socket_connect_timeout": 2,
                "retry": Retry(NoBackoff(), 0),
            },
        }  # fmt: skip

    def require_usable(self) -> None:
        """Raise `BrokerUnavailable` if the server does not answer, `SetupError` if it is a part of a Redis Cluster."""
        with self.client() as client:
            try:
                client.ping()
                info: Any = client.info("cluster")
            except redis.exceptions.NoPermissionError:
                return  # an ACL without INFO; what it does allow shows in use
            except (RedisError, OSError) as error:
                raise broker_unavailable(error, self.place) from error
        if info.get("cluster_enabled"):
            raise SetupError(
                f"Redis at {self.place} is part of a Redis Cluster, which cannot be used: name a single server, or the "
                "Sentinels of one"
            )


def _host(text: str, *, sentinel: bool) -> tuple[str, int]:
    if "," in text:
        raise ValueError("it names several hosts, which only sentinel:// can, with semicolons between")
    try:
        parts = urlsplit(f"//{text}")
        port = parts.port
    except ValueError:
        raise ValueError("its port is not a number") from None
    return parts.hostname or "localhost", port or (26379 if sentinel else 6379)


def _tls(options: Mapping[str, str], ca_file: Path | None) -> dict[str, Any]:
    verify = options.get("ssl_cert_reqs", "required").lower().removeprefix("cert_")
    if verify not in _VERIFY:
        raise ValueError(f"ssl_cert_reqs must be one of {', '.join(_VERIFY)}")
    check = options.get("ssl_check_hostname", "true").lower()
    if check not in ("true", "false"):
        raise ValueError("ssl_check_hostname must be true or false")
    found: dict[str, Any] = {
        "ssl_cert_reqs": _VERIFY[verify],
        "ssl_check_hostname": check == "true" and verify != "none",
        **{name: options[name] for name in _TLS_FILES if options.get(name)},
    }
    if ca_file is not None:
        found.setdefault("ssl_ca_certs", str(ca_file))
    return found
