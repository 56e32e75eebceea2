"""The three servers of a data directory: embedded ones, or installed ones that the environment names."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import SecretStr, ValidationError

from farm.errors import SetupError
from farm.local import ports, s3
from farm.local.postgres import EmbeddedPostgres
from farm.local.process import Program
from farm.local.s3 import EmbeddedS3, IndexDatabase
from farm.local.state import DataDirectory, FarmIdentity
from farm.local.valkey import EmbeddedValkey
from farm.settings import Settings, settings
from farm.store.connection import Database

_SECRETS = (
    "postgres", "valkey", "s3.access", "s3.secret", "s3.signing", "flower", "server",
    "worker.postgres", "worker.valkey", "worker.s3.access", "worker.s3.secret",
)  # fmt: skip
_SERVER_PORTS = ("postgres", "valkey", *(name for name in s3.PORT_NAMES if name != "admin.grpc"))
_SERVICE_PORTS = ("api", "flower")


WORKER_ROLE = "farm_worker"


@dataclass(frozen=True)
class Addresses:
    """Where the three servers answer, with the secrets needed to enter."""

    database_url: str
    redis_url: str
    s3_endpoint_url: str | None  #: None: AWS itself
    s3_access_key: str | None
    s3_secret_key: str | None
    s3_bucket: str
    secret_key: str  #: encrypts webhooks' secrets

    def environment(self) -> dict[str, str]:
        """The same as ``FARM_*`` variables."""
        values = {
            "FARM_DATABASE_URL": self.database_url,
            "FARM_REDIS_URL": self.redis_url,
            "FARM_S3_ENDPOINT_URL": self.s3_endpoint_url,
            "FARM_S3_ACCESS_KEY": self.s3_access_key,
            "FARM_S3_SECRET_KEY": self.s3_secret_key,
            "FARM_S3_BUCKET": self.s3_bucket,
            "FARM_SECRET_KEY": self.secret_key,
        }
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class Servers:
    """The servers of one farm; None stands for an installed one that somebody else runs."""

    postgres: EmbeddedPostgres | None
    valkey: EmbeddedValkey | None
    s3: EmbeddedS3 | None
    addresses: Addresses

    @classmethod
    def of(
        cls,
        directory: DataDirectory,
        farm: FarmIdentity,
        settings: Settings,
        *,
        postgres_options: tuple[tuple[str, str], ...] = (),
    ) -> Servers:
        """The servers of a prepared farm (see ``prepare``); servers that the settings name are not started."""
        root = directory.path
        postgres = valkey = store = None
        if settings.database_url is None:
            postgres = EmbeddedPostgres(
                root / "postgres", farm.ports["postgres"], farm.secret("postgres"), postgres_options
            )
        if settings.redis_url is None:
            valkey = EmbeddedValkey(
                root / "valkey", farm.ports["valkey"], farm.secret("valkey"), farm.secret("worker.valkey")
            )
        if settings.s3_endpoint_url is None:
            index = (
                IndexDatabase.beside(Database.direct(settings))
                if postgres is None
                else IndexDatabase(Database.parse(postgres.url("postgres")), "farm_objects")
            )
            store = EmbeddedS3(
                root / "s3",
                {name: farm.ports[name] for name in s3.PORT_NAMES},
                access_key=farm.secret("s3.access"),
                secret_key=farm.secret("s3.secret"),
                signing_key=farm.secret("s3.signing"),
                worker_access_key=farm.secret("worker.s3.access"),
                worker_secret_key=farm.secret("worker.s3.secret"),
                index=index,
            )
        addresses = Addresses(
            database_url=postgres.url() if postgres else _shown(settings.database_url),
            redis_url=valkey.url() if valkey else _shown(settings.redis_url),
            s3_endpoint_url=store.url if store else settings.s3_endpoint_url,
            s3_access_key=store.access_key if store else settings.s3_access_key,
            s3_secret_key=store.secret_key if store else _shown(settings.s3_secret_key) or None,
            s3_bucket=s3.BUCKET if store else settings.s3_bucket,
            secret_key=_shown(settings.secret_key) or farm.secret("server"),
        )
        return cls(postgres, valkey, store, addresses)

    def programs(self) -> tuple[Program, ...]:
        """How to run the embedded ones. Raises SetupError when one of them is not installed here."""
        return tuple(server.program() for server in (self.valkey, self.postgres, self.s3) if server is not None)

    def join_environment(self, farm: FarmIdentity) -> dict[str, str]:
        """How workers of other machines enter the embedded servers: by accounts that do what workers do."""
        found = {}
        if self.postgres is not None:
            found["FARM_JOIN_DATABASE_URL"] = self.postgres.url(
                role=WORKER_ROLE, password=farm.secret("worker.postgres")
            )
        if self.valkey is not None:
            found["FARM_JOIN_REDIS_URL"] = self.valkey.worker_url()
        if self.s3 is not None and self.s3.worker_access_key is not None:
            found["FARM_JOIN_S3_ACCESS_KEY"] = self.s3.worker_access_key
            found["FARM_JOIN_S3_SECRET_KEY"] = self.s3.worker_secret_key
        return found

    def create_database(self) -> None:
        """Make the farm's database in the embedded PostgreSQL; an installed one must have its own."""
        if self.postgres is not None:
            self.postgres.create_database()


def prepare(
    directory: DataDirectory, reservations: ports.PortReservations, *, api_port: int | None = None
) -> FarmIdentity:
    """Choose ports and secrets, and store them. Call it while nothing of this farm runs.

    ``api_port`` is the requested port and must be free (SetupError); else it is 8000, or another when that is taken.
    Keep the reservations until the farm's servers have ended.
    """
    known = directory.farm()
    if api_port is not None and not ports.is_free(api_port):
        raise SetupError(f"port {api_port} is taken: choose another with --port, or leave --port out")
    remembered = known.ports if api_port is None else {**known.ports, "api": api_port}
    assigned = ports.assign(
        remembered,
        (*_SERVICE_PORTS, *_SERVER_PORTS),
        reservations=reservations,
        preferred={"api": 8000, "flower": 5555},
        companions={"admin": "admin.grpc"},
    )
    farm = FarmIdentity(assigned, known.secrets, known.api_key, known.join_token).with_secrets(*_SECRETS)
    directory.save_farm(farm)
    return farm


def read_settings() -> Settings:
    """The process's settings. Raises SetupError naming the variable that is wrong and what is allowed."""
    try:
        return settings()
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:  # of several variables, which the message names
            raise SetupError(first["msg"].removeprefix("Value error, ")) from error
        name = "_".join(map(str, first["loc"])).upper()
        raise SetupError(f"FARM_{name} is {first['input']!r}: {first['msg'].lower()}") from error


def _shown(secret: SecretStr | None) -> str:
    return secret.get_secret_value() if secret is not None else ""
