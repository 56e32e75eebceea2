"""Bulk bodies, sweeps and archives as pure functions: whatever way the bytes are cut, the same comes out."""

from __future__ import annotations

import csv
import io
import json
import tarfile
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.domain import ids
from farm.domain.batch import SeedPlan, sweep, sweep_size
from farm.domain.parameters import from_text
from farm.errors import BadInput, FieldProblem
from farm.services import archive, bulk_parsers
from farm.services.archive import Member

WORDS = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\x00\r"), max_size=20)


def cut(data: bytes, places: list[int]) -> Iterator[bytes]:
    start = 0
    for place in sorted(place % (len(data) + 1) for place in places):
        yield data[start:place]
        start = place
    yield data[start:]


@given(st.lists(st.dictionaries(WORDS, WORDS, max_size=3), max_size=8), st.lists(st.integers(0, 10_000), max_size=9))
def test_json_lines_are_the_same_however_they_arrive(jobs: list[dict[str, str]], places: list[int]) -> None:
    data = b"\n".join(json.dumps(job, ensure_ascii=False).encode() for job in jobs)
    assert list(bulk_parsers.jsonl(cut(data, places))) == [(n, job) for n, job in enumerate(jobs, 1)]


@given(st.lists(WORDS, min_size=1, max_size=8), st.lists(st.integers(0, 10_000), max_size=9))
def test_tables_are_the_same_however_they_arrive(prompts: list[str], places: list[int]) -> None:
    out = io.StringIO(newline="")
    table = csv.writer(out)
    table.writerow(["custom_id", "prompt"])
    table.writerows([f"c{n}", prompt] for n, prompt in enumerate(prompts))
    found = [request for _, request in bulk_parsers.table(cut(out.getvalue().encode(), places))]
    wanted = [
        {"custom_id": f"c{n}"} | ({"prompt": prompt} if prompt.strip() else {}) for n, prompt in enumerate(prompts)
    ]
    assert found == wanted


def test_a_row_is_reported_at_the_line_where_it_begins() -> None:
    body = b'prompt,seed\n"two\nlines",1\n\nx,2,3\n'
    (first, request), (second, problem) = bulk_parsers.table([body])
    assert (first, request) == (2, {"prompt": "two\nlines", "seed": 1})
    assert second == 5
    assert isinstance(problem, FieldProblem)


@pytest.mark.parametrize(
    "body",
    [
        b'prompt\n"never closed',
        b"prompt\n\xff\n",
        b"prompt,prompt\na,b\n",
        b"\n,\nx\n",
        b"metadata\nx\n",
        b"metadata.\nx\n",
    ],
)
def test_what_is_no_table_is_refused(body: bytes) -> None:
    with pytest.raises(BadInput):
        list(bulk_parsers.table([body]))


def test_a_line_without_end_does_not_fill_the_memory() -> None:
    with pytest.raises(BadInput, match="at most"):
        list(bulk_parsers.jsonl(b"x" * 2**16 for _ in range(2**20)))


def test_words_that_are_no_numbers_stay_for_the_check_to_name() -> None:
    assert from_text("seed", " 7 ") == 7
    assert from_text("seed", "7.5") == "7.5"
    assert from_text("width", "512.0") == 512
    assert from_text("guidance_scale", "7") == 7.0
    assert from_text("guidance_scale", "nan") == "nan"
    assert from_text("prompt", " 7 ") == " 7 "


@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(1, 3))
def test_a_sweep_has_every_combination_once_with_names_of_their_own(sizes: list[int], repeats: int) -> None:
    groups = [{f"p{g}": [f"{g}.{n}" for n in range(size)]} for g, size in enumerate(sizes)]
    groups[0]["custom_id"] = [f"c{n}" for n in range(sizes[0])]
    written = list(sweep(groups, repeats, {"seed": 5}, SeedPlan.CONSECUTIVE))
    assert len(written) == sweep_size(groups, repeats)
    combinations = {(*(one[f"p{g}"] for g in range(len(sizes))), one["seed"]) for one in written}
    assert len(combinations) == len(written)
    assert len({one["custom_id"] for one in written}) == len(written)
    assert {one["seed"] for one in written} == set(range(5, 5 + repeats))


def test_a_sweep_that_is_too_large_or_uneven_is_refused() -> None:
    with pytest.raises(BadInput, match="at most"):
        sweep_size([{"a": range(1_000)}, {"b": range(1_000)}], 1)
    with pytest.raises(BadInput, match="equally long"):
        sweep_size([{"a": [1, 2], "b": [1]}], 1)
    with pytest.raises(BadInput, match="already"):
        sweep_size([{"a": [1]}, {"a": [1]}], 1)


def test_ids_of_a_series_ascend_and_are_ids() -> None:
    series = ids.IdSeries(ids.JOB)
    made = [series.number(n) for n in (1, 2, 255, 256, 70_000, 2**32 - 1)]
    assert made == sorted(set(made))
    for one in made:
        value = ids.to_uuid(ids.JOB, one)
        assert (value.version, value.variant) == (7, "specified in RFC 4122")


def members(count: int) -> Iterator[Member]:
    when = datetime(2026, 1, 31, 12, 30, 10, tzinfo=UTC)
    for number in range(count):
        yield Member(f"{number:06d}-ähnlich-0.png", b"%d" % number * 3, when)


@pytest.mark.parametrize("count", [0, 1, 3, 70_000])  # above 65,535 a zip needs its 64-bit end
def test_archives_hold_what_was_put_in(count: int) -> None:
    with zipfile.ZipFile(io.BytesIO(b"".join(archive.write_zip(members(count))))) as packed:
        assert packed.namelist() == [one.name for one in members(count)]
        for one in list(members(count))[:: max(1, count // 50)]:
            assert packed.read(one.name) == one.data
        assert all(info.date_time == (2026, 1, 31, 12, 30, 10) for info in packed.infolist())
    if count < 1_000:
        with tarfile.open(fileobj=io.BytesIO(b"".join(archive.write_tar(members(count))))) as tape:
            assert tape.getnames() == [one.name for one in members(count)]
