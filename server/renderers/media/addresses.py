"""Decides which network addresses pictures may be fetched from, and connects to the very ones it has looked at."""

import asyncio
import socket
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

from aiohttp.abc import AbstractResolver, ResolveResult

from server.renderers.media.errors import MediaError

_NAT64 = (IPv6Network("64:ff9b::/96"), IPv6Network("64:ff9b:1::/48"))
"""IPv6 addresses that a gateway translates into IPv4 ones, private ones included."""


class PublicResolver(AbstractResolver):
    """Resolves host names to public addresses; aiohttp connects to what it returns and asks nobody again.

    A name that resolves to one private address among others is refused altogether.
    """

    def __init__(self, private_hosts: frozenset[str]) -> None:
        """`private_hosts` may be anywhere: the operator wrote their addresses, or `localhost`."""
        self._private_hosts = private_hosts

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Raises MediaError where an address is not public, OSError where the name does not resolve."""
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
        """Holds nothing."""


def check_public(address: str) -> None:
    """Raises MediaError for an address that is not on the internet: loopback, private, link-local, metadata."""
    if not _is_public(ip_address(address.partition("%")[0])):
        raise MediaError(
            "the host is not on the public internet; the operator may allow such a host "
            "by naming its address, or localhost, in --allowed-media-domains"
        )


def literal_address(host: str) -> str | None:
    """The host, if it is an address and not a name."""
    try:
        return str(ip_address(host.partition("%")[0]))
    except ValueError:
        return None


def is_private_by_name(domain: str) -> bool:
    """Whether the operator, by writing this domain, means a host that need not be public."""
    return domain == "localhost" or literal_address(domain) is not None


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    if isinstance(address, IPv6Address):
        embedded = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
        if embedded is not None:
            return _is_public(embedded)
        if any(address in network for network in _NAT64):
            return False
    return address.is_global and not address.is_multicast
