"""The egress guard: hostile URLs, DNS rebinding, and addresses in unusual notations (one long table of cases)."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import anyio
import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.egress import guard
from farm.egress.connection import HttpConnection
from farm.settings import Settings
from farm.webhooks.sender import ConnectionBudget, EndpointClient

CLOSED = Settings(webhook_allow_http=True)  # http is on, so that nothing is refused for its scheme alone
LOOPBACK = Settings(webhook_allow_http=True, webhook_allow=(ipaddress.ip_network("127.0.0.1/32"),))

#: {p} is the port of a listening socket on loopback, which must hear nothing.
HOSTILE = [
    # loopback, written in all ways that some reader of URLs understands
    "http://127.0.0.1/",
    "http://127.0.0.1:{p}/",
    "http://127.0.0.2:{p}/",
    "http://127.1:{p}/",
    "http://127.0.1:{p}/",
    "http://2130706433:{p}/",
    "http://0x7f000001:{p}/",
    "http://0x7f.0.0.1:{p}/",
    "http://0x7f.1:{p}/",
    "http://0X7F000001:{p}/",
    "http://017700000001:{p}/",
    "http://0177.0.0.1:{p}/",
    "http://0177.0.0.01:{p}/",
    "http://00000177.0.0.1:{p}/",
    "http://127.000.000.001:{p}/",
    "http://127.0.0.1.:{p}/",
    "http://127.1.:{p}/",
    "http://127.0.0.0x1:{p}/",
    "http://127.0.0.256:{p}/",
    "http://127.0.0:{p}/",
    "http://4294967297:{p}/",
    "http://0:{p}/",
    "http://0.0.0.0:{p}/",
    "http://0x0:{p}/",
    "http://localhost:{p}/",
    "http://LOCALHOST:{p}/",
    "http://localhost.:{p}/",
    "http://localhost.localdomain:{p}/",
    "http://[::1]:{p}/",
    "http://[::]:{p}/",
    "http://[0:0:0:0:0:0:0:1]:{p}/",
    "http://[0000:0000:0000:0000:0000:0000:0000:0001]:{p}/",
    # IPv4 inside IPv6
    "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:127.0.0.1]:{p}/",
    "http://[::ffff:7f00:1]:{p}/",
    "http://[0:0:0:0:0:ffff:127.0.0.1]:{p}/",
    "http://[::127.0.0.1]/",
    "http://[::ffff:0:127.0.0.1]/",
    "http://[64:ff9b::127.0.0.1]/",
    "http://[64:ff9b::10.0.0.1]/",
    "http://[64:ff9b::a9fe:a9fe]/",
    "http://[64:ff9b:1::8.8.8.8]/",
    "http://[2002:7f00:1::]/",
    "http://[2002:a9fe:a9fe::1]/",
    "http://[2002:808:808::1]/",
    "http://[2001:0:4136:e378:8000:63bf:3fff:fdd2]/",
    "http://[2a00:1450:4001:80b::5efe:7f00:1]/",
    "http://[2a00:1450:4001:80b:0:5efe:10.0.0.1]/",
    # private, link-local, metadata and other special networks
    "http://10.0.0.1/",
    "http://172.16.0.1/",
    "http://172.31.255.254/",
    "http://192.168.1.1/",
    "http://169.254.169.254/latest/meta-data/",
    "http://0xa9fea9fe/",
    "http://2852039166/",
    "http://[::ffff:a9fe:a9fe]/",
    "http://[fd00:ec2::254]/latest/meta-data/",
    "http://100.100.100.200/",
    "http://100.64.0.1/",
    "http://168.63.129.16/",
    "http://192.0.0.192/",
    "http://192.0.2.1/",
    "http://198.18.0.1/",
    "http://198.51.100.7/",
    "http://203.0.113.7/",
    "http://192.88.99.1/",
    "http://224.0.0.1/",
    "http://239.255.255.250/",
    "http://240.0.0.1/",
    "http://255.255.255.255/",
    "http://[fe80::1]/",
    "http://[fe80::1%25eth0]/",
    "http://[fe80::1%eth0]/",
    "http://[::1%25lo]:{p}/",
    "http://[fc00::1]/",
    "http://[fec0::1]/",
    "http://[ff02::1]/",
    "http://[2001:db8::1]/",
    "http://[3fff::1]/",
    "http://[100::1]/",
    "http://[4000::1]/",
    # unicode that some readers fold into digits, dots or letters
    "http://１２７.０.０.１:{p}/",
    "http://①②⑦.⓪.⓪.①:{p}/",
    "http://127。0。0。1:{p}/",
    "http://127．0．0．1:{p}/",
    "http://127｡0｡0｡1:{p}/",
    "http://١٢٧.٠.٠.١:{p}/",
    "http://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ:{p}/",
    "http://localhost\u00ad:{p}/",
    "http://local\u200bhost:{p}/",
    "http://127.0.0.1:８０８０/",
    "http://\ud800/",
    # another host than the one that a person sees
    "http://example.com@127.0.0.1:{p}/",
    "http://user:password@example.com/",
    "http://@example.com/",
    "http://example.com:80@127.0.0.1:{p}/",
    "http://127.0.0.1:{p}\\@example.com/",
    "http://example.com\\@127.0.0.1:{p}/",
    "http://127.0.0.1:{p}#@example.com/",
    "http://127.0.0.1:{p}?@example.com/",
    "http:\\\\127.0.0.1:{p}\\",
    "http:/127.0.0.1:{p}/",
    "http:127.0.0.1:{p}",
    "http:///127.0.0.1:{p}/",
    "//127.0.0.1:{p}/",
    "127.0.0.1:{p}",
    "http://%31%32%37.0.0.1:{p}/",
    "http://127%2e0%2e0%2e1:{p}/",
    "http://%6cocalhost:{p}/",
    "http://[127.0.0.1]:{p}/",
    "http://[::1]]:{p}/",
    "http://::1:{p}/",
    "http://[v1.127]:{p}/",
    # line breaks and other controls
    "http://127.0.0.1:{p}/\r\nHost: example.com",
    "http://example.com\r\n.127.0.0.1:{p}/",
    "http://exam\tple.com/",
    "http://example.com/\x00",
    " http://127.0.0.1:{p}/",
    "http://127.0.0.1 :{p}/",
    # other schemes
    "file:///etc/passwd",
    "ftp://127.0.0.1:{p}/",
    "gopher://127.0.0.1:{p}/_GET",
    "dict://127.0.0.1:{p}/",
    "ldap://127.0.0.1:{p}/",
    "ws://127.0.0.1:{p}/",
    "unix:///var/run/docker.sock",
    "http+unix://%2Fvar%2Frun%2Fdocker.sock/",
    "data:text/plain,x",
    "javascript:alert(1)",
    "jar:http://127.0.0.1:{p}/!/",
    "url:http://127.0.0.1:{p}/",
    # ports
    "http://example.com:22/",
    "http://example.com:6379/",
    "http://example.com:0/",
    "http://example.com:65536/",
    "http://example.com:99999999999/",
    "http://example.com:/",
    "http://example.com:-80/",
    "http://example.com:+80/",
    "http://example.com:80:{p}/",
    "http://example.com:0x50/",
    # not URLs
    "",
    "http://",
    "https://",
    "http://.",
    "http://..",
    "http://.example.com/",
    "http://example..com/",
    "http://-example.com/",
    "http://" + "a" * 64 + ".com/",
    "http://" + "a." * 130 + "com/",
    "http://example.com/" + "a" * 3000,
]


class Listener:
    """A socket on loopback that counts who connects."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]

    def connections(self) -> int:
        self._socket.setblocking(False)
        count = 0
        while True:
            try:
                self._socket.accept()[0].close()
            except BlockingIOError:
                return count
            count += 1

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def listener() -> Iterator[Listener]:
    found = Listener()
    yield found
    found.close()


