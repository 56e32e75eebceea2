"""Egress guard: which URLs of tenants the farm connects to.

Tenants choose webhook endpoints and input URLs, and our machines connect to them. Without a guard a tenant could reach
the cloud's metadata service, the database and other internal hosts (server-side request forgery). So:

1. :func:`parse` refuses what is not a plain ``https://host/…`` URL, read by the same parser that later connects;
2. the host is resolved **once** for each connection, and refused if *any* of its addresses is not :func:`public`,
   unless it lies in ``Settings.webhook_allow``;
3. the connection goes to the address that was checked, while ``Host``, SNI and the certificate check keep the
   original name: DNS rebinding has no effect;
4. no redirect is followed, no proxy from the environment is used, no cookie is kept.

All four live below the HTTP clients, in their transport and in :class:`PinnedConnector`, which opens the deliverer's
connections, so no caller can forget one.

The file is long because the rules and the transports that enforce them are reviewed together: a rule that a transport
does not apply protects nothing.
"""

from __future__ import annotations

import asyncio
import http.cookiejar
import ipaddress
import re
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast

import anyio
import anyio.to_thread
import httpcore2
import httpx2

from farm import authorities
from farm.errors import BadInput, FieldProblem
from farm.settings import Network, Settings

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

#: Answers a host name with its addresses, as text; raises OSError (``socket.gaierror``) where there are none.
Resolver = Callable[[str, int], Sequence[str]]
Protocol = TypeVar("Protocol", bound=asyncio.BaseProtocol)

PORTS: Final = frozenset({80, 443})  #: open to all; others only inside ``Settings.webhook_allow``
MAX_URL: Final = 2048  #: characters
_MAX_TRIES: Final = 8  #: addresses of one host that a connection is tried with


class TargetRefused(BadInput):
    """A URL that the farm does not connect to."""


@dataclass(frozen=True, slots=True)
class Target:
    """A URL in the one form in which it will be requested."""

    url: str  #: normalised: lower-case host in ASCII, no fragment
    scheme: str
    host: str  #: without the brackets of IPv6
    port: int
    address: Address | None  #: where the host is an address and not a name


# ------------------------------------------------------------------------------------------ which addresses are public

# IANA's special-purpose registries, plus what no registry lists. Written out because Python's ``is_global`` says True
# for NAT64, 6to4, its relay anycast and multicast, and its answers change between releases.
_CLOSED_V4: Final = tuple(
    ipaddress.IPv4Network(text)
    for text in (
        "0.0.0.0/8",  # "this network"; 0.0.0.0 is this host
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # shared by carriers; a cloud's metadata service lives here too
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # Azure's host agent, under a public address
        "169.254.0.0/16",  # link-local; the metadata service of most clouds
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments; a metadata service here as well
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112, answered by the nearest network
        "192.52.193.0/24",  # multicast tunnels
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
    )
)
_OPEN_V6: Final = ipaddress.IPv6Network("2000::/3")  # the only block that IANA has given out as global unicast
_CLOSED_V6: Final = tuple(
    ipaddress.IPv6Network(text)
    for text in (
        "2001::/23",  # protocol assignments: Teredo, benchmarks, ORCHID…
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: any IPv4 address in disguise
        "2620:4f:8000::/48",  # AS112
        "3fff::/20",  # documentation
    )
)
_MAPPED: Final = ipaddress.IPv6Network("::ffff:0:0/96")
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")  # 64:ff9b:1::/48, its local-use sister, lies outside 2000::/3
_ISATAP: Final = frozenset({0x00005EFE, 0x02005EFE})  # third quarter of an IPv4 address in disguise, in any prefix


def public(address: Address) -> bool:
    """Whether an address belongs to the public internet, also when it is an IPv4 address inside an IPv6 one."""
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _CLOSED_V4)
    if address.scope_id is not None:
        return False
    if address in _MAPPED or address in _NAT64:
        return public(_embedded(address))
    if int(address) >> 32 & 0xFFFFFFFF in _ISATAP:
        return False
    return address in _OPEN_V6 and not any(address in network for network in _CLOSED_V6)


