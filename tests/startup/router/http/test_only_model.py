"""What the router of `serve MODEL --idle-stop` answers, with its model's server and without."""

from aiohttp import web

from tests.startup.router.http.test_proxy import CHAT


async def answer(request: web.BaseRequest) -> web.StreamResponse:
    """A server that is ill, and says which path was asked."""
    return web.Response(status=503 if request.path == "/health" else 200, text=f"server {request.raw_path}\n")


async def test_its_server_gets_all_requests_and_answers_for_itself(router, client):
    await router.serve("m", has_only_model=True)
    await router.start_model("m", answer)
    async with client.post(router.url + CHAT, json={"model": "another"}) as response:
        assert await response.text() == f"server {CHAT}\n"
    async with client.get(router.url + "/any?x=1") as response:
        assert await response.text() == "server /any?x=1\n"
    async with client.get(router.url + "/health") as response:
        assert (response.status, await response.text()) == (503, "server /health\n")


async def test_its_last_reports_are_repeated_while_it_is_stopped(router, client):
    await router.serve("m", has_only_model=True)
    child = await router.start_model("m", answer)
    assert router.pool.before_stop is not None
    await router.pool.before_stop(child)
    await router.pool.unload("m")
    for path in ("/startupz", "/version", "/v1/models"):
        async with client.get(router.url + path) as response:
            assert (response.status, await response.text()) == (200, f"server {path}\n")
    async with client.get(router.url + "/metrics") as response:
        text = await response.text()
    assert 'vllm_cli:model_state{model="m",state="stopped"} 1.0\n' in text
    assert text.endswith("server /metrics\n")
    async with client.get(router.url + "/health") as response:
        assert (response.status, response.headers["Model-State"]) == (200, "stopped")
    async with client.get(router.url + "/readyz?model") as response:
        assert response.status == 503
