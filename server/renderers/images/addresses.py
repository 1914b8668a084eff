"""Decides which network addresses images may be fetched from; connections use exactly these addresses."""

import asyncio
import socket
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from aiohttp.abc import AbstractResolver, ResolveResult

from server.renderers.images.errors import MediaError

_IPV6_INTERNET = IPv6Network("2000::/3")
"""All that IANA has allocated to the internet; excludes, for example, IPv4 embedded in IPv6 (NAT64, SIIT)."""
_SPECIAL = (IPv4Network("192.0.0.0/24"), IPv4Network("192.88.99.0/24"), IPv6Network("3fff::/20"))
"""For protocols, relays and documentation; Python's `is_global` does not exclude them in all versions."""
_ISATAP = (0x0000_5EFE, 0x0200_5EFE)
"""Marks an IPv6 address whose last 32 bits are the IPv4 address of a tunnel's end."""


class PublicResolver(AbstractResolver):
    """Resolves host names to public addresses; aiohttp connects to the returned addresses without resolving
    again.

    A name is rejected if any of its addresses is private.
    """

    def __init__(self, private_hosts: frozenset[str]) -> None:
        """`private_hosts` may have any address: the operator named them by address, or as `localhost`."""
        self._private_hosts = private_hosts

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Raises MediaError if an address is not public, OSError if the name does not resolve."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, family=family)
        results = []
        for of_family, _, proto, _, address in found:
            if host not in self._private_hosts:
                check_public(str(address[0]))
            results.append(
                ResolveResult(
                    hostname=host,
                    host=str(address[0]),
                    port=port,
                    family=of_family,
                    proto=proto,
                    flags=socket.AI_NUMERICHOST,
                )
            )
        return results

    async def close(self) -> None:
        """No effect: the resolver holds no resources."""


def check_public(address: str) -> None:
    """Raises MediaError for an address off the internet: loopback, private, link-local, metadata."""
    if not _is_public(ip_address(address.partition("%")[0])):
        raise MediaError(
            "the host is not on the public internet; the operator may allow such a host "
            "by naming its address, or localhost, in --allowed-media-domains"
        )


def literal_address(host: str) -> str | None:
    """The host as an address; None if it is a name."""
    try:
        return str(ip_address(host.partition("%")[0]))
    except ValueError:
        return None


def is_private_by_name(domain: str) -> bool:
    """Whether an allowed domain names a host that may have a private address."""
    return domain == "localhost" or literal_address(domain) is not None


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    if isinstance(address, IPv6Address):
        embedded = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
        if embedded is not None:
            return _is_public(embedded)
        if address not in _IPV6_INTERNET or int(address) >> 32 & 0xFFFF_FFFF in _ISATAP:
            return False
    is_special = any(address in network for network in _SPECIAL)
    return address.is_global and not address.is_multicast and not is_special
