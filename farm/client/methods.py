"""The methods of both clients, each described once: `Farm` answers them, with `AsyncFarm` they are awaited."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import update_wrapper
from typing import Any, Generic, ParamSpec, Self, TypeVar, overload

from farm.client import calls, flows
from farm.client.steps import Call, Flow, Streamed

P = ParamSpec("P")
T = TypeVar("T")


class Blocking:
    """A client that does what it is asked before it returns."""

    def send(self, call: Call[T]) -> T:
        """One request; what its answer means."""
        raise NotImplementedError

    def follow(self, flow: Flow[T]) -> T:
        """A conversation to its end."""
        raise NotImplementedError

    def stream(self, streamed: Streamed[T]) -> Iterator[T]:
        """The values of a conversation, as they come."""
        raise NotImplementedError


class Awaiting:
    """A client whose methods are awaited, and whose streams are iterated with ``async for``."""

    async def send(self, call: Call[T]) -> T:
        """One request; what its answer means."""
        raise NotImplementedError

    async def follow(self, flow: Flow[T]) -> T:
        """A conversation to its end."""
        raise NotImplementedError

    def stream(self, streamed: Streamed[T]) -> AsyncIterator[T]:
        """The values of a conversation, as they come."""
        raise NotImplementedError


class _Described(Generic[P]):
    """A method that a function describes, whose documentation and parameters it has."""

    def __init__(self, describe: Callable[P, Any]) -> None:
        self.describe = describe
        self.__doc__ = describe.__doc__

    def _bound(self, act: Callable[[Any], Any]) -> Callable[P, Any]:
        def method(*args: P.args, **kwargs: P.kwargs) -> Any:
            return act(self.describe(*args, **kwargs))

        return update_wrapper(method, self.describe)


class Method(_Described[P], Generic[P, T]):
    """One request."""

    def __init__(self, describe: Callable[P, Call[T]]) -> None:
        super().__init__(describe)

    @overload
    def __get__(self, client: None, owner: type) -> Self: ...
    @overload
    def __get__(self, client: Blocking, owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, client: Awaiting, owner: type) -> Callable[P, Coroutine[Any, Any, T]]: ...
    def __get__(self, client: Blocking | Awaiting | None, owner: type) -> Any:
        """The method of that client."""
        return self if client is None else self._bound(client.send)


class Talk(_Described[P], Generic[P, T]):
    """A conversation."""

    def __init__(self, describe: Callable[P, Flow[T]]) -> None:
        super().__init__(describe)

    @overload
    def __get__(self, client: None, owner: type) -> Self: ...
    @overload
    def __get__(self, client: Blocking, owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, client: Awaiting, owner: type) -> Callable[P, Coroutine[Any, Any, T]]: ...
    def __get__(self, client: Blocking | Awaiting | None, owner: type) -> Any:
        """The method of that client."""
        return self if client is None else self._bound(client.follow)


class Series(_Described[P], Generic[P, T]):
    """A conversation that hands over values one by one."""

    def __init__(self, describe: Callable[P, Streamed[T]]) -> None:
        super().__init__(describe)

    @overload
    def __get__(self, client: None, owner: type) -> Self: ...
    @overload
    def __get__(self, client: Blocking, owner: type) -> Callable[P, Iterator[T]]: ...
    @overload
    def __get__(self, client: Awaiting, owner: type) -> Callable[P, AsyncIterator[T]]: ...
    def __get__(self, client: Blocking | Awaiting | None, owner: type) -> Any:
        """The method of that client."""
        return self if client is None else self._bound(client.stream)


class Methods:
    """All that a farm can be asked."""

    # jobs
    submit = Talk(flows.submit)
    submit_body = Method(calls.submit_body)
    upload = Method(calls.upload)
    get = Method(calls.get)
    list = Series(calls.jobs)
    cancel = Method(calls.cancel)
    retry = Method(calls.retry)
    cancel_jobs = Method(calls.cancel_jobs)
    retry_jobs = Method(calls.retry_jobs)
    wait = Talk(flows.wait)
    run = Talk(flows.run)
    download = Talk(flows.download)
    events = Series(flows.events)

    # batches
    submit_batch = Method(calls.submit_batch)
    check_batch = Method(calls.check_batch)
    batch = Method(calls.batch)
    batches = Series(calls.batches)
    results = Series(calls.results)
    as_completed = Series(flows.completed)
    batch_errors = Series(calls.batch_errors)
    cancel_batch = Method(calls.cancel_batch)
    retry_batch = Method(calls.retry_batch)
    pause_batch = Method(calls.pause_batch)
    resume_batch = Method(calls.resume_batch)
    edit_batch = Method(calls.edit_batch)
    delete_batch = Method(calls.delete_batch)
    wait_batch = Talk(flows.wait_batch)

    # the farm
    models = Method(calls.models)
    workers = Method(calls.workers)
    drain_worker = Method(calls.drain_worker)
    stop_worker = Method(calls.stop_worker)
    resume_worker = Method(calls.resume_worker)
    pauses = Method(calls.pauses)
    pause = Method(calls.pause)
    resume = Method(calls.resume)
    keys = Method(calls.keys)
    make_key = Method(calls.make_key)
    revoke_key = Method(calls.revoke_key)
    rotate_key = Method(calls.rotate_key)
    tenants = Method(calls.tenants)
    make_tenant = Method(calls.make_tenant)
    change_tenant = Method(calls.change_tenant)
    remove_tenant = Method(calls.remove_tenant)
    usage = Method(calls.usage)

    # webhooks
    endpoints = Series(calls.endpoints)
    add_endpoint = Method(calls.add_endpoint)
    endpoint = Method(calls.endpoint)
    edit_endpoint = Method(calls.edit_endpoint)
    remove_endpoint = Method(calls.remove_endpoint)
    endpoint_secret = Method(calls.endpoint_secret)
    rotate_secret = Method(calls.rotate_secret)
    test_endpoint = Method(calls.test_endpoint)
    deliveries = Series(calls.deliveries)
    delivery = Method(calls.delivery)
    resend = Method(calls.resend)
    resend_dead = Method(calls.resend_dead)
