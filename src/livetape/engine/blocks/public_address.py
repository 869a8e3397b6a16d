"""Which addresses a graph may reach. Pure.

A graph's author must not reach, through this machine, what only this machine can: itself, its network, and the
metadata service of its cloud.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TypeAlias

from livetape.errors import ConfigError

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network

# Beside what Python's own list has, which differs between its versions.
_REFUSED: tuple[Network, ...] = tuple(
    ip_network(text)
    for text in (
        "0.0.0.0/8",
        "100.64.0.0/10",  # carriers; metadata of one cloud
        "168.63.129.16/32",  # metadata of another, with a public address
        "192.0.0.0/24",
        "192.88.99.0/24",
        "198.18.0.0/15",
        "240.0.0.0/4",
        "64:ff9b:1::/48",
        "fec0::/10",
        "5f00::/16",
    )
)
_NAT64 = IPv6Network("64:ff9b::/96")
_COMPATIBLE = IPv6Network("::/96")


@dataclass(frozen=True, slots=True)
class Allowed:
    """What may be reached although it is not public."""

    names: frozenset[str] = frozenset()
    networks: tuple[Network, ...] = ()

    @classmethod
    def of(cls, entries: Iterable[str]) -> Allowed:
        """From host names, addresses and networks.

        Raises:
            ConfigError: an entry is none of them.
        """
        names: set[str] = set()
        networks: list[Network] = []
        for entry in entries:
            text = entry.strip().lower().rstrip(".")
            try:
                networks.append(ip_network(text.strip("[]"), strict=False))
            except ValueError:
                if not text or any(mark in text for mark in "/:* @"):
                    raise ConfigError(
                        f"{entry!r} is no host name, address or network",
                        set_by="requests.allow",
                        fix="write names without ports or patterns, and networks as 10.1.0.0/16",
                    ) from None
                names.add(text)
        return cls(frozenset(names), tuple(networks))

    def permits(self, host: str, address: Address) -> bool:
        """Whether this address of this host may be reached."""
        if is_public(address) or host.lower().rstrip(".") in self.names:
            return True
        return any(form in network for network in self.networks for form in _forms(address))


def is_public(address: Address) -> bool:
    """Whether it is an address of the internet, whatever it is wrapped in."""
    return all(
        form.is_global
        and not form.is_multicast
        and not form.is_reserved
        and not form.is_unspecified
        and not any(form in network for network in _REFUSED)
        for form in _forms(address)
        if not _is_wrapper(form)
    )


def _forms(address: Address) -> Iterator[Address]:
    """The address and the one that it leads to."""
    yield address
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
        if inner is None and (address in _NAT64 or (address in _COMPATIBLE and int(address) > 0xFFFF)):
            inner = IPv4Address(int(address) & 0xFFFF_FFFF)
        if inner is not None:
            yield inner


def _is_wrapper(address: Address) -> bool:
    """Judged by what is in it alone."""
    return isinstance(address, IPv6Address) and (address.ipv4_mapped is not None or address in _NAT64)


def parse_address(text: str) -> Address:
    """An address as the resolver gives it, without its zone."""
    return ip_address(text.partition("%")[0])
