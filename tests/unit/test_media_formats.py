"""The formats are declared once; documents, keys and file names agree with them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from farm.domain.media import FORMATS, extension_of, output_format, output_formats
from farm.objects import keys
from farm.pipelines.spec import Media
from farm.settings import Settings

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "media.md"


def rows(columns: int) -> list[list[str]]:
    lines = [line for line in GUIDE.read_text().splitlines() if line.startswith("| ")]
    found = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in found if len(row) == columns and row[0] not in ("kind", "setting")]


def test_the_guide_lists_every_format() -> None:
    wanted = [
        [one.media.value, one.title, one.media_type, one.name if one.is_output else "", "yes" if one.is_input else "no"]
        for one in FORMATS
    ]
    assert [row[:5] for row in rows(6)] == wanted


def test_the_guide_has_the_settings_defaults() -> None:
    for name, value, _ in rows(3):
        default = getattr(Settings(), name.removeprefix("FARM_").lower())
        number = float(re.sub(r"[^0-9.]", "", value))
        assert default == number * (2**20 if "MiB" in value else 1), name


@pytest.mark.parametrize("media", [Media.IMAGE, Media.VIDEO, Media.AUDIO])
def test_a_name_has_one_format_in_a_kind_of_media(media: Media) -> None:
    names = [one.name for one in output_formats(media)]
    assert len(names) == len(set(names)) > 0
    assert [output_format(media, name) for name in names] == list(output_formats(media))
    with pytest.raises(ValueError, match="allowed: " + names[0]):
        output_format(media, "tiff")


def test_a_media_type_and_an_extension_mean_one_thing() -> None:
    for one in FORMATS:
        assert keys.extension(one.media_type) == extension_of(one.media_type) == one.extension
    names = {extension: one.name for one in FORMATS for extension in one.extensions}
    assert all(names[extension] == one.name for one in FORMATS for extension in one.extensions)
