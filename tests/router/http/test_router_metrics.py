"""/metrics counts the requests to models."""

import asyncio
from time import perf_counter

import pytest
from aiohttp import web

from base.lifecycle import StartInfo
from router.http.waiting import Patience
from router.metrics import RouterMetrics
from router.model_pool import ModelRefused
from tests.router.http.small_router import eventually, metric_values, post
from tests.router.http.test_proxy import CHAT, abort, body_of, streaming


async def answer(request: web.BaseRequest) -> web.StreamResponse:
    """Answers 400 if the path ends with `400`, otherwise with a stream, which breaks off below `breaks`."""
    if request.path.endswith("400"):
        return web.Response(status=400)
    return await streaming(1, then=abort if request.path.endswith("breaks") else None)(request)


async def test_requests_are_counted_by_model_and_class_of_status(router, ask):
    await router.serve("m", "n", running=answer)
    for path in (CHAT, CHAT, "/v1/responses/400"):
        await ask("POST", path, json={"model": "m"})
    for name in ("who", "are you?"):
        assert (await ask("POST", CHAT, json={"model": name})).status == 404
    for path in ("/metrics", "/health", "/v1/models", "/status.json", "/", "/v1/models/who"):
        await ask("GET", path)
    await ask("OPTIONS", CHAT)
    await ask("POST", "/models/unload", json={"model": "n"})
    expected = {("m", "2xx"): 2, ("m", "4xx"): 1, ("unknown", "4xx"): 2}
    assert metric_values(router.pool, "requests_total") == expected
    durations = metric_values(router.pool, "request_duration_seconds_count")
    assert durations == {("m",): 3, ("unknown",): 2}


async def test_a_request_without_a_key_is_counted_without_its_model(router, ask):
    await router.serve("m", running=answer, keys=["k"])
    assert (await ask("POST", CHAT, json={"model": "m"})).status == 401
    assert metric_values(router.pool, "requests_total") == {("unknown", "4xx"): 1}


async def test_the_first_byte_is_the_models_and_comes_before_the_end(router, monkeypatch):
    goes_on, first_bytes = asyncio.Event(), []
    monkeypatch.setattr("router.http.proxy.perf_counter", lambda: first_bytes.append(perf_counter()) or first_bytes[0])
    await router.serve("m", patience=Patience(comment_s=0.01))
    reader, _ = await router.connect(post(CHAT, body_of(stream=True)))
    await reader.readuntil(b": starting")
    assert first_bytes == []
    await router.start_model("m", streaming(1, then=lambda _: goes_on.wait()))
    await reader.readuntil(b"data: 0\n\n")
    assert len(first_bytes) == 1
    assert metric_values(router.pool, "request_duration_seconds_count") == {}
    goes_on.set()
    await reader.readuntil(b"0\r\n\r\n")
    await eventually(lambda: metric_values(router.pool, "request_duration_seconds_count") == {("m",): 1})
    assert metric_values(router.pool, "time_to_first_byte_seconds_count") == {("m",): 1}


@pytest.mark.parametrize("path", ["/v1/responses/breaks", CHAT])
async def test_an_error_at_the_end_of_a_stream_is_an_error(router, client, path):
    await router.serve("m", running=None if path == CHAT else answer, patience=Patience(comment_s=0.01))
    async with client.post(router.url + path, json={"model": "m", "stream": True}) as response:
        assert response.status == 200
        if path == CHAT:
            await router.pool.refuse(ModelRefused(503, "no memory"))
        await response.read()
    await eventually(lambda: metric_values(router.pool, "requests_total") == {("m", "5xx"): 1})


async def test_a_client_that_leaves_is_no_error(router):
    await router.serve("m")
    _, writer = await router.connect(post(CHAT, body_of()))
    await eventually(lambda: router.pool.num_waiting == 1)
    writer.transport.abort()
    await eventually(lambda: metric_values(router.pool, "requests_total") == {("m", "abort"): 1})


@pytest.mark.parametrize("end", ["close", "abort"])
async def test_a_websocket_is_counted_without_its_duration(router, client, end):
    async def talk(request: web.BaseRequest) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.receive()
        return socket

    await router.serve("m", running=talk)
    async with client.ws_connect(f"{router.url}/v1/realtime?model=m") as socket:
        if end == "abort":
            socket._response.connection.transport.abort()
    await eventually(lambda: metric_values(router.pool, "requests_total") == {("m", "1xx"): 1})
    assert metric_values(router.pool, "request_duration_seconds_count") == {}


def test_reasons_of_starts_are_bounded():
    metrics = RouterMetrics()
    for number in range(50):
        for _ in range(2):
            metrics.note_start("m", "ready", StartInfo("cold", f"{number} " + "x" * 300))
    (starts,) = (family for family in metrics.collect() if family.name == "vllm_cli:router_starts")
    counts = {sample.labels["reason"]: sample.value for sample in starts.samples if sample.name.endswith("_total")}
    assert (len(counts), counts.pop("other")) == (21, 60)
    assert set(counts.values()) == {2}
    assert max(map(len, counts)) == 200
