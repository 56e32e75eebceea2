"""The methods of both clients, each described once: `Farm` answers them, with `AsyncFarm` they are awaited."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import update_wrapper
from typing import Any, Generic, ParamSpec, Self, TypeVar, overload

from farm.client import model_push, operations, requests
from farm.client.protocol import Call, Flow, Streamed

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
    """A conversation that yields values one by one."""

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
    submit = Talk(operations.submit)
    submit_body = Method(requests.submit_body)
    upload = Method(requests.upload)
    get = Method(requests.get)
    list = Series(requests.jobs)
    cancel = Method(requests.cancel)
    retry = Method(requests.retry)
    cancel_jobs = Method(requests.cancel_jobs)
    retry_jobs = Method(requests.retry_jobs)
    wait = Talk(operations.wait)
    run = Talk(operations.run)
    download = Talk(operations.download)
    events = Series(operations.events)

    # batches
    submit_batch = Method(requests.submit_batch)
    check_batch = Method(requests.check_batch)
    sweep = Method(requests.sweep)
    check_sweep = Method(requests.check_sweep)
    batch = Method(requests.batch)
    batches = Series(requests.batches)
    results = Series(requests.results)
    as_completed = Series(operations.completed)
    batch_errors = Series(requests.batch_errors)
    cancel_batch = Method(requests.cancel_batch)
    retry_batch = Method(requests.retry_batch)
    pause_batch = Method(requests.pause_batch)
    resume_batch = Method(requests.resume_batch)
    edit_batch = Method(requests.edit_batch)
    delete_batch = Method(requests.delete_batch)
    wait_batch = Talk(operations.wait_batch)

    # the farm
    health = Method(requests.health)
    readiness = Method(requests.readiness)
    models = Method(requests.models)
    model = Method(requests.model)
    unready_models = Method(requests.unready_models)
    add_model = Method(requests.add_model)
    wait_model = Talk(operations.wait_model)
    push_model = Talk(model_push.push_model)
    change_model = Method(requests.change_model)
    remove_model = Method(requests.remove_model)
    workers = Method(requests.workers)
    numerics = Method(requests.numerics)
    audit = Series(requests.audit)
    outputs = Series(requests.outputs)
    output_labels = Method(requests.output_labels)
    label_outputs = Method(requests.label_outputs)
    delete_outputs = Method(requests.delete_outputs)
    delete_job = Method(requests.delete_job)
    check_outputs = Method(requests.check_outputs)
    repair_outputs = Method(requests.repair_outputs)
    drain_worker = Method(requests.drain_worker)
    stop_worker = Method(requests.stop_worker)
    resume_worker = Method(requests.resume_worker)
    pauses = Method(requests.pauses)
    pause = Method(requests.pause)
    resume = Method(requests.resume)
    keys = Method(requests.keys)
    make_key = Method(requests.make_key)
    revoke_key = Method(requests.revoke_key)
    rotate_key = Method(requests.rotate_key)
    join_tokens = Method(requests.join_tokens)
    make_join_token = Method(requests.make_join_token)
    revoke_join_token = Method(requests.revoke_join_token)
    tenants = Method(requests.tenants)
    make_tenant = Method(requests.make_tenant)
    change_tenant = Method(requests.change_tenant)
    remove_tenant = Method(requests.remove_tenant)
    usage = Method(requests.usage)

    # webhooks
    endpoints = Series(requests.endpoints)
    add_endpoint = Method(requests.add_endpoint)
    endpoint = Method(requests.endpoint)
    edit_endpoint = Method(requests.edit_endpoint)
    remove_endpoint = Method(requests.remove_endpoint)
    endpoint_secret = Method(requests.endpoint_secret)
    rotate_secret = Method(requests.rotate_secret)
    test_endpoint = Method(requests.test_endpoint)
    deliveries = Series(requests.deliveries)
    delivery = Method(requests.delivery)
    resend = Method(requests.resend)
    resend_dead = Method(requests.resend_dead)