def allowed(address: Address, networks: Iterable[Network]) -> bool:
    """Whether an address lies in one of the networks; an IPv4-mapped one counts as the IPv4 address that it is."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            return False
        if address in _MAPPED:
            return allowed(_embedded(address), networks)
    return any(address in network for network in networks)


def _embedded(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address:
    return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)


# ------------------------------------------------------------------------------------------------------------- the URL

_AUTHORITY: Final = re.compile(r"(?P<host>\[[^\]@]*\]|[^\[\]@:]*)(?::(?P<port>[0-9]{1,5}))?", re.ASCII)
_LABEL: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII)
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)


def parse(url: str, settings: Settings, *, field: str = "url") -> Target:
    """Read a URL that a client gave, without asking any resolver.

    Args:
        url: as the client sent it.
        settings: ``webhook_allow`` and ``webhook_allow_http``.
        field: the client's name for it, for the error message.

    Raises:
        TargetRefused: the URL is not of a form, or names an address or port, that the farm connects to.
    """
    if len(url) > MAX_URL:
        raise _refused(field, url, f"the URL has {len(url)} characters; at most {MAX_URL} are allowed")
    if not url.isprintable() or " " in url or "\\" in url:
        # Also surrogates, line breaks and invisible characters: readers of URLs disagree about what to do with them.
        raise _refused(field, url, "the URL holds a space, backslash or control character; percent-encode it")
    scheme, colon, rest = url.partition("://")
    scheme = scheme.lower()
    if not colon or scheme not in ("http", "https"):
        raise _refused(field, url, f"the URL must begin with {_schemes(settings)}")
    if scheme == "http" and not settings.webhook_allow_http:
        raise _refused(field, url, "plain http is not allowed here; use https (or set FARM_WEBHOOK_ALLOW_HTTP=true)")
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" in authority:
        raise _refused(field, url, "the URL may not carry a user name or password")
    if _AUTHORITY.fullmatch(authority) is None:
        raise _refused(field, url, f"{authority!r} is not a host with an optional port number")
    try:
        parsed = httpx2.URL(url).copy_with(fragment=None)
        host = parsed.raw_host.decode("ascii")
    except (httpx2.InvalidURL, ValueError) as error:
        raise _refused(field, url, f"the URL cannot be read: {error}") from error
    port = (443 if scheme == "https" else 80) if parsed.port is None else parsed.port
    address = _address(host, url, field)
    if not 0 < port < 65536 or (port not in PORTS and not settings.webhook_allow):
        raise _bad_port(field, url, port)
    if address is not None:
        _admit(host, port, (address,), settings, field, url)
    return Target(str(parsed), scheme, host, port, address)


def check(url: str, settings: Settings, resolver: Resolver | None = None, *, field: str = "url") -> Target:
    """Read a URL and resolve its host, to refuse at once what would be refused at every connection.

    It blocks for as long as the resolver does. What it says holds for now: the connection checks again.

    Raises:
        TargetRefused: as :func:`parse`; or the host has no address, or one that is not public.
    """
    target = parse(url, settings, field=field)
    if target.address is None:
        try:
            addresses = _addresses((resolver or system_resolver)(target.host, target.port))
        except (OSError, UnicodeError) as error:
            raise _refused(field, url, f"the host {target.host!r} has no address") from error
        if not addresses:
            raise _refused(field, url, f"the host {target.host!r} has no address")
        _admit(target.host, target.port, addresses, settings, field, url)
    return target


def _address(host: str, url: str, field: str) -> Address | None:
    """The address that a host literally is; None for a name; all ways to write an address but one are refused."""
    if not host:
        raise _refused(field, url, "the URL names no host")
    if ":" in host:
        try:
            address = ipaddress.IPv6Address(host)
        except ValueError as error:
            raise _refused(field, url, f"{host!r} is not an IPv6 address") from error
        if address.scope_id is not None:
            raise _refused(field, url, "an IPv6 zone has no meaning outside this machine")
        return address
    if host.endswith("."):
        raise _refused(field, url, f"write the host without the dot at its end: {host.rstrip('.')!r}")
    labels = host.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        # The C library reads 127.1, 0x7f.1, 0177.0.0.1 and 2130706433 as addresses, a name server never answers them.
        try:
            return ipaddress.IPv4Address(host)
        except ValueError as error:
            raise _refused(
                field, url, f"{host!r} is not a host name; write an IPv4 address as four decimal numbers"
            ) from error
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise _refused(field, url, f"{host!r} is not a host name")
    return None


def _admit(
    host: str, port: int, addresses: Sequence[Address], settings: Settings, field: str = "url", url: str | None = None
) -> None:
    """Refuse a host if any of its addresses may not be reached.

    The refusal does not tell the addresses of a name: outsiders must not learn what an internal name resolves to.
    """
    shown = url or host
    inside = [allowed(address, settings.webhook_allow) for address in addresses]
    if not all(ok or public(address) for ok, address in zip(inside, addresses, strict=True)):
        raise _refused(
            field, shown, f"the host {host!r} is not on the public internet (FARM_WEBHOOK_ALLOW can open networks)"
        )
    if port in settings.own_ports and any(address.is_loopback for address in addresses):
        raise _refused(field, shown, f"port {port} of this machine belongs to the farm itself")
    if port not in PORTS and not all(inside):
        raise _bad_port(field, shown, port)


def _addresses(answers: Iterable[str]) -> tuple[Address, ...]:
    # In order and each once: getaddrinfo may repeat an address.
    return tuple(dict.fromkeys(ipaddress.ip_address(text) for text in answers))


def _schemes(settings: Settings) -> str:
    return "https:// or http://" if settings.webhook_allow_http else "https://"


def _bad_port(field: str, url: str, port: int) -> TargetRefused:
    return _refused(field, url, f"port {port} is not allowed; use 443 or 80")


def _refused(field: str, url: str, message: str) -> TargetRefused:
    return TargetRefused(FieldProblem(field, url[:200], message))


# ------------------------------------------------------------------------------------------------------ the connection


def system_resolver(host: str, port: int) -> list[str]:
    """All addresses of a host as this machine resolves it, its own order kept."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return [str(entry[4][0]) for entry in found]


