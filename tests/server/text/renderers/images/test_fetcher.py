"""Fetches images only from allowed hosts and public addresses on each hop, with limits of time and size."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from server.terms.config import RendererConfig
from server.text.renderers.images.fetcher import MediaError, MediaFetcher, PublicResolver, TakeRoom, check_public

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@pytest.fixture
async def serve():
    """A function that starts a server on 127.0.0.1, which answers all requests with a handler."""
    runners = []

    async def start(handler: Handler) -> str:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handler)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        runners.append(runner)
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"  # type: ignore[attr-defined]

    yield start
    for runner in runners:
        await runner.cleanup()


class _Fetcher(MediaFetcher):
    async def fetch(self, url: str, take_room: TakeRoom | None = None) -> bytes:
        return await super().fetch(url, take_room or (lambda _: None))


def _fetcher(*domains: str, **bounds: Any) -> _Fetcher:
    """A fetcher. Its default time-out is long enough for a slow machine."""
    return _Fetcher(RendererConfig(allowed_media_domains=domains, **({"image_fetch_timeout_s": 60} | bounds)))


def _answers(**response: Any) -> Handler:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(**response)

    return handler


@pytest.mark.parametrize(
    ("allowed", "host"), [("127.0.0.1", "127.0.0.1"), ("localhost", "LOCALHOST"), ("LocalHost.", "localhost")]
)
async def test_images_are_fetched_from_a_host_that_the_operator_allows(serve, allowed, host):
    url = await serve(_answers(body=b"image", content_type="text/html"))
    assert await _fetcher(allowed).fetch(url.replace("127.0.0.1", host)) == b"image"


def test_hosts_are_compared_as_the_network_does():
    assert _fetcher("Example.COM.", "[::1]")._domains == {"example.com", "::1"}


@pytest.mark.parametrize(
    "url",
    [
        "http://evil.com/a.png",
        "http://example.com.evil.com/",
        "http://sub.example.com/",
        "http://example.com@evil.com/",
        "http://evil.com#@example.com/",
        "http://127.0.0.1/",
        "http://[::1]/",
        "http://2130706433/",
        "http://example.com%2eevil.com/",
        "http://example。com.evil.com/",
    ],
)
async def test_other_hosts_are_rejected(url):
    with pytest.raises(MediaError, match="not among --allowed-media-domains"):
        await _fetcher("example.com").fetch(url)
    with pytest.raises(MediaError, match="--allowed-media-domains"):
        await _fetcher().fetch(url)


_LONG = "http://example.com/" + "a" * 65_536


@pytest.mark.parametrize(
    "url", ["ftp://example.com/", "gopher://x/", "image.png", "//example.com/a", "http://", "", _LONG], ids=repr
)
async def test_urls_other_than_http_and_long_ones_are_rejected(url):
    with pytest.raises(MediaError, match=r"must be http|not a URL|the limit is 65536"):
        await _fetcher("example.com").fetch(url)


PRIVATE = (
    *("127.0.0.1", "10.0.0.1", "172.16.3.4", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"),
    *("224.0.1.1", "255.255.255.255", "::", "::1", "fe80::1%eth0", "fc00::1", "::ffff:127.0.0.1"),
    *("::ffff:169.254.169.254", "2002:7f00:1::", "64:ff9b::7f00:1", "ff0e::1", "::7f00:1", "::ffff:0:7f00:1"),
    *("64:ff9b:1::7f00:1", "2001:0:7f00:1::", "2606:4700::5efe:10.0.0.1", "2606:4700::200:5efe:10.0.0.1"),
    *("fec0::1", "2001:db8::1", "3fff::1", "5f00::1", "192.0.0.8", "192.88.99.1", "198.18.0.1", "240.0.0.1"),
)
"""Loopback, private, link-local, multicast and reserved addresses, and IPv6 addresses with these in them."""


@pytest.mark.parametrize("address", PRIVATE)
def test_only_public_addresses_are_accepted(address):
    with pytest.raises(MediaError, match="not on the public internet"):
        check_public(address)
    for public in ("8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"):
        check_public(public)


@pytest.mark.parametrize("host", ["2130706433", "0x7f000001", "017700000001", "127.1", "0177.0.0.1", "①②⑦.⓪.⓪.①"])
async def test_other_spellings_of_a_private_address_are_rejected_even_if_allowed(serve, host):
    """The operator has allowed a name that is neither an address nor `localhost`.

    A resolver may accept such a name as a private address.
    """
    served = []

    async def handler(request: web.Request) -> web.Response:
        served.append(request.host)
        return web.Response(body=b"secret")

    port = (await serve(handler)).rpartition(":")[2]
    with pytest.raises(MediaError):
        await _fetcher(host).fetch(f"http://{host}:{port}/")
    assert served == []


async def test_a_name_is_resolved_and_checked_again_for_each_hop(serve, monkeypatch):
    """DNS rebinding: a name's first address is public, and its next address is private."""

    port = (await serve(_answers(status=302, headers={"Location": "/again"}))).rpartition(":")[2]
    addresses = iter(["8.8.8.8", "127.0.0.1"])

    async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(addresses), port))]

    async def connect(addr_infos: Any, **_: Any) -> socket.socket:
        """Connects to the local server instead of the public address."""
        client = socket.socket()
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", int(port)))
        return client

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    monkeypatch.setattr("aiohttp.connector.aiohappyeyeballs.start_connection", connect)
    with pytest.raises(MediaError, match="not on the public internet"):
        await _fetcher("images.example").fetch(f"http://images.example:{port}/")
    assert next(addresses, None) is None


