"""fal's client, unmodified, against the farm; it speaks HTTPS and nothing else."""

from __future__ import annotations

from farm.settings import Settings
from tests.api_server import Api, running
from tests.compat.environment import run_client
from tests.compat.tls_proxy import PEM, https


def test_fals_client_submits_watches_fetches_and_cancels(api: Api) -> None:
    with https(api.url) as door:
        run_client(
            "fal.py",
            FARM_KEY=api.key,
            FAL_RUN_HOST=f"{door}/compat/fal/run",
            FAL_QUEUE_RUN_HOST=f"{door}/compat/fal",
            SSL_CERT_FILE=str(PEM),
        )


def test_without_the_setting_there_is_no_fal(farm_env: dict[str, str]) -> None:
    with running(Settings()) as api, api.client() as client:
        assert client.post("/compat/fal/farm/starter", json={"prompt": "x"}).status_code == 404