def client(
    settings: Settings,
    *,
    timeout: float = 10,
    resolver: Resolver | None = None,
    verify: ssl.SSLContext | None = None,
    max_connections: int = 100,
) -> httpx2.Client:
    """An HTTP client that connects only to allowed targets; its requests raise :class:`TargetRefused`.

    ``timeout`` is in seconds and bounds each step (connect, one read, one write), not the whole: for an
    answer that arrives byte by byte the caller needs its own deadline. A name server that does not answer is waited for
    as long as the system does.
    ``verify`` replaces the certificate authorities of the settings.
    """
    backend = _Backend(settings, resolver or system_resolver)
    pool = httpcore2.ConnectionPool(
        ssl_context=verify or authorities.context(settings.ca_file),
        max_connections=max_connections,
        max_keepalive_connections=max_connections // 5,
        keepalive_expiry=5,
        network_backend=backend,
    )
    return httpx2.Client(
        transport=_Transport(settings, pool),
        timeout=timeout,
        headers=_HEADERS,
        trust_env=False,
        follow_redirects=False,
        cookies=_no_cookies(),
    )


def async_client(
    settings: Settings,
    *,
    timeout: float = 10,
    resolver: Resolver | None = None,
    verify: ssl.SSLContext | None = None,
    max_connections: int = 100,
) -> httpx2.AsyncClient:
    """As :func:`client`, for asyncio; resolving runs in a thread, and ``timeout`` bounds it too."""
    backend = _AsyncBackend(settings, resolver or system_resolver)
    pool = httpcore2.AsyncConnectionPool(
        ssl_context=verify or authorities.context(settings.ca_file),
        max_connections=max_connections,
        max_keepalive_connections=max_connections // 5,
        keepalive_expiry=5,
        network_backend=backend,
    )
    return httpx2.AsyncClient(
        transport=_AsyncTransport(settings, pool),
        timeout=timeout,
        headers=_HEADERS,
        trust_env=False,
        follow_redirects=False,
        cookies=_no_cookies(),
    )


# No compression is offered, so an answer cannot unfold into more than was received.
_HEADERS: Final = {"User-Agent": "diffusion-render-farm", "Accept-Encoding": "identity"}


