"""Keys are read from where they are kept, rotated, and never shown."""

from __future__ import annotations

import copy
import pickle
import sys
from pathlib import Path

import pytest

from livetape.errors import ConfigError, DecryptionError
from livetape.events.keyring import KEY_BYTES, KeyRing, Sealed

OLD, NEW = b"o" * KEY_BYTES, b"n" * KEY_BYTES


def test_what_was_encrypted_is_decrypted_with_the_same_binding_only():
    ring = KeyRing({"a": OLD}, current="a")
    sealed = ring.encrypt(b"text", b"here")
    assert ring.decrypt(sealed, b"here") == b"text"
    with pytest.raises(DecryptionError):
        ring.decrypt(sealed, b"there")


def test_nonces_do_not_repeat():
    ring = KeyRing({"a": OLD}, current="a")
    sealed = [ring.encrypt(b"text", b"") for _ in range(1000)]
    assert len({one.nonce for one in sealed}) == len({one.data for one in sealed}) == 1000


def test_rotation_reads_old_and_new_and_writes_new():
    before = KeyRing({"old": OLD}, current="old")
    during = KeyRing({"old": OLD, "new": NEW}, current="new")
    after = KeyRing({"new": NEW}, current="new")
    old, new = before.encrypt(b"1", b""), during.encrypt(b"2", b"")
    assert (old.kid, new.kid) == ("old", "new")
    assert (during.decrypt(old, b""), during.decrypt(new, b""), after.decrypt(new, b"")) == (b"1", b"2", b"2")
    with pytest.raises(DecryptionError, match="key of this event is not here") as raised:
        after.decrypt(old, b"")
    assert raised.value.context["kid"] == "old"


def test_another_key_under_the_same_name_does_not_decrypt():
    sealed = KeyRing({"a": OLD}, current="a").encrypt(b"text", b"")
    with pytest.raises(DecryptionError):
        KeyRing({"a": NEW}, current="a").decrypt(sealed, b"")


def test_a_text_cannot_be_given_the_name_of_another_key():
    ring = KeyRing({"a": OLD, "b": OLD}, current="a")
    sealed = ring.encrypt(b"text", b"")
    with pytest.raises(DecryptionError):
        ring.decrypt(sealed._replace(kid="b"), b"")


@pytest.mark.parametrize("nonce", [b"", b"n" * 11, b"n" * 16])
def test_a_nonce_of_another_length_is_refused(nonce):
    with pytest.raises(DecryptionError):
        KeyRing({"a": OLD}, current="a").decrypt(Sealed("a", nonce, b"x" * 32), b"")


def test_a_generated_key_can_be_parsed_and_is_new_each_time():
    lines = [KeyRing.generate("2026-01"), KeyRing.generate("2025-12")]
    ring = KeyRing.parse("# keys\n" + "\n".join(lines) + "  # the old one\n\n")
    assert (ring.current, ring.names) == ("2026-01", ("2026-01", "2025-12"))
    assert KeyRing.parse(",".join(lines)).decrypt(ring.encrypt(b"text", b""), b"") == b"text"
    assert KeyRing.generate("a") != KeyRing.generate("a")


def test_keys_come_from_the_environment_and_from_a_file(tmp_path: Path):
    line = KeyRing.generate("a")
    file = tmp_path / "keys"
    file.write_text(line + "\n")
    sealed = KeyRing.from_env("KEYS", {"KEYS": line}).encrypt(b"text", b"")
    assert KeyRing.from_file(file).decrypt(sealed, b"") == b"text"


@pytest.mark.parametrize(
    "text", ["", "# nothing", "no-name-but-SECRET", "a:SECRET!", "a:U0VDUkVU", f"{'x' * 65}:U0VDUkVU", "a:AA==,a:AA=="]
)
def test_what_is_no_key_is_refused_without_showing_it(text):
    with pytest.raises(ConfigError) as raised:
        KeyRing.parse(text, source="KEYS")
    assert "SECRET" not in f"{raised.value!r} {raised.value.__dict__} {raised.value.__cause__}"


def test_an_absent_source_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="KEYS in the environment"):
        KeyRing.from_env("KEYS", {})
    with pytest.raises(ConfigError, match="cannot read the keys"):
        KeyRing.from_file(tmp_path / "absent")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot read the keys"):
        KeyRing.from_file(tmp_path / "binary")


@pytest.mark.parametrize(
    ("keys", "current"),
    [
        ({}, "a"),
        ({"a": OLD}, "b"),
        ({"a": b"short"}, "a"),
        ({"a b": OLD}, "a b"),
        ({"": OLD}, ""),
        ({"a": "o" * 32}, "a"),
    ],
)
def test_a_ring_of_no_use_is_refused(keys, current):
    with pytest.raises(ConfigError):
        KeyRing(keys, current=current)
    with pytest.raises(ConfigError):
        KeyRing.generate("a b")


def test_keys_are_never_shown():
    ring = KeyRing({"a": OLD, "b": NEW}, current="b")
    assert repr(ring) == str(ring) == "KeyRing(a, b; current=b)"
    assert not hasattr(ring, "__dict__")
    for leave in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            leave(ring)


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers.aead", None)
    with pytest.raises(ConfigError) as raised:
        KeyRing({"a": OLD}, current="a")
    assert raised.value.fix == "pip install 'livetape[encryption]'"
