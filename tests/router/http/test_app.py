"""The router answers some requests itself, forwards others to a model, and rejects unauthorized ones."""

import asyncio
import base64
import json
import logging
import re
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from base.access_log import ACCESS_LOGGER
from base.security.api_keys import STATUS_PATHS
from base.server_settings import LoggingConfig
from router.http.model_choice import _SERVED_BELOW, SERVED
from tests.router.http.small_router import SmallChild, eventually, post
from tests.router.http.test_proxy import CHAT, body_of, echo
from tests.support.ports import free_port


def test_each_path_of_the_engines_starts_a_model():
    """The paths of the embedded engine, and those of vLLM if it is installed."""
    source = (Path(__file__).parents[3] / "server" / "http" / "routes" / "table.py").read_text()
    embedded = {*re.findall(r'post\("(/[^"{]+)"', source)}
    assert len(embedded) > 5
    for folder in Path(__file__).parents[3].glob(".peers/vllm/lib/python*/site-packages/vllm/entrypoints"):
        for module in folder.rglob("api_router.py"):
            found = re.findall(r'\.(?:post|websocket)\(\s*"(/(?:v1|v2|inference|cohere)/[^"{]+)"', module.read_text())
            embedded.update(found)
    assert {path for path in embedded if path not in SERVED and not path.startswith(_SERVED_BELOW)} == set()


async def test_stored_responses_are_found_at_the_model_that_has_them(router, ask):
    asked = []

    def keeping(*known: str) -> Any:
        async def find(request: web.BaseRequest) -> web.StreamResponse:
            asked.append(f"{request.method} {request.raw_path}")
            return web.json_response({"id": "resp_1"}, status=200 if request.path.split("/")[3] in known else 404)

        return find

    await router.serve("a", "b", "stopped", "broken")
    await router.start_model("a", keeping())
    await router.start_model("b", keeping("resp_1"))
    await router.pool.start("broken", SmallChild(base_url=f"http://127.0.0.1:{free_port()}"))
    for method, path in (("GET", "/v1/responses/resp_1?stream=true"), ("POST", "/v1/responses/resp_1/cancel")):
        response = await ask(method, path)
        assert (response.status, response.json) == (200, {"id": "resp_1"})
        find = "GET /v1/responses/resp_1"
        assert asked == [find, find, f"{method} {path}"]
        asked.clear()
    response = await ask("GET", "/v1/responses/resp_2")
    assert response.status == 404
    assert "resp_2" in response.json["error"]["message"]
    await router.pool.children["broken"].connector.close()


async def test_the_context_length_of_a_model_that_has_run_is_listed(router, ask):
    asked, length = 0, 4096

    async def list_one(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal asked
        asked += request.path == "/v1/models"
        return web.json_response({"data": [{"id": "x", "max_model_len": length}]})

    await router.serve("m", "no list", "stopped", running=list_one)
    await router.start_model("no list", echo)
    for _ in range(3):
        listed = (await ask("GET", "/v1/models")).json["data"]
        assert [card["max_model_len"] for card in listed] == [4096, None, None]
        router.pool.children.pop("m", None)
    assert asked == 1
    length = 8192  # the model's files have been replaced
    await router.start_model("m", list_one)
    assert (await ask("GET", "/v1/models/m")).json["max_model_len"] == 8192


@pytest.mark.parametrize(
    ("path", "body"), [("/v1/models/org/first/load", None), ("/models/load", {"model": "org/first"})]
)
async def test_a_load_is_answered_when_the_model_is_ready(router, client, path, body):
    await router.serve("org/first")
    loading = asyncio.create_task(client.post(router.url + path, json=body))
    await eventually(lambda: router.pool.num_waiting == 1)
    assert not loading.done()
    await router.start_model("org/first", echo)
    async with await loading as response:
        answer = await response.json()
    expected = {"success": True, "id": "org/first", "status": "ready", "start_s": 0.5}
    assert answer == {name: expected[name] for name in answer}
    assert answer["success"]


USES = (
    ("POST", CHAT),
    ("GET", "/v1/x?model=m"),
    ("HEAD", "/v1/x?model=m"),
    ("GET", "/upstream/m/x"),
    ("GET", "/v1/%78?model=m"),
    ("POST", "/tokenize"),
    ("GET", "/v1/responses/resp_1"),
    ("POST", "/v1/models/m/load"),
    ("POST", "/v1/models/m/unload"),
    ("POST", "/api/models/unload"),
    ("GET", "/unload"),
)
"""Requests that start or stop a model, or reach its server."""
READS = ("/", "/health", "/readyz?model=m", "/status.json", "/metrics", "/v1/models", "/running")
FRIEND = "https://friend.example"


OTHER_SITES: tuple[dict[str, str], ...] = (
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "none", "Origin": "https://a.example"},
    {"Sec-Fetch-Site": "cross-site", "Host": "h", "Origin": "http://h"},
    *({"Host": "h:8000", "Origin": origin} for origin in ("http://a.example", "http://h", "http://h:8001")),
    *({"Host": "h:8000", "Origin": origin} for origin in ("null", "", "file://", "app://h:8000", "http://h:x")),
    {"Host": "", "Origin": "http://"},
    *({"Host": host, "Origin": "https://h"} for host in ("h:80", "h.example", "a@h:1", "[h", "")),
)
OWN_PAGES: tuple[dict[str, str], ...] = (
    {},
    {"Sec-Fetch-Site": "none"},
    {"Sec-Fetch-Site": "same-origin", "Host": "127.0.0.1:8000", "Origin": "https://behind-a-proxy.example"},
    {"Sec-Fetch-Site": "cross-site", "Origin": FRIEND},
    *({"Host": host, "Origin": "https://h.example"} for host in ("h.example", "H.example:443")),
    *({"Host": host, "Origin": "http://h.example"} for host in ("h.example", "h.example:80")),
    *({"Host": "[::1]:8000", "Origin": f"{scheme}://[::1]:8000"} for scheme in ("http", "https")),
)
"""Headers of pages of the router's host, of a friend's pages, and of programs."""


