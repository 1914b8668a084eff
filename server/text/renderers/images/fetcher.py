"""Fetches images over HTTP from hosts that the operator allows. Their addresses must usually be public."""

import asyncio
import socket
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

import aiohttp
from aiohttp.abc import ResolveResult
from yarl import URL

from base.errors import ServerError, with_causes
from base.wording import one_line
from server.terms.config import RendererConfig

_IPV6_INTERNET = IPv6Network("2000::/3")
"""The addresses that IANA has allocated to the internet. They exclude IPv4 within IPv6 (NAT64, SIIT)."""
_SPECIAL = (IPv4Network("192.0.0.0/24"), IPv4Network("192.88.99.0/24"), IPv6Network("3fff::/20"))
"""Networks for protocols, relays and documentation. `is_global` is true for them in some Python versions."""
_ISATAP = (0x0000_5EFE, 0x0200_5EFE)
"""Bits 32 to 63 of an ISATAP address. The last 32 bits are the IPv4 address of the tunnel's end."""
TakeRoom = Callable[[int], None]
"""Counts bytes that a request holds. Raises an error if all requests together hold too many bytes."""
_MAX_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_MAX_URL_CHARS = 1 << 16
"""The most characters of a URL, because yarl keeps the last 128 URLs in memory. Servers accept far fewer."""
_CHUNK_BYTES = 1 << 16
_HEADERS = {"Accept": "image/*, */*;q=0.5", "Accept-Encoding": "identity", "User-Agent": "vllm-cli"}


class MediaError(ServerError):
    """An image cannot be loaded or decoded. The client gets the image's position before this message."""


class MediaTooLargeError(MediaError):
    """An image file is larger than the operator allows."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(f"the image is larger than {max_bytes} bytes (VLLM_MAX_MEDIA_DOWNLOAD_SIZE_MB)")


class PublicResolver(aiohttp.ThreadedResolver):
    """Resolves host names to public addresses. Rejects a name if any of its addresses is private.

    aiohttp connects to the returned addresses without resolving the name again.
    """

    def __init__(self, private_hosts: frozenset[str]) -> None:
        """`private_hosts` may be private, because the operator named them by address or as localhost."""
        super().__init__()
        self._private_hosts = private_hosts

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Raises MediaError if an address is not public, and OSError if the name cannot be resolved."""
        results = await super().resolve(host, port, family)
        if host not in self._private_hosts:
            for result in results:
                check_public(result["host"])
        return results


def check_public(address: str) -> None:
    """Raises MediaError for an address that is not public, such as a loopback, private or link-local one."""
    if not _is_public(ip_address(address.partition("%")[0])):
        raise MediaError(
            "the host is not on the public internet. The operator may allow such a host "
            "by naming its address, or localhost, in --allowed-media-domains"
        )


def literal_address(host: str) -> str | None:
    """Returns the host if it is an IP address, and None if it is a name."""
    try:
        return str(ip_address(host.partition("%")[0]))
    except ValueError:
        return None


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    if isinstance(address, IPv6Address):
        embedded = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
        if embedded is not None:
            return _is_public(embedded)
        if address not in _IPV6_INTERNET or int(address) >> 32 & 0xFFFF_FFFF in _ISATAP:
            return False
    is_special = any(address in network for network in _SPECIAL)
    return address.is_global and not address.is_multicast and not is_special


class MediaFetcher:
    """Fetches images, on the event loop. Each image gets a new connection to an address that was checked."""

    def __init__(self, config: RendererConfig) -> None:
        self._config = config
        domains = [domain.lower().rstrip(".").strip("[]") for domain in config.allowed_media_domains]
        self._domains = frozenset(domains)
        self._private_hosts = frozenset(d for d in domains if d == "localhost" or literal_address(d) is not None)

    async def fetch(self, url: str, take_room: TakeRoom) -> bytes:
        """Fetches the bytes of an image. `take_room` is called for each part that arrives.

        Raises:
            MediaError: the host is not allowed or times out, or its response is an error or too large.
        """
        timeout_s = self._config.image_fetch_timeout_s
        resolver = PublicResolver(self._private_hosts)
        try:
            async with (
                asyncio.timeout(timeout_s),
                aiohttp.ClientSession(
                    connector=aiohttp.TCPConnector(resolver=resolver, use_dns_cache=False, force_close=True),
                    cookie_jar=aiohttp.DummyCookieJar(),
                    headers=_HEADERS,
                    auto_decompress=False,
                    trust_env=False,
                ) as session,
            ):
                return await self._follow(session, self._parse(url), take_room)
        except TimeoutError as err:
            raise MediaError(f"the image did not come within {timeout_s:g} s (VLLM_IMAGE_FETCH_TIMEOUT)") from err
        except MediaError:
            raise
        except (aiohttp.ClientError, OSError, ValueError) as err:
            wrapped = (each for each in with_causes(err) if isinstance(each, MediaError))
            raise next(wrapped, MediaError(f"fetching the image failed: {one_line(err)[:200]}")) from err

    async def _follow(self, session: aiohttp.ClientSession, url: URL, take_room: TakeRoom) -> bytes:
        for _ in range(_MAX_REDIRECTS + 1):
            self._check(url)
            async with session.get(url, allow_redirects=False) as response:
                if response.status not in _REDIRECTS:
                    return await self._read(response, take_room)
                target = response.headers.get("Location")
            if not self._config.media_url_allow_redirects:
                raise MediaError("the URL redirects, and redirects are not followed (VLLM_MEDIA_URL_ALLOW_REDIRECTS)")
            if not target:
                raise MediaError("the URL redirects without a Location header")
            url = url.join(self._parse(target, allow_relative=True))
        raise MediaError(f"the URL redirects more than {_MAX_REDIRECTS} times")

    async def _read(self, response: aiohttp.ClientResponse, take_room: TakeRoom) -> bytes:
        if response.status != 200:
            raise MediaError(f"the URL answered with HTTP status {response.status}")
        max_bytes = self._config.max_media_bytes
        parts: list[bytes] = []
        num_left = max_bytes
        if (response.content_length or 0) > max_bytes:
            raise MediaTooLargeError(max_bytes)
        async for part in response.content.iter_chunked(_CHUNK_BYTES):
            num_left -= len(part)
            if num_left < 0:
                raise MediaTooLargeError(max_bytes)
            take_room(len(part))
            parts.append(part)
        return b"".join(parts)

    def _parse(self, text: str, *, allow_relative: bool = False) -> URL:
        if len(text) > _MAX_URL_CHARS:
            raise MediaError(f"the URL has {len(text)} characters: the limit is {_MAX_URL_CHARS}")
        try:
            url = URL(text)
        except (ValueError, TypeError) as err:
            raise MediaError(f"not a URL: {err}") from err
        if not url.absolute and allow_relative:
            return url
        if url.scheme not in ("http", "https") or not url.host:
            raise MediaError(f"the URL must be http or https with a host, got {text[:100]!r}")
        return url

    def _check(self, url: URL) -> None:
        """Raises MediaError if the operator does not allow the host. Does not resolve host names."""
        host = (url.host or "").lower().rstrip(".")
        if url.scheme not in ("http", "https"):
            raise MediaError(f"the URL redirects to {url.scheme!r}, which is neither http nor https")
        if not self._domains:
            raise MediaError("images are only fetched from hosts that are named in --allowed-media-domains")
        if host not in self._domains:
            raise MediaError(f"the host {host[:100]!r} is not among --allowed-media-domains")
        if (address := literal_address(host)) is not None and host not in self._private_hosts:
            check_public(address)
