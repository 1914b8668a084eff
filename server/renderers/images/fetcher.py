"""Fetches an image over HTTP, only from hosts that the operator allows."""

import asyncio
from collections.abc import Callable, Iterator

import aiohttp
from yarl import URL

from server.config import RendererConfig
from server.renderers.images.addresses import PublicResolver, check_public, is_private_by_name, literal_address
from server.renderers.images.errors import MediaError, MediaTooLargeError

TakeRoom = Callable[[int], None]
"""Counts bytes that a request holds; raises if all requests hold too many."""

_MAX_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_MAX_URL_CHARS = 1 << 16
"""Far more than servers accept; yarl keeps the last 128 URLs in memory."""
_CHUNK_BYTES = 1 << 16
_HEADERS = {"Accept": "image/*, */*;q=0.5", "Accept-Encoding": "identity", "User-Agent": "vllm-cli"}


class MediaFetcher:
    """Runs on the event loop. Each image gets a new connection, to an address that was checked for it."""

    def __init__(self, config: RendererConfig) -> None:
        self._config = config
        self._domains = frozenset(domain.lower().rstrip(".").strip("[]") for domain in config.allowed_media_domains)
        self._private_hosts = frozenset(filter(is_private_by_name, self._domains))

    async def fetch(self, url: str, take_room: TakeRoom) -> bytes:
        """The image's bytes; room is taken for each part as it arrives.

        Raises:
            MediaError: the host is not allowed, times out, answers with an error or with too many bytes.
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
            raise next(_media_errors(err), MediaError(f"fetching the image failed: {_reason(err)}")) from err

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
        num_bytes = response.content_length or 0
        if num_bytes <= max_bytes:
            num_bytes = 0
            async for part in response.content.iter_chunked(_CHUNK_BYTES):
                num_bytes += len(part)
                if num_bytes > max_bytes:
                    break
                take_room(len(part))
                parts.append(part)
        if num_bytes > max_bytes:
            raise MediaTooLargeError(max_bytes)
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
        """Raises MediaError unless the operator allows the host: by address, or by name if it is public."""
        host = (url.host or "").lower().rstrip(".")
        if url.scheme not in ("http", "https"):
            raise MediaError(f"the URL redirects to {url.scheme!r}, which is neither http nor https")
        if not self._domains:
            raise MediaError("images are only fetched from hosts that are named in --allowed-media-domains")
        if host not in self._domains:
            raise MediaError(f"the host {host[:100]!r} is not among --allowed-media-domains")
        if (address := literal_address(host)) is not None and host not in self._private_hosts:
            check_public(address)


def _media_errors(err: BaseException) -> Iterator[MediaError]:
    """The resolver's errors that aiohttp wrapped."""
    cause: BaseException | None = err
    while cause is not None:
        if isinstance(cause, MediaError):
            yield cause
        cause = cause.__cause__ or cause.__context__


def _reason(err: BaseException) -> str:
    return (str(err) or type(err).__name__)[:200]
