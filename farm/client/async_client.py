"""The same client for asyncio: what `Farm` does step by step, awaited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, Self, TypeVar, Unpack

import httpx2

from farm.api_types import BatchDefaults
from farm.client.errors import ApiError
from farm.client.methods import Awaiting, Methods
from farm.client.models import Batch, Result
from farm.client.protocol import Call, Emit, Flow, Open, Sleep, Step, Stream, Streamed, StreamFormat
from farm.client.requests import Source, submit_batch
from farm.client.transport import NO_ANSWER, Transport, line

T = TypeVar("T")


class AsyncFarm(Methods, Awaiting):
    """A render farm, through its API, for asyncio. Parameters and rules are those of `Farm`.

    async with AsyncFarm() as farm:
        rendered = await farm.run(prompt="a red ball on a blue background")
        async for result in (await farm.submit_many(requests)).as_completed():
            ...
    """

    def __init__(
        self, url: str | None = None, api_key: str | None = None, *, retries: int = 4, timeout: float = 30.0
    ) -> None:
        self._transport = Transport(url, api_key, retries, timeout)
        self.url = self._transport.url
        self._http = httpx2.AsyncClient(**self._transport.options)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def submit_many(
        self,
        source: Source,
        *,
        content_type: str | None = None,
        name: str | None = None,
        on_error: Literal["stop", "skip"] | None = None,
        idempotency_key: str | None = None,
        **defaults: Unpack[BatchDefaults],
    ) -> AsyncSubmitted:
        """Submit many jobs as one batch, as `submit_batch` does, to take their results as they come."""
        call = submit_batch(
            source,
            content_type=content_type,
            name=name,
            on_error=on_error,
            idempotency_key=idempotency_key,
            **defaults,
        )
        return AsyncSubmitted(self, await self.send(call))

    # -- how ---------------------------------------------------------------------------------------------------------

    async def send(self, call: Call[T]) -> T:
        """One request, sent again where that may help; what its answer means."""

        async def sent() -> httpx2.Response:
            return await self._http.send(self._request(call), follow_redirects=call.foreign)

        result: T = self._transport.meaning(call, await self._answered(call, sent))
        return result

    async def follow(self, flow: Flow[T]) -> T:
        """A conversation to its end."""
        async with _Conversation(self) as talk:
            answer: Any = None
            error: Exception | None = None
            while True:
                try:
                    step = flow.send(answer) if error is None else flow.throw(error)
                except StopIteration as end:
                    result: T = end.value
                    return result
                answer, error = await talk.take(step)

    async def stream(self, streamed: Streamed[T]) -> AsyncIterator[T]:
        """The values of a conversation, as they come."""
        async with _Conversation(self) as talk:
            flow = streamed.steps()
            answer: Any = None
            error: Exception | None = None
            while True:
                try:
                    step = flow.send(answer) if error is None else flow.throw(error)
                except StopIteration:
                    return
                if isinstance(step, Emit):
                    yield step.value
                    answer = error = None
                else:
                    answer, error = await talk.take(step)

    def _request(self, call: Call[Any]) -> httpx2.Request:
        content = None if call.content is None else _read(call.content)
        return self._http.build_request(content=content, **self._transport.request(call))

    async def _answered(self, call: Call[Any], send: Callable[[], Awaitable[httpx2.Response]]) -> httpx2.Response:
        """Send until there is an answer worth returning. Raises `Unreachable`."""
        attempt = 0
        while True:
            try:
                response = await send()
            except NO_ANSWER as error:
                pause = self._transport.after_error(call, attempt, error)
            else:
                again = self._transport.after_answer(call, attempt, response)
                if again is None:
                    return response
                await response.aclose()
                pause = again
            await asyncio.sleep(pause)
            attempt += 1

    async def _opened(self, asked: Open) -> httpx2.Response:
        async def send() -> httpx2.Response:
            return await self._http.send(self._http.build_request(**self._transport.stream(asked)), stream=True)

        # a stream of events that breaks is looked after by whoever follows it
        response = await (send() if asked.form is StreamFormat.EVENTS else self._answered(asked.call, send))
        if not response.is_success:
            try:
                raise ApiError.of(response.status_code, await response.aread())
            finally:
                await response.aclose()
        return response


async def _read(content: Callable[[], Iterable[bytes]]) -> AsyncIterator[bytes]:
    """A body's parts, each read by a thread: it may come from a slow disk."""
    parts = iter(content())
    while (part := await asyncio.to_thread(next, parts, None)) is not None:
        yield part


async def _lines(response: httpx2.Response) -> AsyncIterator[Any]:
    async for text in response.aiter_lines():
        if text:
            yield line(text)


class _Conversation:
    """Takes the steps of one conversation, and keeps the answer that is open."""

    def __init__(self, farm: AsyncFarm) -> None:
        self._farm = farm
        self._response: httpx2.Response | None = None
        self._items: AsyncIterator[Any] | None = None
        self._form = StreamFormat.LINES

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._close()

    async def take(self, step: Step) -> tuple[Any, Exception | None]:
        """What came of it, or what went wrong."""
        try:
            return await self._taken(step), None
        except Exception as error:  # noqa: BLE001 - it is thrown where the step was asked for
            return None, error

    async def _taken(self, step: Step) -> Any:
        match step:
            case Call():
                return await self._farm.send(step)
            case Sleep():
                await asyncio.sleep(step.seconds)
            case Open():
                await self._close()
                self._response = await self._farm._opened(step)  # noqa: SLF001
                self._form = step.form
                source = (
                    httpx2.EventSource(self._response) if step.form is StreamFormat.EVENTS else _lines(self._response)
                )
                self._items = aiter(source)
            case Stream.NEXT:
                try:
                    return None if self._items is None else await anext(self._items, None)
                except httpx2.TransportError as error:
                    if self._form is StreamFormat.EVENTS:
                        raise
                    raise self._farm._transport.broken(error) from error  # noqa: SLF001
            case Stream.CLOSE:
                await self._close()
            case _:
                raise AssertionError(f"{step!r} is no step of a conversation with one end")
        return None

    async def _close(self) -> None:
        if self._response is not None:
            await self._response.aclose()
            self._response = None
        self._items = None


@dataclass(frozen=True)
class AsyncSubmitted:
    """Jobs that were submitted together."""

    _farm: AsyncFarm
    batch: Batch

    def as_completed(self, *, timeout: float | None = None) -> AsyncIterator[Result]:
        """Their results as they end, each once. Raises `WaitedTooLong` after ``timeout`` seconds."""
        return self._farm.as_completed(self.batch, timeout=timeout)
