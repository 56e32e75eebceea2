"""An API with a painter behind it, for each test of a client."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from farm.settings import Settings
from tests.api_server import Api, running
from tests.compat.local_renderer import painting


@pytest.fixture
def api(farm_env: dict[str, str]) -> Iterator[Api]:
    settings = Settings(webhook_allow="127.0.0.0/8", webhook_allow_http=True, compat_fal=True)
    with running(settings) as made, painting(made):
        yield made
