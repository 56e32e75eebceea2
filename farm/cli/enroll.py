"""How ``farm worker --join`` gets its environment from a running farm."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from farm.errors import BadInput, SetupError, Unauthorized, Unavailable


def join(url: str, token: str | None, environment: MutableMapping[str, str] = os.environ) -> None:
    """Ask the farm at that URL for its servers, and set the variables that the environment does not set.

    Raises `BadInput`, `Unauthorized`, or `Unavailable` when it does not answer.
    """
    token = token or environment.get("FARM_JOIN_TOKEN")
    if not token:
        raise BadInput.of(
            "token", None, "is not known: `farm workers tokens create` makes one; give --token, or FARM_JOIN_TOKEN"
        )
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BadInput.of("join", url, f"{url!r} is not an http or https URL")
    if parts.scheme == "http":
        print(f"farm worker: {url} is not encrypted; join only through a private network", file=sys.stderr)
    answer = _ask(url.rstrip("/") + "/v1/join", token)
    for name, value in answer["environment"].items():
        environment.setdefault(name, value)
    if answer.get("models"):
        environment.setdefault("FARM_MODELS_FILE", str(_keep_models(answer["models"], environment)))


def _ask(url: str, token: str) -> Mapping[str, Any]:
    import httpx2

    from farm import authorities

    verify = authorities.context_of_environment() or True
    try:
        # the servers that it names are reached directly, and so is the farm
        with httpx2.Client(timeout=httpx2.Timeout(20.0, connect=5.0), trust_env=False, verify=verify) as client:
            response = client.get(url, headers={"Authorization": f"Bearer {token}"})
    except httpx2.HTTPError as error:
        raise Unavailable(f"the farm at {url} does not answer ({error})") from error
    if response.status_code == 401:
        raise Unauthorized(f"{_detail(response)}; `farm workers tokens create` makes another")
    if response.status_code == 404:
        raise SetupError(
            f"{url}: joining over HTTP is disabled on this farm: start it with `farm up --listen ADDRESS`, "
            "or set FARM_JOIN_DATABASE_URL for its API"
        )
    if response.status_code != 200:
        raise Unavailable(f"{url} answers {response.status_code}")
    found: Mapping[str, Any] = response.json()
    return found


def _detail(response: Any) -> str:
    """What a problem document says."""
    try:
        return str(response.json()["detail"]).rstrip(".")
    except (ValueError, KeyError, TypeError):
        return "invalid join token"


def _keep_models(text: str, environment: Mapping[str, str]) -> Path:
    directory = Path(environment.get("FARM_DATA_DIR", ".farm"))
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = directory / "joined-models.toml"
    path.write_text(text, "utf-8")
    return path
