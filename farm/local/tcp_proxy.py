"""TCP proxy of a farm on one machine: makes loopback servers reachable on one chosen address.

The embedded servers stay on loopback, where their lesser ports have no authentication; this process carries the bytes
of the few that ask for a password or a key. What passes is as private as the network: give the address of a private
network or a VPN, never one of the internet.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ipaddress
import socket
import sys
from functools import partial

from farm.errors import SetupError
from farm.local.ports import LOOPBACK

_CHUNK = 256 * 2**10  #: bytes carried at once


def check(address: str) -> str:
    """The address, if this machine has it and it is not loopback's. Raises `SetupError`."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError as error:
        raise SetupError(
            f"--listen {address!r} is not an IP address: give one of this machine's, such as 10.0.0.5"
        ) from error
    if found.version != 4 or found.is_loopback or found.is_unspecified or found.is_multicast:
        raise SetupError(
            f"--listen {address} cannot be reached from another machine: give this machine's own IPv4 "
            "address in a private network, such as 10.0.0.5"
        )
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError as error:
            raise SetupError(f"--listen {address}: this machine has no such address ({error.strerror})") from error
    return address


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
    except OSError:
        writer.transport.abort()


async def _passage(inside: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        try:
            onward, back = await asyncio.open_connection(LOOPBACK, inside)
        except OSError:  # the server restarts: refuse as it would
            writer.transport.abort()
            return
        for transport in (writer, back):
            _notice_death(transport)
        try:
            await asyncio.gather(_carry(reader, back), _carry(onward, writer))
        finally:
            back.close()
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def _notice_death(writer: asyncio.StreamWriter) -> None:
    """Detect a peer that vanished within a minute, and close its connection."""
    own = writer.get_extra_info("socket")
    own.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    own.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if sys.platform == "linux":
        own.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15)
        own.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15)
        own.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)


async def serve_proxy(address: str, ports: tuple[tuple[int, int], ...]) -> None:
    """Carry connections to ports of an address to ports of loopback, until canceled; each pair is (outside, inside)."""
    servers = [await asyncio.start_server(partial(_passage, inside), address, outside) for outside, inside in ports]
    async with contextlib.AsyncExitStack() as stack:
        for server in servers:
            await stack.enter_async_context(server)
        await asyncio.gather(*(server.serve_forever() for server in servers))


def _pair(text: str) -> tuple[int, int]:
    outside, _, inside = text.partition(":")
    return int(outside), int(inside or outside)


def main() -> None:
    """``python -m farm.local.tcp_proxy ADDRESS PORT…``; a port may be ``OUTSIDE:INSIDE``."""
    parser = argparse.ArgumentParser(prog="farm.local.tcp_proxy")
    parser.add_argument("address")
    parser.add_argument("ports", type=_pair, nargs="+")
    given = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve_proxy(given.address, tuple(given.ports)))


if __name__ == "__main__":
    main()