async def test_pages_of_other_sites_use_no_model(router, ask):
    await router.serve("m", running=echo, allowed_origins=(FRIEND,))
    for status, pages in ((403, OTHER_SITES), (200, OWN_PAGES)):
        for headers in pages:
            assert (await ask("POST", CHAT, headers=headers, data=body_of())).status == status, headers


async def test_the_site_of_a_page_counts_for_every_use_of_a_model(router, ask):
    await router.serve("m", allowed_origins=(FRIEND,))
    for status, headers in ((403, OTHER_SITES[0]), (200, {})):
        for method, path in USES:
            if "m" not in router.pool.children:
                await router.start_model("m", echo)
            assert (await ask(method, path, headers=headers, data=body_of())).status == status, path
    await router.start_model("m", echo)
    for path in READS:
        assert (await ask("GET", path, headers=OTHER_SITES[0])).status == 200, "a link to a page of the router"
    handshake = {"Connection": "Upgrade", "Upgrade": "websocket", **OTHER_SITES[0]}
    assert (await ask("GET", "/v1/realtime?model=m", headers=handshake)).status == 403


# Keys

KEY = {"Authorization": "Bearer secret"}


@pytest.mark.parametrize("is_everywhere", [False, True])
async def test_keys_protect_the_same_paths_as_one_server(router, ask, is_everywhere):
    await router.serve("m", running=echo, keys=("secret",), api_key_everywhere=is_everywhere)
    never = ("/v1/models", "/running", "/unload", "/upstream/m/health", "/v1/models/m/load", "/v1/x?model=m")
    by_setting, always = ("/metrics", "/status.json", "/"), ("/health", "/readyz?model=m")
    for may_be_read, paths in ((False, never), (not is_everywhere, by_setting), (True, always)):
        for path in paths:
            assert ((await ask("GET", path)).status == 401) is not may_be_read, path
    for password, status in (("secret", 200), ("no", 401)):
        basic = {"Authorization": f"Basic {base64.b64encode(f'any:{password}'.encode()).decode()}"}
        assert (await ask("GET", "/v1/models", headers=basic)).status == status


@pytest.mark.parametrize("has_single_model", [False, True])
async def test_the_router_opens_what_the_page_of_security_says(router, ask, has_single_model):
    page = (Path(__file__).parents[3] / "docs" / "security.md").read_text()
    [closed] = re.findall(r"On the router of \S+\s+\S+, (.*?)\s+needs? a key", page, re.DOTALL)
    await router.serve("m", running=echo, keys=("secret",), has_single_model=has_single_model)
    refused = set()
    for path in STATUS_PATHS:
        refused |= {path} if (await ask("GET", path)).status == 401 else set()
    assert refused == set(re.findall(r"`([^`]+)`", closed))


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
async def test_only_what_the_router_answers_itself_is_open(router, client, method):
    await router.serve("m", running=echo, keys=("secret",))
    for path in ("/tokenize", "/openapi.json", "/%6fpenapi.json", "//health", "/livez%2f", "/upstream/m/"):
        url = aiohttp.client.URL(f"{router.url}{path}?model=m", encoded=True)
        async with client.request(method, url, data=body_of()) as response:
            assert response.status == 401, path