class Answers:
    """A resolver that gives one list of addresses after the other, the last for ever, and counts."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self._answers = list(answers)
        self.asked: list[str] = []

    def __call__(self, host: str, _port: int) -> Sequence[str]:
        self.asked.append(host)
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


def get(url: str, settings: Settings, resolver: guard.Resolver | None = None, *, timeout: float = 5) -> httpx2.Response:
    with guard.client(settings, timeout=timeout, resolver=resolver) as client:
        return client.get(url)


def get_async(
    url: str, settings: Settings, resolver: guard.Resolver | None = None, *, timeout: float = 5
) -> httpx2.Response:
    async def fetch() -> httpx2.Response:
        async with guard.async_client(settings, timeout=timeout, resolver=resolver) as client:
            return await client.get(url)

    return anyio.run(fetch)


def get_door(
    url: str, settings: Settings, resolver: guard.Resolver | None = None, *, timeout: float = 5
) -> httpx2.Response:
    """As the deliverer does it: with the head of its requests, over a connection of its own."""

    async def fetch() -> httpx2.Response:
        connector = guard.PinnedConnector(settings, resolver=resolver)
        try:
            connection = await connector.open(url, HttpConnection, timeout)
        except (OSError, ValueError) as error:
            raise httpx2.ConnectError(f"{url} {error}") from error
        head = EndpointClient.for_url(url, settings, connector, ConnectionBudget(0)).head.replace(b"POST", b"GET", 1)
        try:
            reply = await connection.send(head + b"\r\n", timeout, timeout)
        except TimeoutError as error:
            raise httpx2.ReadTimeout(url) from error
        connection.close()
        await asyncio.sleep(0)
        return httpx2.Response(reply.status, content=reply.body)

    return asyncio.run(fetch())


both = pytest.mark.parametrize("get", [get, get_async, get_door], ids=["sync", "async", "door"])
Get = Callable[..., httpx2.Response]


@pytest.fixture
def no_sockets(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Every address that anything tried to connect to; nothing is let through."""
    tried: list[object] = []

    def connect(_: socket.socket, address: object) -> None:
        tried.append(address)
        raise OSError("this test opens no connection")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket.socket, "connect_ex", connect)
    return tried


