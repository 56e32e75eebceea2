"""Servers that are a round trip away: TCP forwarders on loopback that delay what passes. Needs no root."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from urllib.parse import urlsplit, urlunsplit


class FarServers:
    """Forwarders with a delay of half a round trip each way; a new connection waits for a whole one first."""

    def __init__(self, milliseconds: float) -> None:
        self.half = milliseconds / 2000
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="far", daemon=True)
        self._thread.start()

    def url(self, url: str) -> str:
        """The same server, that far away."""
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        listening = asyncio.run_coroutine_threadsafe(self._listen(parts.hostname, parts.port), self._loop)
        before, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{before}{at}127.0.0.1:{listening.result(5)}"))

    def close(self) -> None:
        """Carry nothing any more."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    async def _end(self) -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _listen(self, host: str, port: int) -> int:
        async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await asyncio.sleep(2 * self.half)  # the handshake
            try:
                onward, back = await asyncio.open_connection(host, port)
            except OSError:
                writer.close()
                return
            with contextlib.suppress(asyncio.CancelledError):  # at the end; asyncio logs a canceled handler
                await asyncio.gather(self._pump(reader, back), self._pump(onward, writer))

        server = await asyncio.start_server(carry, "127.0.0.1", 0)
        return int(server.sockets[0].getsockname()[1])

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one direction: every chunk arrives half a round trip after it was sent, however many are under way."""
        chunks: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def send() -> None:
            while True:
                due, chunk = await chunks.get()
                await asyncio.sleep(max(0.0, due - self._loop.time()))
                if not chunk:
                    break
                writer.write(chunk)
                await writer.drain()
            writer.close()

        sending = asyncio.ensure_future(send())
        try:
            while chunk := await reader.read(65536):
                chunks.put_nowait((self._loop.time() + self.half, chunk))
        except OSError:
            pass
        chunks.put_nowait((self._loop.time() + self.half, b""))
        await asyncio.gather(sending, return_exceptions=True)
