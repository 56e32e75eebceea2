"""What a receiver's answer is read as: the quick reading says nothing that the parser would not say."""

from __future__ import annotations

import itertools

import h11

from farm.egress import connection

FIRST = [
    b"HTTP/1.1 200 OK",
    b"HTTP/1.1 204 No Content",
    b"HTTP/1.1 299",
    b"HTTP/1.0 200 OK",
    b"HTTP/1.1 500 X",
    b"HTTP/1.1",
]
LINES = [
    b"Content-Length: 2",
    b"content-length:0",
    b"Content-Length: 2, 2",
    b"Content-Length: -2",
    b"Content-Length: +2",
    b"Content-Length: 2 2",
    b"Transfer-Encoding: chunked",
    b"Connection: close",
    b"Connection: Keep-Alive",
    b"Connection: keep-alive, Upgrade",
    b"Server: x",
    b" folded: Content-Length: 2",
    b"Server : x",
    b"no colon",
    b": no name",
    b"X: \x00",
    b"X: \r",
    b"X-\x80: y",
]
BODIES = [b"", b"o", b"ok", b"okHTTP/1.1 200 OK\r\n\r\n", b"2\r\nok\r\n0\r\n\r\n"]


def test_an_answer_that_is_read_quickly_is_what_the_parser_reads() -> None:
    quickly = 0
    for first, body, count in itertools.product(FIRST, BODIES, range(3)):
        for lines in itertools.permutations(LINES, count):
            quickly += agrees(b"\r\n".join([first, *lines]) + b"\r\n\r\n" + body)
    assert quickly > 20


def agrees(data: bytes) -> bool:
    """Whether an answer is read quickly; if so, the parser must read the same."""
    quick = connection._plain(data)
    if quick is None:
        return False
    parser = connection._parser()
    parser.receive_data(data)
    answer = parser.next_event()
    assert isinstance(answer, h11.Response)
    read = b""
    while isinstance(event := parser.next_event(), h11.Data):
        read += event.data
    assert isinstance(event, h11.EndOfMessage)
    assert (quick.status, quick.body) == (answer.status_code, read)
    # the connection may carry another request, and nothing is left that would pass for its answer
    assert (parser.our_state, parser.their_state, parser.trailing_data[0]) == (h11.DONE, h11.DONE, b"")
    return True


def test_the_common_acknowledgements_are_read_quickly() -> None:
    assert connection._plain(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nok") is not None
    assert connection._plain(b"HTTP/1.1 204 No Content\r\nServer: x\r\n\r\n") is not None