async def test_the_connection_uses_the_checked_address(monkeypatch):
    """The name is not looked up again, because an attacker could then return another address."""
    lookups = _resolve_to(monkeypatch, "8.8.8.8")
    connected: list[str] = []

    async def connect(*args: Any, **kwargs: Any) -> Any:
        connected.extend(info[4][0] for info in kwargs["addr_infos"])
        raise OSError("no network")

    monkeypatch.setattr("aiohttp.connector.aiohappyeyeballs.start_connection", connect)
    with pytest.raises(MediaError, match="fetching the image failed"):
        await _fetcher("images.example").fetch("http://images.example/")
    assert (lookups, connected) == (["images.example"], ["8.8.8.8"])


async def test_an_allowed_private_address_does_not_allow_names_to_be_private(monkeypatch):
    _resolve_to(monkeypatch, "8.8.8.8", "127.0.0.1")
    resolver = PublicResolver(frozenset({"localhost"}))
    assert [result["host"] for result in await resolver.resolve("localhost")] == ["8.8.8.8", "127.0.0.1"]
    with pytest.raises(MediaError):
        await resolver.resolve("images.example")


async def test_a_redirect_is_followed_to_an_allowed_host(serve):
    async def handler(request: web.Request) -> web.Response:
        if request.path == "/a":
            return web.Response(status=302, headers={"Location": "/b"})
        return web.Response(body=b"there")

    assert await _fetcher("127.0.0.1").fetch(await serve(handler) + "/a") == b"there"


@pytest.mark.parametrize(
    ("target", "message", "settings"),
    [
        ("http://evil.com/", "not among --allowed-media-domains", {}),
        ("http://169.254.169.254/latest/meta-data", "not among --allowed-media-domains", {}),
        ("//localhost/", "must be http or https with a host", {}),
        ("file:///etc/passwd", "neither http nor https", {}),
        ("", "redirects without a Location", {}),
        ("/a", "redirects more than 5 times", {}),
        ("/b", "VLLM_MEDIA_URL_ALLOW_REDIRECTS", {"media_url_allow_redirects": False}),
    ],
)
async def test_a_redirect_to_another_host_or_that_is_not_allowed_is_rejected(serve, target, message, settings):
    url = await serve(_answers(status=307, headers={"Location": target} if target else {}))
    with pytest.raises(MediaError, match=message):
        await _fetcher("127.0.0.1", **settings).fetch(url + "/a")


@pytest.mark.parametrize("status", [204, 304, 403, 404, 500])
async def test_an_http_error_of_the_other_server_is_reported(serve, status):
    url = await serve(_answers(status=status))
    with pytest.raises(MediaError, match=f"HTTP status {status}"):
        await _fetcher("127.0.0.1").fetch(url)


async def test_a_response_with_a_too_large_content_length_is_not_read(serve):
    url = await serve(_answers(body=bytes(1 + (1 << 20))))
    with pytest.raises(MediaError, match="larger than 1048576 bytes"):
        await _fetcher("127.0.0.1", max_media_mb=1).fetch(url)


@pytest.mark.parametrize(
    ("num_bytes", "pause_s", "bounds", "message"),
    [
        (1, 0.05, {"image_fetch_timeout_s": 1}, "within 1 s"),
        (65536, 0, {"max_media_mb": 1}, "larger than 1048576 bytes"),
    ],
    ids=["slow", "large"],
)
async def test_an_endless_response_is_cut_off_after_a_time_or_size(serve, num_bytes, pause_s, bounds, message):
    """The time-out applies to the whole response, even if the server sends data often."""
    sent = 0

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        while sent < 1 << 30:
            await response.write(b"x" * num_bytes)
            sent += num_bytes
            await asyncio.sleep(pause_s)
        return response

    url = await serve(handler)
    async with asyncio.timeout(60):
        with pytest.raises(MediaError, match=message):
            await _fetcher("127.0.0.1", **bounds).fetch(url)
    assert sent < 1 << 26


async def test_compressed_responses_are_not_decompressed(serve):
    async def handler(request: web.Request) -> web.Response:
        assert request.headers["Accept-Encoding"] == "identity"
        return web.Response(body=b"packed", headers={"Content-Encoding": "gzip"})

    assert await _fetcher("127.0.0.1").fetch(await serve(handler)) == b"packed"


async def test_an_aborted_connection_is_an_error(serve):
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "100"})
        await response.prepare(request)
        await response.write(b"half")
        request.transport.abort()
        return response

    with pytest.raises(MediaError, match="fetching the image failed"):
        await _fetcher("127.0.0.1").fetch(await serve(handler))


def _resolve_to(monkeypatch: Any, *addresses: str) -> list[str]:
    """Makes names resolve to these addresses. Returns the list of names that are looked up."""
    lookups: list[str] = []

    async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        lookups.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    return lookups
