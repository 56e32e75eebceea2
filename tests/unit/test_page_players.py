"""How pages show a file of a job."""

from __future__ import annotations

from typing import Any

import pytest

from farm.dashboard.rendering import TEMPLATES
from farm.domain.job import Output
from farm.domain.media import MediaMetadata


def shown(media_type: str, metadata: MediaMetadata) -> str:
    player: Any = TEMPLATES.get_template("parts.html").module.player  # type: ignore[attr-defined]
    return str(player("/farm/images/job/0", Output(0, "key", media_type, 3, "", 1, metadata), "a red ball", "", 320))


@pytest.mark.parametrize("media_type", ["image/png", "video/mp4"])
def test_a_file_has_the_size_that_is_known_of_it(media_type: str) -> None:
    assert 'width="64" height="32"' in shown(media_type, {"width": 64, "height": 32})
    unknown = shown(media_type, {})
    assert "width=" not in unknown
    assert "None" not in unknown