# ------------------------------------------------------------------------------------------------- the hostile list


def test_the_list_is_long_enough() -> None:
    assert len(HOSTILE) == len(set(HOSTILE)) > 60


@pytest.mark.parametrize("template", HOSTILE, ids=lambda text: ascii(text)[:60])
def test_a_hostile_url_opens_no_connection(template: str, listener: Listener) -> None:
    url = template.replace("{p}", str(listener.port))
    # What a name in the list resolves to is this machine: the worst case.
    resolver = Answers(["127.0.0.1"])
    with pytest.raises(guard.TargetRefused) as refused:
        guard.check(url, CLOSED, resolver, field="webhook.url")
    (problem,) = refused.value.problems
    assert problem.field == "webhook.url"
    assert len(problem.message) > 15
    for attempt in (get, get_async, get_door):
        # The client is used on its own here, as if a caller had forgotten to check.
        with pytest.raises((guard.TargetRefused, httpx2.InvalidURL, httpx2.UnsupportedProtocol, UnicodeError)):
            attempt(url, CLOSED, resolver)
    assert listener.connections() == 0


@pytest.mark.parametrize("template", HOSTILE, ids=lambda text: ascii(text)[:60])
def test_a_hostile_url_asks_no_resolver_for_an_address_in_disguise(template: str) -> None:
    # The C library would turn "127.1" into loopback; a name is all that it is ever asked.
    resolver = Answers(["127.0.0.1"])
    with pytest.raises(guard.TargetRefused):
        guard.check(template.replace("{p}", "80"), CLOSED, resolver)
    assert all(host.rsplit(".", 1)[-1].isalpha() for host in resolver.asked)


