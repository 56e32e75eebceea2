"""The pinned connection keeps the original name where it matters: in SNI and in the certificate check."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import httpx2
import pytest

from farm.egress import guard
from farm.egress.connection import HttpConnection
from farm.settings import Settings
from farm.webhooks.sender import ConnectionBudget, EndpointClient, FailureReason

#: A key and a self-signed certificate for hooks.example.com, made for this test and trusted by nothing else.
PEM = Path(__file__).parent / "tls" / "hooks.example.com.pem"

LOOPBACK = Settings(webhook_allow=(ipaddress.ip_network("127.0.0.1/32"),))
Fetch = Callable[[str, ssl.SSLContext | None], httpx2.Response]


class TlsServer:
    """Answers each request with "ok" and keeps the server names that clients asked for."""

    def __init__(self) -> None:
        self.names: list[str | None] = []
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(PEM)
        context.sni_callback = lambda _, name, __: self.names.append(name)
        self._context = context
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self._socket.accept()
            except OSError:
                return
            try:
                with self._context.wrap_socket(plain, server_side=True) as connection:
                    connection.settimeout(5)
                    connection.recv(65536)
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
            except OSError:  # the client did not like the certificate
                plain.close()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()


@pytest.fixture
def server() -> Iterator[TlsServer]:
    found = TlsServer()
    yield found
    found.close()


def resolver(host: str, port: int) -> list[str]:
    return ["127.0.0.1"]


def fetch(url: str, verify: ssl.SSLContext | None) -> httpx2.Response:
    with guard.client(LOOPBACK, timeout=5, resolver=resolver, verify=verify) as client:
        return client.get(url)


def fetch_async(url: str, verify: ssl.SSLContext | None) -> httpx2.Response:
    async def go() -> httpx2.Response:
        async with guard.async_client(LOOPBACK, timeout=5, resolver=resolver, verify=verify) as client:
            return await client.get(url)

    return anyio.run(go)


def fetch_door(url: str, verify: ssl.SSLContext | None) -> httpx2.Response:
    """As the deliverer does it."""

    async def go() -> httpx2.Response:
        connector = guard.PinnedConnector(LOOPBACK, resolver=resolver, verify=verify)
        try:
            connection = await connector.open(url, HttpConnection, 5)
        except OSError as error:
            raise httpx2.ConnectError(str(error)) from error
        reply = await connection.send(
            EndpointClient.for_url(url, LOOPBACK, connector, ConnectionBudget(0)).head + b"\r\n", 5, 5
        )
        await asyncio.sleep(0)
        return httpx2.Response(reply.status, content=reply.body)

    return asyncio.run(go())


both = pytest.mark.parametrize("fetch", [fetch, fetch_async, fetch_door], ids=["sync", "async", "door"])


@both
def test_the_name_and_not_the_address_is_asked_for(fetch: Fetch, server: TlsServer) -> None:
    trusting = ssl.create_default_context(cafile=PEM)
    assert fetch(f"https://hooks.example.com:{server.port}/", trusting).text == "ok"
    assert server.names == ["hooks.example.com"]


@both
def test_a_certificate_for_another_name_is_refused(fetch: Fetch, server: TlsServer) -> None:
    trusting = ssl.create_default_context(cafile=PEM)
    for host in ("other.example.com", "127.0.0.1"):
        with pytest.raises(httpx2.ConnectError, match=r"(?i)certificate"):
            fetch(f"https://{host}:{server.port}/", trusting)


@both
def test_a_certificate_of_an_unknown_authority_is_refused(fetch: Fetch, server: TlsServer) -> None:
    with pytest.raises(httpx2.ConnectError, match=r"(?i)certificate"):
        fetch(f"https://hooks.example.com:{server.port}/", None)


@pytest.mark.parametrize(
    ("host", "trusted", "reason"),
    [
        ("other.example.com", True, FailureReason.CERTIFICATE),
        ("hooks.example.com", False, FailureReason.CERTIFICATE),
        ("hooks.example.com", True, None),
    ],
)
def test_a_delivery_says_that_the_certificate_is_why_it_failed(
    server: TlsServer, host: str, trusted: bool, reason: FailureReason | None
) -> None:
    async def go() -> FailureReason | None:
        verify = ssl.create_default_context(cafile=PEM) if trusted else None
        connector = guard.PinnedConnector(LOOPBACK, resolver=resolver, verify=verify)
        client = EndpointClient.for_url(f"https://{host}:{server.port}/", LOOPBACK, connector, ConnectionBudget(0))
        return (await client.post({}, b"{}", deadline=5, body_deadline=5)).error

    assert asyncio.run(go()) is reason


def test_a_delivery_says_that_the_endpoint_speaks_no_tls() -> None:
    with socket.create_server(("127.0.0.1", 0)) as plain:

        def answer() -> None:
            connection, _ = plain.accept()
            with connection:
                connection.recv(4_096)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()

        async def go() -> FailureReason | None:
            connector = guard.PinnedConnector(LOOPBACK, resolver=resolver)
            url = f"https://hooks.example.com:{plain.getsockname()[1]}/"
            client = EndpointClient.for_url(url, LOOPBACK, connector, ConnectionBudget(0))
            return (await client.post({}, b"{}", deadline=5, body_deadline=5)).error

        assert asyncio.run(go()) is FailureReason.TLS
        thread.join()
