"""What a farm needs before its services can start: the schema, the bucket, the first tenant and its key.

Runs as a process of its own (``python -m farm.local.bootstrap``), so that the supervisor, which lives as long as the
farm, does not carry SQLAlchemy, Alembic and boto3 in its memory.
"""

from __future__ import annotations

import json
import sys
import time

from farm.errors import FarmError, StorageUnavailable, Unauthorized
from farm.objects.storage import Storage
from farm.settings import Settings, settings
from farm.store.connection import Database
from farm.store.migrate import upgrade
from farm.store.tenants import Scope
from farm.store.unit_of_work import Store

TENANT = "default"


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


def prepare(given: Settings, known_key: str | None) -> str:
    """Bring database and storage to where services can start. Returns the first key. Raises FarmError."""
    store = Store.connect(given, pool=1)
    try:
        upgrade(Database.direct(given))
        storage = Storage(given)
        prepare_storage(storage)
        storage.close()
        return first_key(store, known_key)
    finally:
        store.close()


def initialise(given: Settings) -> tuple[str, str | None]:
    """The same for servers of one's own. Returns the schema's revision, and a first key unless the farm has keys.

    Raises FarmError.
    """
    store = Store.connect(given, pool=1)
    try:
        revision = upgrade(Database.direct(given))
        storage = Storage(given)
        prepare_storage(storage)
        storage.close()
        with store.begin() as unit:
            known = unit.tenants.by_name(TENANT)
            if known is not None and unit.tenants.keys(known.id):
                return revision, None
            tenant = known or unit.tenants.create(TENANT)
            _, text = unit.tenants.create_key(tenant.id, "farm init", frozenset(Scope))
        return revision, text
    finally:
        store.close()


def main() -> int:
    """Read the known key from stdin (arguments and environments are for others to see), print the valid one as JSON."""
    known = sys.stdin.read().strip() or None
    try:
        print(json.dumps({"api_key": prepare(settings(), known)}))
    except FarmError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
