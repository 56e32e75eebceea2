"""What a farm needs before its services can start: the schema, the bucket, the first tenant and its key.

Runs as a process of its own (``python -m farm.local.bootstrap``), so that the supervisor, which lives as long as the
farm, does not carry SQLAlchemy, Alembic and boto3 in its memory.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping

from farm.errors import FarmError, SetupError, StorageUnavailable, Unauthorized
from farm.objects.storage import Storage
from farm.settings import Settings, settings
from farm.store import worker_role
from farm.store.connection import Database
from farm.store.join_tokens import DAY_SECONDS
from farm.store.migrate import upgrade
from farm.store.tenants import Scope
from farm.store.unit_of_work import Store

TENANT = "default"
COMMAND_KEY = "farm command"  #: how the names of keys begin that end with the command which made them


def first_key(store: Store, known: str | None) -> str:
    """The key that ``farm up`` prints: ``known`` while it works, else a new one of the tenant ``default``."""
    with store.begin() as unit:
        if known is not None:
            try:
                unit.tenants.authenticate(known)
            except Unauthorized:
                pass  # revoked, or of a database that is gone
            else:
                return known
        tenant = unit.tenants.by_name(TENANT) or unit.tenants.create(TENANT)
        _, text = unit.tenants.create_key(tenant.id, "farm up", frozenset(Scope))
    return text


def prepare_storage(storage: Storage, *, grace_seconds: float = 30.0) -> None:
    """Make the bucket and prove that it takes an object, within ``grace_seconds`` seconds.

    A fresh S3 server answers before it can store. Raises StorageUnavailable.
    """
    deadline = time.monotonic() + grace_seconds
    while True:
        try:
            storage.ensure_bucket()
            storage.put(".ready", b"the farm may write here\n", "text/plain")
        except StorageUnavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


def join_token(store: Store, given: Settings, known: str | None) -> str | None:
    """A token for workers of other machines: ``known`` while it works, else a new one; None where nobody may join."""
    if given.join_database_url is None:
        return None
    with store.begin() as unit:
        if known is not None and unit.join_tokens.is_live(known):
            return known
        return unit.join_tokens.create("farm up", DAY_SECONDS)[1]


def ensure_worker_role(given: Settings) -> None:
    """Make the role of workers that join, if they may. Raises FarmError."""
    if given.join_database_url is None:
        return
    named = Database.parse(given.join_database_url.get_secret_value(), variable="FARM_JOIN_DATABASE_URL").parameters
    owner = Database.direct(given)
    if named.get("user", "") in ("", owner.parameters.get("user")):
        raise SetupError("FARM_JOIN_DATABASE_URL must name a role of its own, which is not the owner of the tables")
    worker_role.ensure(owner, named["user"], named.get("password", ""))


def prepare(given: Settings, known: Mapping[str, str | None]) -> dict[str, str | None]:
    """Bring database and storage to where services can start. Returns the first key and a join token.

    Raises FarmError.
    """
    store = Store.connect(given, pool=1)
    try:
        upgrade(Database.direct(given))
        storage = Storage(given)
        prepare_storage(storage)
        storage.close()
        ensure_worker_role(given)
        return {
            "api_key": first_key(store, known.get("api_key")),
            "join_token": join_token(store, given, known.get("join_token")),
        }
    finally:
        store.close()


def initialise(given: Settings, *, with_key: bool) -> tuple[str, str | None]:
    """The same for servers of one's own. Returns the schema's revision, and a first key if one is wanted and missing.

    Raises FarmError.
    """
    store = Store.connect(given, pool=1)
    try:
        revision = upgrade(Database.direct(given))
        ensure_worker_role(given)
        storage = Storage(given)
        prepare_storage(storage)
        storage.close()
        if not with_key:
            return revision, None
        with store.begin() as unit:
            known = unit.tenants.by_name(TENANT)
            kept = [] if known is None else unit.tenants.keys(known.id)
            if any(not key.name.startswith(COMMAND_KEY) for key in kept):
                return revision, None
            tenant = known or unit.tenants.create(TENANT)
            _, text = unit.tenants.create_key(tenant.id, "farm init", frozenset(Scope))
        return revision, text
    finally:
        store.close()


def main() -> int:
    """Read known secrets from stdin (arguments and environments are for others to see), print valid ones as JSON."""
    try:
        print(json.dumps(prepare(settings(), json.load(sys.stdin))))
    except FarmError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
