"""The names of objects: one form, and no way to write anywhere else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.objects import keys

TENANT = "ten_" + "0a" * 16
JOB = "job_" + "1b" * 16
SHA256 = "2c" * 32


def test_names_have_the_documented_form() -> None:
    assert keys.input_key(TENANT, SHA256, "png") == f"inputs/{TENANT}/{SHA256}.png"
    assert keys.output_key(TENANT, JOB, 3, 0, "webp") == f"outputs/{TENANT}/{JOB}/3/0.webp"


def test_an_output_lies_under_its_job_and_epoch() -> None:
    key = keys.output_key(TENANT, JOB, 12, 7, "jpg")
    assert key.startswith(keys.epoch_prefix(TENANT, JOB, 12))
    assert key.startswith(keys.job_prefix(TENANT, JOB))
    assert not key.startswith(keys.epoch_prefix(TENANT, JOB, 1)), "epoch 1 is no prefix of epoch 12"


@given(st.text())
def test_text_of_a_client_never_becomes_a_key(text: str) -> None:
    with pytest.raises(ValueError, match="tenant"):
        keys.input_key(text, SHA256, "png")
    with pytest.raises(ValueError, match="job"):
        keys.output_key(TENANT, text, 1, 0, "png")
    with pytest.raises(ValueError, match="SHA-256"):
        keys.input_key(TENANT, text, "png")


@pytest.mark.parametrize("bad", ["", "../x", "png/..", "PNG", "p\n", "png\n", "verylongone"])
def test_an_extension_is_a_few_small_letters(bad: str) -> None:
    with pytest.raises(ValueError, match="extension"):
        keys.input_key(TENANT, SHA256, bad)


@pytest.mark.parametrize(("epoch", "index"), [(-1, 0), (0, -1)])
def test_numbers_are_not_negative(epoch: int, index: int) -> None:
    with pytest.raises(ValueError, match="0 or more"):
        keys.output_key(TENANT, JOB, epoch, index, "png")


def test_a_media_type_has_one_extension() -> None:
    assert keys.extension("image/jpeg") == "jpg"
    with pytest.raises(ValueError, match="text/html"):
        keys.extension("text/html")
