"""Which addresses a graph may reach."""

from __future__ import annotations

import pytest

from livetape.engine.blocks.public_address import Allowed, is_public, parse_address
from livetape.errors import ConfigError

PRIVATE = (
    *("0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.100.100.200", "127.0.0.1"),
    *("127.255.255.254", "168.63.129.16", "169.254.0.1", "169.254.169.254", "172.16.0.1", "172.31.255.255"),
    *("192.0.0.192", "192.0.2.1", "192.168.0.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1"),
    *("239.255.255.255", "240.0.0.1", "255.255.255.255"),
    *("::", "::1", "::7f00:1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::ffff:0:0"),
    *("64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "100::1", "2001::1", "2001:db8::1", "2002:7f00:1::"),
    *("2002:a9fe:a9fe::1", "fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1"),
    *("::127.0.0.1", "::10.0.0.1"),
)

PUBLIC = (
    *("1.1.1.1", "8.8.8.8", "93.184.216.34", "172.32.0.1", "2606:4700::1111", "2001:4860:4860::8888"),
    *("::ffff:8.8.8.8", "64:ff9b::808:808"),
)


@pytest.mark.parametrize("address", PRIVATE)
def test_what_only_this_machine_can_reach_is_not_public(address: str) -> None:
    assert not is_public(parse_address(address))
    assert not Allowed().permits("example.com", parse_address(address))


@pytest.mark.parametrize("address", PUBLIC)
def test_the_internet_is_public(address: str) -> None:
    assert is_public(parse_address(address))


def test_what_is_allowed_is_allowed_in_every_form_and_nothing_beside_it() -> None:
    allowed = Allowed.of(["10.1.0.0/16", "Intern.Example.", "::1", "192.168.1.7"])
    assert allowed.permits("x", parse_address("10.1.2.3"))
    assert allowed.permits("x", parse_address("::ffff:10.1.2.3"))
    assert allowed.permits("x", parse_address("::1"))
    assert allowed.permits("x", parse_address("192.168.1.7"))
    assert allowed.permits("INTERN.example", parse_address("10.9.9.9"))
    assert not allowed.permits("intern.example.evil.test", parse_address("10.9.9.9"))
    assert not allowed.permits("x", parse_address("10.2.0.1"))
    assert not allowed.permits("x", parse_address("192.168.1.8"))


@pytest.mark.parametrize("entry", ["", "*.example.com", "http://x", "host:80", "10.0.0.0/99", "a b"])
def test_entries_that_are_none_are_refused_at_the_start(entry: str) -> None:
    with pytest.raises(ConfigError, match="no host name, address or network"):
        Allowed.of([entry])
