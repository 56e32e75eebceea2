"""``Idempotency-Key`` of requests that make something other than jobs: the second one gets the first one's answer.

What is made and the answer are one transaction: a process that dies in between leaves neither, and the repeated request
makes it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, TypeVar

from fastapi import Depends, Header, Request
from pydantic import BaseModel

from farm.errors import BadInput
from farm.lifecycle import IdempotencyKey
from farm.store.secret_box import seal, unseal
from farm.store.unit_of_work import UnitOfWork

T = TypeVar("T", bound=BaseModel)

Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=r"^[!-~]([ -~]*[!-~])?$",
        description="Your name for this request. Sent again with the same body, it returns what it made.",
    ),
]


@dataclass(frozen=True)
class Idempotency:
    """The key of one request, if it has one."""

    tenant_id: str
    key: IdempotencyKey | None

    def once(self, unit: UnitOfWork, shape: type[T], make: Callable[[], T]) -> T:
        """What ``make`` gives, or what it gave to an earlier request with this key.

        Args:
            unit: Where ``make`` writes.
            shape: The answer's schema.
            make: Called at most once.

        Raises:
            BadInput: The key was used for a different request.
        """
        if self.key is None:
            return make()
        held = unit.jobs.reserve_key(self.tenant_id, self.key.key, self.key.request_hash)
        if held is None:
            made = make()
            unit.jobs.complete_key_with(self.tenant_id, self.key.key, seal(made.model_dump_json()))
            return made
        if held.request_hash != self.key.request_hash or held.answer is None:
            raise BadInput.of("Idempotency-Key", self.key.key, "was used for a different request; use a new key")
        return shape.model_validate_json(unseal(held.answer))


async def _idempotency(request: Request, key: Key = None) -> Idempotency:
    tenant_id = request.state.key.tenant_id
    if key is None:
        return Idempotency(tenant_id, None)
    body = json.dumps(await request.json(), sort_keys=True) if await request.body() else ""
    text = f"{request.method} {request.url.path}?{request.url.query}\n{body}"
    return Idempotency(tenant_id, IdempotencyKey(key, hashlib.sha256(text.encode()).digest()))


#: What an endpoint asks for that makes something.
Once = Annotated[Idempotency, Depends(_idempotency)]