def _no_cookies() -> http.cookiejar.CookieJar:
    # A client is shared by all tenants: what one endpoint sets must not be sent on behalf of another tenant.
    return http.cookiejar.CookieJar(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))


class _Backend(httpcore2.NetworkBackend):
    """Opens sockets to checked addresses only."""

    def __init__(self, settings: Settings, resolver: Resolver) -> None:
        self._settings = settings
        self._resolver = resolver
        self._plain = httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        deadline = None if timeout is None else time.monotonic() + timeout
        with _resolving(host):
            addresses = _literal(host) or _addresses(self._resolver(host, port))
        _admit(host, port, addresses, self._settings)
        failure: Exception | None = None
        for address, share in _shares(addresses, deadline):
            try:
                return self._plain.connect_tcp(str(address), port, share, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
        raise failure or httpcore2.ConnectError(f"the host {host!r} has no address")


class PinnedConnector:
    """Opens connections for the protocols of asyncio, under the same rules."""

    def __init__(
        self, settings: Settings, *, resolver: Resolver | None = None, verify: ssl.SSLContext | None = None
    ) -> None:
        """``verify`` replaces the certificate authorities of the settings."""
        self._settings = settings
        self._resolver = resolver or system_resolver
        self._verify = verify
        # Its own threads, so that name servers that hang do not block the rest of the process.
        self._threads = anyio.CapacityLimiter(64)

    async def open(self, url: str, protocol: Callable[[], Protocol], timeout: float) -> Protocol:  # noqa: ASYNC109
        """Connect a protocol to the host of a URL, over TLS where it says https, within ``timeout`` seconds.

        Raises:
            TargetRefused: as :func:`check`.
            TimeoutError: it took too long.
            OSError: no address, nothing listens there, or the certificate is not trusted.
        """
        target = parse(url, self._settings)
        deadline = time.monotonic() + timeout
        async with asyncio.timeout(timeout):
            addresses = await self.addresses(target.host, target.port)
        loop = asyncio.get_running_loop()
        tls = self._context() if target.scheme == "https" else None
        failure: OSError | None = None
        for address, share in _shares(addresses, deadline):
            try:
                async with asyncio.timeout(share):
                    _, made = await loop.create_connection(
                        protocol,
                        str(address),
                        target.port,
                        ssl=tls,
                        server_hostname=None if tls is None else target.host,
                    )
            except OSError as error:  # TimeoutError too
                failure = error
            else:
                return made
        raise failure or OSError(f"the host {target.host!r} has no address")

    async def addresses(self, host: str, port: int) -> tuple[Address, ...]:
        """All addresses of a host, each of which may be reached. Raises `TargetRefused`, `OSError`, `ValueError`."""
        addresses = _literal(host)
        if addresses is None:
            answers = await anyio.to_thread.run_sync(
                self._resolver, host, port, abandon_on_cancel=True, limiter=self._threads
            )
            addresses = _addresses(answers)
        _admit(host, port, addresses, self._settings)
        return addresses

    def _context(self) -> ssl.SSLContext:
        context = self._verify or authorities.context(self._settings.ca_file)
        context.set_alpn_protocols(["http/1.1"])
        return context


class _AsyncBackend(httpcore2.AsyncNetworkBackend):
    """The same for asyncio's HTTP client."""

    def __init__(self, settings: Settings, resolver: Resolver) -> None:
        self._connector = PinnedConnector(settings, resolver=resolver)
        self._plain = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  the signature is httpcore's
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        deadline = None if timeout is None else time.monotonic() + timeout
        with _resolving(host), anyio.fail_after(timeout):
            addresses = await self._connector.addresses(host, port)
        failure: Exception | None = None
        for address, share in _shares(addresses, deadline):
            try:
                return await self._plain.connect_tcp(str(address), port, share, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
        raise failure or httpcore2.ConnectError(f"the host {host!r} has no address")

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)


def _literal(host: str) -> tuple[Address, ...] | None:
    """The host as an address, so that none but names are ever given to a resolver."""
    try:
        return (ipaddress.ip_address(host),)
    except ValueError:
        return None


@contextmanager
def _resolving(host: str) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise httpcore2.ConnectTimeout(f"no name server answered for {host!r} in time") from error
    except (OSError, ValueError) as error:  # no such name, or a name or an answer that cannot be read
        raise httpcore2.ConnectError(f"the host {host!r} does not resolve") from error


def _shares(addresses: Sequence[Address], deadline: float | None) -> Iterator[tuple[Address, float | None]]:
    """The addresses to try, each with its share of the time left, so a dead one does not use up the others' time."""
    tried = addresses[:_MAX_TRIES]
    for number, address in enumerate(tried):
        if deadline is None:
            yield address, None
        else:
            left = max(deadline - time.monotonic(), 0.001)
            yield address, left / (len(tried) - number)


# ------------------------------------------------------------------------------------------------------- the transport

_ERRORS: Final[tuple[tuple[type[Exception], type[httpx2.TransportError]], ...]] = (
    # most specific first
    (httpcore2.ConnectTimeout, httpx2.ConnectTimeout),
    (httpcore2.ReadTimeout, httpx2.ReadTimeout),
    (httpcore2.WriteTimeout, httpx2.WriteTimeout),
    (httpcore2.PoolTimeout, httpx2.PoolTimeout),
    (httpcore2.ConnectError, httpx2.ConnectError),
    (httpcore2.ReadError, httpx2.ReadError),
    (httpcore2.WriteError, httpx2.WriteError),
    (httpcore2.NetworkError, httpx2.NetworkError),
    (httpcore2.LocalProtocolError, httpx2.LocalProtocolError),
    (httpcore2.RemoteProtocolError, httpx2.RemoteProtocolError),
    (httpcore2.ProtocolError, httpx2.ProtocolError),
    (httpcore2.UnsupportedProtocol, httpx2.UnsupportedProtocol),
)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        for kind, ours in _ERRORS:
            if isinstance(error, kind):
                raise ours(str(error) or kind.__name__) from error
        raise


class _Transport(httpx2.BaseTransport):
    """httpx2's default transport takes no network backend, so this one joins client and pool."""

    def __init__(self, settings: Settings, pool: httpcore2.ConnectionPool) -> None:
        self._settings = settings
        self._pool = pool

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        parse(str(request.url), self._settings)
        with _translated():
            answer = self._pool.handle_request(_core_request(request))
        return _response(answer, _Stream(cast("Iterable[bytes]", answer.stream)))

    def close(self) -> None:
        self._pool.close()


class _AsyncTransport(httpx2.AsyncBaseTransport):
    def __init__(self, settings: Settings, pool: httpcore2.AsyncConnectionPool) -> None:
        self._settings = settings
        self._pool = pool

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        parse(str(request.url), self._settings)
        with _translated():
            answer = await self._pool.handle_async_request(_core_request(request))
        return _response(answer, _AsyncStream(answer.stream))

    async def aclose(self) -> None:
        await self._pool.aclose()


class _Stream(httpx2.SyncByteStream):
    def __init__(self, body: Iterable[bytes]) -> None:
        self._body = body

    def __iter__(self) -> Iterator[bytes]:
        with _translated():
            yield from self._body

    def close(self) -> None:
        cast("Any", self._body).close()


class _AsyncStream(httpx2.AsyncByteStream):
    def __init__(self, body: Any) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _translated():
            async for part in self._body:
                yield part

    async def aclose(self) -> None:
        await self._body.aclose()


def _core_request(request: httpx2.Request) -> httpcore2.Request:
    return httpcore2.Request(
        method=request.method,
        url=httpcore2.URL(
            scheme=request.url.raw_scheme,
            host=request.url.raw_host,
            port=request.url.port,
            target=request.url.raw_path,
        ),
        headers=request.headers.raw,
        content=cast("Any", request.stream),
        extensions=request.extensions,
    )


def _response(answer: httpcore2.Response, stream: httpx2.SyncByteStream | httpx2.AsyncByteStream) -> httpx2.Response:
    return httpx2.Response(
        status_code=answer.status, headers=answer.headers, stream=stream, extensions=dict(answer.extensions)
    )
