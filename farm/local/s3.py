"""SeaweedFS as a child process: only its S3 port is usable by others.

SeaweedFS is five servers in one process. Only S3 requires keys by default; the others are closed here one by one:

- filer and master answer no HTTP request at all (``-disableHttp``): the master's ``/col/delete`` would drop a bucket's
  data for anybody who can reach its port, a page in a browser included;
- the volume server serves and takes a chunk only with a token signed by a generated key (``[jwt.signing*]``);
- the admin server, which cannot be turned off, has a generated password and no pages.

What remains is gRPC between those servers, on loopback ports and without authentication: another *user of this
machine* who speaks SeaweedFS' protocol could reach objects through it, a browser cannot. Where that matters, run an S3
server of your own and set ``FARM_S3_ENDPOINT_URL``.

A PUT is answered when the object survives a power cut: its bytes are synced (a rule of the filer for the bucket's path,
without which SeaweedFS never calls ``fsync``), and the index of all names is a database of PostgreSQL (SeaweedFS' own
LevelDB is never synced). What SeaweedFS does not sync is repaired at the next start (`farm.local.volumes`).
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from pydantic import SecretStr

from farm.errors import SetupError
from farm.local import bundled_servers, volumes
from farm.local.ports import LOOPBACK
from farm.local.process import Program
from farm.local.state import write_private
from farm.settings import Settings
from farm.store.connection import Database

BUCKET = "farm"

#: The servers inside SeaweedFS: each listens twice, for HTTP and for gRPC.
PARTS = ("s3", "filer", "volume", "master", "admin")

PORT_NAMES = tuple(name for part in PARTS for name in (part, f"{part}.grpc"))

BUCKET = "farm"  #: whose objects are durable

_RULE_SECONDS = 20.0  #: for the shell that sets the rule for the bucket's path
_CONNECTIONS = 16  #: of the filer to PostgreSQL


@dataclass(frozen=True)
class IndexDatabase:
    """The PostgreSQL database with the names of all objects: the filer's."""

    server: Database  #: a database of that server that exists
    name: str

    @classmethod
    def beside(cls, database: Database) -> IndexDatabase:
        """The one that belongs to a farm's database."""
        return cls(database, f"{database.parameters.get('dbname') or 'farm'}_objects")

    def ensure(self) -> bool:
        """Create the database unless it exists; False while the server does not answer.

        Raises SetupError if the server refuses to create it.
        """
        try:
            with self.server.connect(autocommit=True, limits=False) as connection:
                if connection.execute("SELECT FROM pg_database WHERE datname = %s", (self.name,)).fetchone() is None:
                    connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(self.name)))
        except psycopg.OperationalError:
            return False
        except psycopg.Error as error:
            raise SetupError(
                f"the database {self.name}, where the S3 server keeps its index, cannot be created: "
                f"{str(error).strip()}. Create it for the role of FARM_DATABASE_URL, or set FARM_S3_ENDPOINT_URL"
            ) from error
        return True

    def configuration(self) -> str:
        """The filer's settings file."""
        given = self.server.parameters  # the filer takes one host: the first
        host, port = (given.get(name, "").split(",")[0] for name in ("host", "port"))
        values = {
            "createTable": _CREATE_TABLE,
            "upsertQuery": _UPSERT,
            "hostname": host or LOOPBACK,
            "username": _quoted(given.get("user", "")),
            "password": _quoted(given.get("password", "")),
            "database": _quoted(self.name),
            "schema": "",
            "sslmode": given.get("sslmode", "prefer"),
            "sslrootcert": given.get("sslrootcert", ""),
        }
        lines = ["[leveldb2]", "enabled = false", "[postgres2]", "enabled = true", "enableUpsert = true"]
        lines += [f"{name} = {json.dumps(value)}" for name, value in values.items()]
        lines += [f"port = {port or 5432}", f"connection_max_open = {_CONNECTIONS}", "connection_max_idle = 4"]
        return "\n".join([*lines, "connection_max_lifetime_seconds = 300"]) + "\n"


