"""The farm from outside: a client that speaks the public HTTP API and nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Self, TypeVar, Unpack

import httpx2

from farm.api_types import BatchDefaults
from farm.client.errors import ApiError
from farm.client.methods import Blocking, Methods
from farm.client.models import Batch, Result
from farm.client.protocol import Call, Emit, Flow, Open, Sleep, Step, Stream, Streamed, StreamFormat
from farm.client.requests import Source, submit_batch
from farm.client.transport import NO_ANSWER, Transport, line

T = TypeVar("T")


class Farm(Methods, Blocking):
    """A render farm, through its API.

    ``url`` and ``api_key`` come from ``FARM_URL`` and ``FARM_API_KEY`` when they are not given. A request that found
    nobody, or an answer of 429, 502, 503 or 504, is sent again up to ``retries`` times. Submitting always carries an
    ``Idempotency-Key``, so a repeated submit never makes two jobs.

        with Farm() as farm:
            rendered = farm.run(prompt="a red ball on a blue background")
    """

    def __init__(
        self, url: str | None = None, api_key: str | None = None, *, retries: int = 4, timeout: float = 30.0
    ) -> None:
        self._transport = Transport(url, api_key, retries, timeout)
        self.url = self._transport.url
        self._http = httpx2.Client(**self._transport.options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def submit_many(
        self,
        source: Source,
        *,
        content_type: str | None = None,
        name: str | None = None,
        on_error: Literal["stop", "skip"] | None = None,
        idempotency_key: str | None = None,
        **defaults: Unpack[BatchDefaults],
    ) -> Submitted:
        """Submit many jobs as one batch, as `submit_batch` does, to take their results as they come."""
        call = submit_batch(
            source,
            content_type=content_type,
            name=name,
            on_error=on_error,
            idempotency_key=idempotency_key,
            **defaults,
        )
        return Submitted(self, self.send(call))

    # -- how ---------------------------------------------------------------------------------------------------------

    def send(self, call: Call[T]) -> T:
        """One request, sent again where that may help; what its answer means."""
        response = self._answered(call, lambda: self._http.send(self._request(call), follow_redirects=call.foreign))
        result: T = self._transport.meaning(call, response)
        return result

    def follow(self, flow: Flow[T]) -> T:
        """A conversation to its end."""
        with _Conversation(self) as talk:
            answer: Any = None
            error: Exception | None = None
            while True:
                try:
                    step = flow.send(answer) if error is None else flow.throw(error)
                except StopIteration as end:
                    result: T = end.value
                    return result
                answer, error = talk.take(step)

    def stream(self, streamed: Streamed[T]) -> Iterator[T]:
        """The values of a conversation, as they come."""
        with _Conversation(self) as talk:
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
                    answer, error = talk.take(step)

    def _request(self, call: Call[Any]) -> httpx2.Request:
        content = None if call.content is None else call.content()
        return self._http.build_request(content=content, **self._transport.request(call))

    def _answered(self, call: Call[Any], send: Callable[[], httpx2.Response]) -> httpx2.Response:
        """Send until there is an answer worth returning. Raises `Unreachable`."""
        attempt = 0
        while True:
            try:
                response = send()
            except NO_ANSWER as error:
                pause = self._transport.after_error(call, attempt, error)
            else:
                again = self._transport.after_answer(call, attempt, response)
                if again is None:
                    return response
                response.close()
                pause = again
            time.sleep(pause)
            attempt += 1

    def _opened(self, asked: Open) -> httpx2.Response:
        def send() -> httpx2.Response:
            return self._http.send(self._http.build_request(**self._transport.stream(asked)), stream=True)

        # a stream of events that breaks is looked after by whoever follows it
        response = send() if asked.form is StreamFormat.EVENTS else self._answered(asked.call, send)
        if not response.is_success:
            try:
                raise ApiError.of(response.status_code, response.read())
            finally:
                response.close()
        return response


class _Conversation:
    """Takes the steps of one conversation, and keeps the answer that is open."""

    def __init__(self, farm: Farm) -> None:
        self._farm = farm
        self._response: httpx2.Response | None = None
        self._items: Iterator[Any] = iter(())
        self._form = StreamFormat.LINES

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def take(self, step: Step) -> tuple[Any, Exception | None]:
        """What came of it, or what went wrong."""
        try:
            return self._taken(step), None
        except Exception as error:  # noqa: BLE001 - it is thrown where the step was asked for
            return None, error

    def _taken(self, step: Step) -> Any:
        match step:
            case Call():
                return self._farm.send(step)
            case Sleep():
                time.sleep(step.seconds)
            case Open():
                self._close()
                self._response = self._farm._opened(step)  # noqa: SLF001
                self._form = step.form
                self._items = (
                    iter(httpx2.EventSource(self._response))
                    if step.form is StreamFormat.EVENTS
                    else (line(text) for text in self._response.iter_lines() if text)
                )
            case Stream.NEXT:
                try:
                    return next(self._items, None)
                except httpx2.TransportError as error:
                    if self._form is StreamFormat.EVENTS:
                        raise
                    raise self._farm._transport.broken(error) from error  # noqa: SLF001
            case Stream.CLOSE:
                self._close()
            case _:
                raise AssertionError(f"{step!r} is no step of a conversation with one end")
        return None

    def _close(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None
        self._items = iter(())


@dataclass(frozen=True)
class Submitted:
    """Jobs that were submitted together."""

    _farm: Farm
    batch: Batch

    def as_completed(self, *, timeout: float | None = None) -> Iterator[Result]:
        """Their results as they end, each once. Raises `WaitedTooLong` after ``timeout`` seconds."""
        return self._farm.as_completed(self.batch, timeout=timeout)
