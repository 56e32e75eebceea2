"""SeaweedFS as a child process: only its S3 port is usable by others.

SeaweedFS is five servers in one process. Only S3 requires keys by default; the others are closed here one by one:

- filer and master answer no HTTP request at all (``-disableHttp``): the master's ``/col/delete`` would drop a bucket's
  data for anybody who can reach its port, a page in a browser included;
- the volume server serves and takes a chunk only with a token signed by a generated key (``[jwt.signing*]``);
- the admin server, which cannot be turned off, has a generated password and no pages.

What remains is gRPC between those servers, on loopback ports and without authentication: another *user of this
machine* who speaks SeaweedFS' protocol could reach objects through it, a browser cannot. Where that matters, run an S3
server of your own and set ``FARM_S3_ENDPOINT_URL``.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from farm.local import bundled_servers
from farm.local.ports import LOOPBACK
from farm.local.process import Program
from farm.local.state import write_private

#: The servers inside SeaweedFS: each listens twice, for HTTP and for gRPC.
PARTS = ("s3", "filer", "volume", "master", "admin")

PORT_NAMES = tuple(name for part in PARTS for name in (part, f"{part}.grpc"))


@dataclass(frozen=True)
class EmbeddedS3:
    """One SeaweedFS over one directory."""

    directory: Path
    ports: Mapping[str, int]  #: by ``PORT_NAMES``; ``admin.grpc`` lies 10,000 above ``admin``: its worker requires it
    access_key: str
    secret_key: str
    signing_key: str  #: between its own servers

    @property
    def url(self) -> str:
        """The S3 endpoint; buckets are addressed by path."""
        return f"http://{LOOPBACK}:{self.ports['s3']}"

    def initialise(self) -> None:
        """Write its configuration into private files."""
        for directory in (self.directory, self._data, self._settings):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        identity = {
            "name": "farm",
            "credentials": [{"accessKey": self.access_key, "secretKey": self.secret_key}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        write_private(self._settings / "s3.json", json.dumps({"identities": [identity]}))
        sections = [f"[jwt.{name}]\nkey = {json.dumps(f'{self.signing_key}-{name}')}" for name in _SIGNED]
        sections.append(f'[admin]\nuser = "farm"\npassword = {json.dumps(self.signing_key)}')
        write_private(self._settings / "security.toml", "\n".join(sections) + "\n")
        # SeaweedFS writes its last options here and reads them back before the command line.
        (self._data / "mini.options").unlink(missing_ok=True)
        self._remove_sockets()

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
            prepare=self.initialise,
            ready=self.ready,
            after_stop=self._remove_sockets,
            stop_seconds=15.0,
            # Asked politely while its clients die too, it waits for them, longer than the next `farm up` should.
            orphan_signal=signal.SIGKILL,
        )

    def ready(self) -> bool:
        """Whether S3 answers: without a key with 403."""
        connection = http.client.HTTPConnection(LOOPBACK, self.ports["s3"], timeout=2)
        try:
            connection.request("GET", "/")
            return connection.getresponse().status == http.client.FORBIDDEN
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

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
        }


#: The two halves of each token: writes and reads, towards the volume server and towards the filer.
_SIGNED = ("signing", "signing.read", "filer_signing", "filer_signing.read")