def _identity(name: str, access_key: str, secret_key: str, *actions: str) -> dict[str, Any]:
    return {"name": name, "credentials": [{"accessKey": access_key, "secretKey": secret_key}], "actions": list(actions)}


def _quoted(value: str) -> str:
    """As libpq's ``name=value`` strings, which the filer makes of its settings, take any value."""
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


_CREATE_TABLE = (
    'CREATE TABLE IF NOT EXISTS "%s" (dirhash BIGINT, name VARCHAR(65535), directory VARCHAR(65535), meta bytea,'
    " PRIMARY KEY (dirhash, name))"
)
_UPSERT = (
    'INSERT INTO "%[1]s" (dirhash, name, directory, meta) VALUES ($1, $2, $3, $4)'
    " ON CONFLICT (dirhash, name) DO UPDATE SET directory = EXCLUDED.directory, meta = EXCLUDED.meta"
)


@dataclass(frozen=True)
class EmbeddedS3:
    """One SeaweedFS over one directory."""

    directory: Path
    ports: Mapping[str, int]  #: by ``PORT_NAMES``; ``admin.grpc`` lies 10,000 above ``admin``: its worker requires it
    access_key: str
    secret_key: str
    signing_key: str  #: between its own servers
    index: IndexDatabase
    worker_access_key: str | None = None  #: of workers on other machines, who may read and write the bucket
    worker_secret_key: str = ""

    @property
    def url(self) -> str:
        """The S3 endpoint; buckets are addressed by path."""
        return f"http://{LOOPBACK}:{self.ports['s3']}"

    def settings(self, given: Settings) -> Settings:
        """The settings of a service that uses this server."""
        return given.model_copy(
            update={
                "s3_endpoint_url": self.url,
                "s3_access_key": self.access_key,
                "s3_secret_key": SecretStr(self.secret_key),
                "s3_bucket": BUCKET,
            }
        )

    def initialise(self) -> None:
        """Write its configuration into private files."""
        for directory in (self.directory, self._data, self._settings):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        identities = [_identity("farm", self.access_key, self.secret_key, "Admin", "Read", "Write", "List", "Tagging")]
        if self.worker_access_key is not None:
            actions = [f"{action}:{BUCKET}" for action in ("Read", "Write", "List")]
            identities.append(_identity("worker", self.worker_access_key, self.worker_secret_key, *actions))
        write_private(self._settings / "s3.json", json.dumps({"identities": identities}))
        sections = [f"[jwt.{name}]\nkey = {json.dumps(f'{self.signing_key}-{name}')}" for name in _SIGNED]
        sections.append(f'[admin]\nuser = "farm"\npassword = {json.dumps(self.signing_key)}')
        write_private(self._settings / "security.toml", "\n".join(sections) + "\n")
        write_private(self._settings / "filer.toml", self.index.configuration())
        self._rule_is_set.unlink(missing_ok=True)
        # SeaweedFS writes its last options here and reads them back before the command line.
        (self._data / "mini.options").unlink(missing_ok=True)
        self._remove_sockets()
        volumes.repair_after_boot(self._data, self._rebuild_indexes)

    def _rebuild_indexes(self) -> None:
        # An error in one volume must not keep the others from being served.
        self._weed("fix", "-ignoreError=true", str(self._data), timeout=None)

    def program(self) -> Program:
        """How to run the server."""
        ports = []
        for part in PARTS:
            ports += [f"-{part}.port={self.ports[part]}", f"-{part}.port.grpc={self.ports[f'{part}.grpc']}"]
        return Program(
            name="s3",
            argv=(
                str(bundled_servers.seaweed()),
                "-logtostderr=true",
                "mini",
                f"-dir={self._data}",
                f"-ip={LOOPBACK}",
                f"-ip.bind={LOOPBACK}",
                *ports,
                "-disableHttp",
                "-s3.config=s3.json",
                "-s3.iam=false",
                "-s3.autoCreateBucket=false",
                "-s3.port.iceberg=0",
                "-s3.port.lance=0",
                "-s3.localSocket=s3.sock",
                "-filer.localSocket=filer.sock",
                "-webdav=false",
                "-admin.ui=false",
                "-master.telemetry=false",
                "-master.volumeSizeLimitMB=256",
            ),
            environment=self._environment(),
            directory=self._settings,  # where it looks for security.toml first
            address=self.url,
            may_start=self.index.ensure,
            needs="the PostgreSQL server where it keeps its index",
            outlived_by="postgres",
            prepare=self.initialise,
            ready=self.ready,
            after_stop=self._remove_sockets,
            start_seconds=60.0,
            stop_seconds=15.0,
            # Asked politely while its clients die too, it waits for them, longer than the next `farm up` should.
            orphan_signal=signal.SIGKILL,
        )

    def ready(self) -> bool:
        """Whether S3 answers (without a key with 403), and syncs what it is given."""
        return self._answers() and (self._rule_is_set.exists() or self._set_rule())

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection(LOOPBACK, self.ports["s3"], timeout=2)
        try:
            connection.request("GET", "/")
            return connection.getresponse().status == http.client.FORBIDDEN
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def configure_bucket(self, *, read_only: bool = False) -> bool:
        """Set the filer's rule for the bucket's objects, which it keeps in its database; False if it does not answer.

        They are synced before a PUT is answered. ``read_only``: no PUT is taken.
        """
        servers = [
            f"-{part}={LOOPBACK}:{self.ports[part]}.{self.ports[f'{part}.grpc']}" for part in ("master", "filer")
        ]
        flags = f"-fsync=true -readOnly={str(read_only).lower()}"
        rule = f"fs.configure -locationPrefix=/buckets/{BUCKET}/ {flags} -apply\n"
        return '"fsync":  true' in self._weed("shell", *servers, given=rule, timeout=_RULE_SECONDS)

    def _set_rule(self) -> bool:
        if not self.configure_bucket():
            return False
        self._rule_is_set.touch()
        return True

    def _weed(self, *arguments: str, given: str = "", timeout: float | None) -> str:
        """What another command of SeaweedFS prints; empty when it fails."""
        try:
            done = subprocess.run(
                [str(bundled_servers.seaweed()), *arguments],
                cwd=self._settings,
                env=dict(self._environment()),
                input=given,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                timeout=timeout,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return ""
        return done.stdout if done.returncode == 0 else ""

    @property
    def _rule_is_set(self) -> Path:
        return self._settings / "rule-is-set"

    @property
    def _data(self) -> Path:
        return self.directory / "data"

    @property
    def _settings(self) -> Path:
        return self.directory / "settings"

    def _remove_sockets(self) -> None:
        for part in PARTS:
            Path(f"/tmp/seaweedfs-{part}-grpc-{self.ports[f'{part}.grpc']}.sock").unlink(missing_ok=True)  # noqa: S108 - where it puts them

    def _environment(self) -> Mapping[str, str]:
        # A small environment on purpose: WEED_*, AWS_* and S3_* variables of the user would change what it serves.
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self._settings),
            "TMPDIR": str(self.directory),
            "GOMEMLIMIT": "300MiB",
            # keys of its own encryption, which is not used: it would draw them and keep them in files that a power cut
            # empties
            "WEED_S3_SSE_KEK": hashlib.sha256(self.signing_key.encode()).hexdigest(),
            "WEED_S3_SSE_KEK_PASSPHRASE": self.signing_key,
        }


#: The two halves of each token: writes and reads, towards the volume server and towards the filer.
_SIGNED = ("signing", "signing.read", "filer_signing", "filer_signing.read")
