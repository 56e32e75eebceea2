"""Webhook signatures, against a vector computed here with nothing but hmac."""

from __future__ import annotations

import base64
import hashlib
import hmac

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from hypothesis import given
from hypothesis import strategies as st

from farm.errors import BadInput
from farm.webhooks import signature

KEY = bytes(range(32))
SECRET = "whsec_" + base64.b64encode(KEY).decode()
BODY = b'{"type":"job.succeeded","data":{"id":"job_1"}}'
NOW = 1_764_000_000


def by_hand(key: bytes, message_id: str, timestamp: int, body: bytes) -> str:
    signed = message_id.encode() + b"." + str(timestamp).encode() + b"." + body
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


def test_a_signature_is_the_hmac_of_id_timestamp_and_body() -> None:
    assert signature.sign(SECRET, "msg_1", NOW, BODY) == by_hand(KEY, "msg_1", NOW, BODY)


def test_the_example_of_the_standard() -> None:
    # The example of the Standard Webhooks libraries, the same in all their languages.
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    signed = signature.sign(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_during_rotation_both_secrets_verify() -> None:
    old, new = signature.new_secret(), signature.new_secret()
    headers = signature.headers([new, old], "msg_1", NOW, BODY)
    assert headers["webhook-signature"].count("v1,") == 2
    for secret in (old, new):
        signature.verify(secret, headers, BODY, now=NOW)
    with pytest.raises(signature.SignatureRefused, match="no signature fits"):
        signature.verify(signature.new_secret(), headers, BODY, now=NOW)


def test_secrets_are_fresh_and_of_the_right_form() -> None:
    secrets = {signature.new_secret() for _ in range(100)}
    assert len(secrets) == 100
    assert all(s.startswith("whsec_") and len(base64.b64decode(s[6:], validate=True)) == 32 for s in secrets)


@given(body=st.binary(), position=st.integers(min_value=0), flip=st.integers(1, 255))
def test_a_changed_body_is_refused(body: bytes, position: int, flip: int) -> None:
    headers = signature.headers([SECRET], "msg_1", NOW, body)
    signature.verify(SECRET, headers, body, now=NOW)
    changed = bytearray(body or b"\0")
    changed[position % len(changed)] ^= flip
    with pytest.raises(signature.SignatureRefused):
        signature.verify(SECRET, headers, bytes(changed), now=NOW)


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_a_missing_or_changed_header_is_refused(name: str) -> None:
    headers = signature.headers([SECRET], "msg_1", NOW, BODY)
    with pytest.raises(signature.SignatureRefused, match=name):
        signature.verify(SECRET, {k: v for k, v in headers.items() if k != name}, BODY, now=NOW)
    changed = headers | {name: {"webhook-id": "msg_2", "webhook-timestamp": str(NOW + 1)}.get(name, "v1,AAAA")}
    with pytest.raises(signature.SignatureRefused):
        signature.verify(SECRET, changed, BODY, now=NOW)


@pytest.mark.parametrize("off", [-301, 301, 86_400])
def test_an_old_or_future_timestamp_is_refused(off: int) -> None:
    headers = signature.headers([SECRET], "msg_1", NOW, BODY)
    with pytest.raises(signature.SignatureRefused, match="differs by"):
        signature.verify(SECRET, headers, BODY, now=NOW + off)


@pytest.mark.parametrize("stamp", ["", "now", "1e9", "-5", "1.5", "٣", "²", "9" * 5000])
def test_a_timestamp_is_whole_seconds(stamp: str) -> None:
    headers = signature.headers([SECRET], "msg_1", NOW, BODY) | {"webhook-timestamp": stamp}
    with pytest.raises(signature.SignatureRefused):
        signature.verify(SECRET, headers, BODY, now=NOW)


def test_other_versions_and_garbage_in_the_header_are_ignored() -> None:
    headers = signature.headers([SECRET], "msg_1", NOW, BODY)
    headers["webhook-signature"] = f"v1a,abc  ü {headers['webhook-signature']}"
    signature.verify(SECRET, headers, BODY, now=NOW)


def test_header_names_are_read_in_any_case() -> None:
    headers = {name.title(): value for name, value in signature.headers([SECRET], "msg_1", NOW, BODY).items()}
    signature.verify(SECRET, headers, BODY, now=NOW)


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_!!!", base64.b64encode(KEY).decode(), "whsec_AAAA", "ü"])
def test_a_malformed_secret_is_refused_without_being_shown(secret: str) -> None:
    with pytest.raises(BadInput) as refused:
        signature.sign(secret, "msg_1", NOW, BODY)
    assert secret.removeprefix("whsec_") == "" or secret not in str(refused.value)


@pytest.mark.parametrize("message_id", ["", "msg.1"])
def test_an_id_cannot_pass_for_a_timestamp(message_id: str) -> None:
    with pytest.raises(ValueError, match="id"):
        signature.sign(SECRET, message_id, NOW, BODY)


def test_no_secret_is_no_signature() -> None:
    with pytest.raises(ValueError, match="at least one"):
        signature.headers([], "msg_1", NOW, BODY)


def test_a_key_pair_signs_beside_the_secret_as_the_standard_lays_it_out() -> None:
    key = signature.new_key()
    public = signature.public_key(key)
    signed = signature.Signer([SECRET], [key]).headers("msg_1", NOW, BODY)
    v1, v1a = signed["webhook-signature"].split(" ")
    assert v1 == by_hand(KEY, "msg_1", NOW, BODY)
    version, _, encoded = v1a.partition(",")
    prefix, _, raw = public.partition("_")
    assert (version, prefix) == ("v1a", "whpk")
    # with nothing of ours: the 64 bytes of the signature under the 32 bytes of the key, over id, time and body
    ed25519.Ed25519PublicKey.from_public_bytes(base64.b64decode(raw, validate=True)).verify(
        base64.b64decode(encoded, validate=True), b"msg_1." + str(NOW).encode() + b"." + BODY
    )
    for accepted in (SECRET, public):
        signature.verify(accepted, signed, BODY, now=NOW)
    for other in (signature.new_secret(), signature.public_key(signature.new_key())):
        with pytest.raises(signature.SignatureRefused, match="no signature fits"):
            signature.verify(other, signed, BODY, now=NOW)
    with pytest.raises(signature.SignatureRefused):
        signature.verify(public, signed, BODY + b" ", now=NOW)


@pytest.mark.parametrize("key", ["", "whsk_", "whsk_!!!", SECRET, "whsk_" + base64.b64encode(KEY + KEY).decode()])
def test_a_malformed_key_is_refused_without_being_shown(key: str) -> None:
    with pytest.raises(BadInput) as refused:
        signature.public_key(key)
    assert not key.partition("_")[2] or key not in str(refused.value)