async def test_a_request_without_a_key_is_not_read(router):
    await router.serve("m", keys=("secret",))
    reader, writer = await router.connect()
    writer.write(b"POST /v1/messages HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
    assert b" 401 " in await reader.readline()
    body = (await reader.readuntil(b"}}")).partition(b"\r\n\r\n")[2]
    assert json.loads(body)["error"]["type"] == "authentication_error"


# CORS, paths, logs


@pytest.mark.parametrize("origins", [(), ("https://a.example",)])
async def test_options_reaches_no_model_and_needs_no_key(router, ask, origins):
    await router.serve("m", running=echo, keys=("secret",), allowed_origins=origins)
    preflight = {"Origin": "https://b.example", "Access-Control-Request-Method": "POST"}
    for path in (CHAT, "/upstream/m/x", "/v1/x?model=m", "/unload", "/health"):
        response = await ask("OPTIONS", path)
        assert (response.status, "POST" in response.headers["allow"]) == (405, True)
        response = await ask("OPTIONS", path, headers=preflight)
        assert response.status == (400 if origins else 405)
        assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize("size", [1, 300_000])
async def test_the_policy_of_a_models_server_does_not_count(router, client, size):
    async def allow_all(request: web.BaseRequest) -> web.StreamResponse:
        policy = {"Access-Control-Allow-Origin": "*", "access-control-allow-credentials": "true", "X-Own": "1"}
        return web.Response(body=b"x" * size, headers=policy)

    await router.serve("m", running=allow_all, allowed_origins=("https://a.example",))
    for headers, allowed in (({"Origin": "https://a.example"}, ["https://a.example"]), ({}, [])):
        async with client.post(router.url + CHAT, data=body_of(), headers=headers) as response:
            assert (response.headers["X-Own"], len(await response.read())) == ("1", size)
            assert response.headers.getall("Access-Control-Allow-Origin", []) == allowed
            assert "Access-Control-Allow-Credentials" not in response.headers


@pytest.mark.parametrize("level", ["debug", "info", "warning", "critical"])
async def test_the_access_log_has_uvicorns_lines_and_its_level(router, ask, caplog, level):
    caplog.set_level(logging.INFO, logger="uvicorn")
    config = LoggingConfig(uvicorn_log_level=level, disable_access_log_for_endpoints=("/health",))
    await router.serve("m", logging=config)
    for path in ("/health", "/v1/models?a=%20&api_key=secret"):
        await ask("GET", path)
    records = [record for record in caplog.records if record.name == ACCESS_LOGGER]
    assert len(records) == (level in ("debug", "info"))
    for record in records:
        assert isinstance(record.args, tuple)
        assert record.args[1:] == ("GET", "/v1/models?a=%20&api_key=********", "1.1", 200)
        assert record.getMessage().startswith("127.0.0.1:")
        assert record.getMessage().endswith('- "GET /v1/models?a=%20&api_key=******** HTTP/1.1" 200')


async def test_an_absolute_target_and_a_long_one(router):
    await router.serve("m", running=echo)
    reader, writer = await router.connect(post("http://other.example/v1/x?a=1", body_of()))
    head = await reader.readuntil(b"\r\n\r\n")
    assert b" 200 " in head
    assert b'"/v1/x?a=1"' in await reader.readuntil(b"}")
    writer.write(post("/v1/x?a=" + "1" * 40_000, body_of()))
    assert b" 200 " in await reader.readuntil(b"\r\n\r\n")


async def test_each_answer_has_the_id_of_its_request(router, ask):
    await router.serve("m", running=echo, adds_request_ids=True)
    for path in ("/health", "/nothing", "/v1/models", "/upstream/m/x"):
        assert (await ask("GET", path, headers={"X-Request-Id": "mine"})).headers["x-request-id"] == "mine"
        given = {(await ask("GET", path)).headers["x-request-id"] for _ in range(2)}
        assert len(given) == 2