@both
def test_a_listening_socket_is_reached_when_it_is_allowed(get: Get, listener: Listener) -> None:
    # The counter of the tests above can count: the same request reaches it once the network is opened.
    with pytest.raises(httpx2.ReadTimeout):
        get(f"http://127.0.0.1:{listener.port}/", LOOPBACK, timeout=0.2)
    assert listener.connections() == 1


@given(st.text())
def test_no_text_makes_parse_crash(text: str) -> None:
    for url in (text, "http://" + text, "https://" + text + "/", "http://[" + text + "]/"):
        try:
            target = guard.parse(url, CLOSED)
        except guard.TargetRefused:
            continue
        assert target.port in (80, 443)
        assert target.host.isascii()
        assert "%" not in target.host


# ------------------------------------------------------------------------------------------------------ the resolver


PRIVATE = ["10.0.0.1", "127.0.0.1", "169.254.169.254", "::1", "fe80::1%eth0", "::ffff:10.0.0.1", "64:ff9b::10.0.0.1"]


@both
@pytest.mark.parametrize("address", PRIVATE)
def test_a_name_of_a_private_address_is_refused(get: Get, address: str, no_sockets: list[object]) -> None:
    with pytest.raises(guard.TargetRefused, match="not on the public internet") as refused:
        get("https://hooks.example.com/", CLOSED, Answers([address]))
    assert address not in str(refused.value), "what an internal name resolves to is not told"
    assert no_sockets == []


@both
@pytest.mark.parametrize("answers", [["93.184.216.34", "10.0.0.1"], ["10.0.0.1", "93.184.216.34"]])
def test_one_private_address_among_public_ones_is_enough(
    get: Get, answers: list[str], no_sockets: list[object]
) -> None:
    with pytest.raises(guard.TargetRefused):
        get("https://hooks.example.com/", CLOSED, Answers(answers))
    assert no_sockets == []


@both
def test_the_connection_goes_to_the_address_that_was_checked(get: Get, no_sockets: list[object]) -> None:
    resolver = Answers(["93.184.216.34"], ["127.0.0.1"])
    with pytest.raises(httpx2.ConnectError):
        get("https://rebind.example.com/", CLOSED, resolver)
    assert resolver.asked == ["rebind.example.com"], "it is resolved once, not again by the socket"
    assert no_sockets == [("93.184.216.34", 443)]


@both
def test_an_address_in_the_url_is_given_to_no_resolver(get: Get, no_sockets: list[object]) -> None:
    resolver = Answers(["1.1.1.1"])
    with pytest.raises(httpx2.ConnectError):
        get("https://8.8.8.8/", CLOSED, resolver)
    assert resolver.asked == []
    assert no_sockets == [("8.8.8.8", 443)]


@both
def test_a_resolver_that_changes_its_mind_is_refused_at_the_next_connection(get: Get, no_sockets: list[object]) -> None:
    resolver = Answers(["93.184.216.34"], ["127.0.0.1"])
    guard.check("https://rebind.example.com/", CLOSED, resolver)
    with pytest.raises(guard.TargetRefused):
        get("https://rebind.example.com/", CLOSED, resolver)
    assert no_sockets == []


@both
def test_all_addresses_of_a_host_are_tried(get: Get, no_sockets: list[object]) -> None:
    with pytest.raises(httpx2.ConnectError):
        get("https://hooks.example.com/", CLOSED, Answers(["93.184.216.34", "93.184.216.34", "2606:2800:220:1::1"]))
    assert [address[0] for address in no_sockets if isinstance(address, tuple)] == [
        "93.184.216.34",
        "2606:2800:220:1::1",
    ]


