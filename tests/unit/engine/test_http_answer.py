"""The text of an answer from the network: whatever its charset is said to be, it is read at once."""

from __future__ import annotations

import time

import pytest

from livetape.engine.blocks.http_fetch import Answer


def text(charset: str, body: bytes) -> str:
    return Answer(200, {"content-type": f"text/plain; charset={charset}"}, body, "https://example.com").text


@pytest.mark.parametrize(
    ("charset", "body", "found"),
    [
        ("utf-8", b"\xc3\xa9", "é"),
        ("latin-1", b"\xe9", "é"),
        ("Windows-1252", b"\x80", "€"),
        ("sjis", "日".encode("shift_jis"), "日"),
        ("GB2312", "中".encode("gb2312"), "中"),
        ("koi8-r", "я".encode("koi8_r"), "я"),
        ("utf-16", "é".encode("utf-16"), "é"),
        ("nobody-knows", b"\xc3\xa9", "é"),
        ("ascii", b"\xc3", "\N{REPLACEMENT CHARACTER}"),
    ],
)
def test_texts_are_read_in_their_charset(charset: str, body: bytes, found: str) -> None:
    assert text(charset, body) == found


@pytest.mark.parametrize("charset", ["punycode", "idna", "undefined", "unicode_escape", "hex", "zip", "rot13"])
def test_what_is_no_charset_of_texts_is_utf_8(charset: str) -> None:
    """Of two million characters, punycode would take an hour, on the loop of the worker."""
    body = b"a" * 1_000_000 + b"-" + b"a" * 1_000_000
    begun = time.process_time()
    assert text(charset, body) == body.decode()
    assert time.process_time() - begun < 5
