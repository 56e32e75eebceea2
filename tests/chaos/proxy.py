"""A TCP proxy whose connection can be made slow, cut, half-open or silent, and then mended.

| mode         | connections that are open                    | new ones                    |
|--------------|----------------------------------------------|-----------------------------|
| `SLOW`       | each chunk waits ``latency`` seconds         | the same                    |
| `FAR`        | each chunk waits `FAR_SECONDS`               | the same                    |
| `CUT`        | end at once                                  | are accepted and end        |
| `HALF_OPEN`  | what the server says is swallowed            | the same                    |
| `BLACK_HOLE` | nothing moves, nobody is told (pulled cable) | the same                    |

What a half-open connection has swallowed cannot be given back, so mending ends those connections; the others go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from enum import StrEnum
from typing import Any
from urllib.parse import urlsplit, urlunsplit

FAR_SECONDS = 0.04  #: half of a round trip


class Mode(StrEnum):
    OPEN = "open"
    SLOW = "slow"
    FAR = "far"
    CUT = "cut"
    HALF_OPEN = "half_open"
    BLACK_HOLE = "black_hole"


class Proxy:
    """One way to one server. Made by `Proxies`; its modes may be set from any thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, host: str, target: tuple[str, int]) -> None:
        self.host = host
        self.port = 0
        self.mode = Mode.OPEN
        self.latency = 0.3  #: seconds, of `SLOW`
        self._loop = loop
        self._target = target
        self._flows = asyncio.Event()
        self._flows.set()
        self._open: dict[asyncio.StreamWriter, bool] = {}  # whether something of it was swallowed

    def url(self, url: str) -> str:
        """The same URL, through this proxy."""
        parts = urlsplit(url)
        before, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{before}{at}{self.host}:{self.port}"))

    def set(self, mode: Mode) -> None:
        """Change how it behaves, from now on."""
        asyncio.run_coroutine_threadsafe(self._set(mode), self._loop).result(5)

    async def start(self) -> None:
        self.server = await asyncio.start_server(self._serve, self.host, 0)
        self.port = self.server.sockets[0].getsockname()[1]

    async def _set(self, mode: Mode) -> None:
        self.mode = mode
        if mode is Mode.BLACK_HOLE:
            self._flows.clear()
        else:
            self._flows.set()
        for writer, swallowed in list(self._open.items()):
            if mode is Mode.CUT or (swallowed and mode is not Mode.HALF_OPEN):
                writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.mode is Mode.CUT:
            writer.transport.abort()
            return
        self._open[writer] = False
        try:
            await self._flows.wait()
            there, onward = await asyncio.open_connection(*self._target)
        except OSError:
            del self._open[writer]
            writer.transport.abort()
            return
        try:
            await asyncio.gather(
                self._carry(reader, onward, writer, answers=False), self._carry(there, writer, writer, answers=True)
            )
        finally:
            self._open.pop(writer, None)
            for one in (writer, onward):
                one.transport.abort()

    async def _carry(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, near: asyncio.StreamWriter, *, answers: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                if self.mode is Mode.SLOW:
                    await asyncio.sleep(self.latency)
                elif self.mode is Mode.FAR:
                    await asyncio.sleep(FAR_SECONDS)
                await self._flows.wait()
                if answers and self.mode is Mode.HALF_OPEN:
                    self._open[near] = True
                    continue
                target.write(data)
                await target.drain()
        # the other direction ends with this one: none of the farm's protocols speaks on after a half close
        with contextlib.suppress(OSError):
            await self._flows.wait()
            target.close()
        near.close()


class Proxies:
    """A thread with all proxies of a farm."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._all: list[Proxy] = []
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxies", daemon=True)
        self._thread.start()

    def to(self, url: str, host: str = "127.0.0.1") -> Proxy:
        """A proxy to the server that a URL names, listening on ``host``."""
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        proxy = Proxy(self._loop, host, (parts.hostname, parts.port))
        self._run(proxy.start())
        self._all.append(proxy)
        return proxy

    def close(self) -> None:
        """End all of them."""
        with contextlib.suppress(TimeoutError):
            self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    async def _end(self) -> None:
        for proxy in self._all:
            proxy.server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(5)