@both
@pytest.mark.parametrize("answers", [[], ["not an address"], [""]])
def test_a_name_without_an_address_is_a_connection_error(
    get: Get, answers: list[str], no_sockets: list[object]
) -> None:
    with pytest.raises(httpx2.ConnectError, match=r"hooks\.example\.com"):
        get("https://hooks.example.com/", CLOSED, Answers(answers))
    assert no_sockets == []


def test_a_name_without_an_address_is_refused_when_it_is_registered() -> None:
    def nobody(host: str, port: int) -> list[str]:
        raise socket.gaierror(-2, "Name or service not known")

    with pytest.raises(guard.TargetRefused, match="no address"):
        guard.check("https://nowhere.example.com/", CLOSED, nobody)


def test_a_name_server_that_hangs_is_a_timeout() -> None:
    release = threading.Event()

    def hanging(host: str, port: int) -> list[str]:
        release.wait(10)
        return ["93.184.216.34"]

    async def fetch() -> None:
        async with guard.async_client(CLOSED, timeout=0.05, resolver=hanging) as client:
            try:
                with pytest.raises(httpx2.ConnectTimeout, match="name server"):
                    await client.get("https://slow.example.com/")
            finally:
                release.set()

    anyio.run(fetch)


# --------------------------------------------------------------------------------------------------- ports and schemes


def test_http_is_refused_unless_a_setting_allows_it() -> None:
    with pytest.raises(guard.TargetRefused, match="use https"):
        guard.parse("http://example.com/", Settings())
    assert guard.parse("https://example.com/", Settings()).port == 443
    assert guard.parse("http://example.com/", CLOSED).port == 80


@both
def test_a_client_whose_caller_did_not_check_refuses_all_the_same(get: Get, no_sockets: list[object]) -> None:
    public = Answers(["93.184.216.34"])
    with pytest.raises(guard.TargetRefused, match="use https"):
        get("http://hooks.example.com/", Settings(), public)
    with pytest.raises(guard.TargetRefused, match="user name or password"):
        get("https://user:password@hooks.example.com/", Settings(), public)
    assert no_sockets == []


@both
def test_another_port_is_for_allowed_networks_only(get: Get, no_sockets: list[object]) -> None:
    with pytest.raises(guard.TargetRefused, match="port 8080"):
        get("https://hooks.example.com:8080/", LOOPBACK, Answers(["93.184.216.34"]))
    with pytest.raises(guard.TargetRefused, match="port 8080"):
        get("https://hooks.example.com:8080/", LOOPBACK, Answers(["127.0.0.1", "93.184.216.34"]))
    assert no_sockets == []
    with pytest.raises(httpx2.ConnectError):
        get("https://hooks.example.com:8080/", LOOPBACK, Answers(["127.0.0.1"]))
    assert no_sockets == [("127.0.0.1", 8080)]


def test_opening_one_network_opens_no_other() -> None:
    guard.parse("http://127.0.0.1:9000/", LOOPBACK)
    guard.parse("http://[::ffff:127.0.0.1]:9000/", LOOPBACK)
    for url in ("http://127.0.0.2:9000/", "http://10.0.0.1/", "http://169.254.169.254/", "http://[::1]:9000/"):
        with pytest.raises(guard.TargetRefused):
            guard.parse(url, LOOPBACK)


def test_plain_urls_are_read() -> None:
    assert guard.parse("https://Hooks.Example.com/a/../b?c=d#e", CLOSED) == guard.Target(
        "https://hooks.example.com/b?c=d", "https", "hooks.example.com", 443, None
    )
    assert guard.parse("https://8.8.8.8/", CLOSED).address == ipaddress.ip_address("8.8.8.8")
    assert guard.parse("https://[2606:4700::1111]/", CLOSED).host == "2606:4700::1111"
    assert guard.parse("https://bücher.example/", CLOSED).host == "xn--bcher-kva.example"
    assert guard.parse("https://example.com/?next=http://user@127.0.0.1/", CLOSED).host == "example.com"


# --------------------------------------------------------------------------------------------------- which is public


V4 = st.ip_addresses(v=4)
V6 = st.ip_addresses(v=6)


@given(st.one_of(V4, V6, st.sampled_from([ipaddress.ip_address(a.split("%")[0]) for a in PRIVATE])))
def test_public_is_never_wider_than_the_registries_of_python(address: guard.Address) -> None:
    if guard.public(address):
        if isinstance(address, ipaddress.IPv6Address) and int(address) >> 32 in (0xFFFF, 0x64FF9B << 64):
            address = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        assert address.is_global
        assert not address.is_multicast
        assert not address.is_reserved


@given(V4)
def test_an_address_in_disguise_is_judged_by_what_it_is(address: ipaddress.IPv4Address) -> None:
    for prefix in ("::ffff:", "64:ff9b::"):
        assert guard.public(ipaddress.ip_address(f"{prefix}{address}")) == guard.public(address)
    for disguise in (f"::{address}", f"64:ff9b:1::{address}", f"2a00::5efe:{address}", f"2a00::200:5efe:{address}"):
        assert not guard.public(ipaddress.ip_address(disguise))
    number = int(address)
    assert not guard.public(ipaddress.IPv6Address((0x2002 << 112) | (number << 80)))
    assert not guard.public(ipaddress.IPv6Address((0x20010000 << 96) | (number << 64) | (number ^ 0xFFFFFFFF)))


@pytest.mark.parametrize(
    "text", ["8.8.8.8", "1.1.1.1", "93.184.216.34", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "2a00:1450::1"]
)
def test_the_public_internet_is_reachable(text: str) -> None:
    assert guard.public(ipaddress.ip_address(text))


# ---------------------------------------------------------------------------------------------------------- the client


class Receiver(ThreadingHTTPServer):
    """A receiver on loopback that keeps what it was asked."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str]]] = []
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Receiver

    def do_GET(self) -> None:
        self.server.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}))
        if self.path == "/redirect":
            self.send_response(302)
            self.send_header("Location", "http://169.254.169.254/")
        else:
            self.send_response(200)
        self.send_header("Set-Cookie", "session=1; Path=/")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@both
def test_the_host_header_keeps_the_name(get: Get, receiver: Receiver) -> None:
    port = receiver.server_address[1]
    answer = get(f"http://hooks.example.com:{port}/x", LOOPBACK, Answers(["127.0.0.1"]))
    assert (answer.status_code, answer.text) == (200, "ok")
    ((path, headers),) = receiver.requests
    assert path == "/x"
    assert headers["host"] == f"hooks.example.com:{port}"
    assert headers["accept-encoding"] == "identity"


@both
def test_a_redirect_is_not_followed(get: Get, receiver: Receiver) -> None:
    assert get(f"http://127.0.0.1:{receiver.server_address[1]}/redirect", LOOPBACK).status_code == 302
    assert len(receiver.requests) == 1


def test_a_caller_that_follows_redirects_is_guarded_at_each_hop(receiver: Receiver) -> None:
    with guard.client(LOOPBACK) as client, pytest.raises(guard.TargetRefused):
        client.get(f"http://127.0.0.1:{receiver.server_address[1]}/redirect", follow_redirects=True)


@both
def test_a_proxy_in_the_environment_is_not_used(
    get: Get, receiver: Receiver, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{listener.port}")
    assert get(f"http://127.0.0.1:{receiver.server_address[1]}/", LOOPBACK).status_code == 200
    assert listener.connections() == 0


def test_cookies_are_not_kept_between_requests(receiver: Receiver) -> None:
    with guard.client(LOOPBACK) as client:
        for _ in range(2):
            client.get(f"http://127.0.0.1:{receiver.server_address[1]}/")
        assert len(client.cookies) == 0
    assert all("cookie" not in headers for _, headers in receiver.requests)
