"""What the paths that need no key show to those who have none: names, versions, phases and counts."""

import json

import pytest

from router.model_entry import ModelEntry
from router.scheduling.terms import Outcome

QUOTED = "Its command says: token=abc in /home/me"
OPEN = [
    "/health",
    "/ping",
    "/livez",
    "/readyz",
    "/readyz?model=m",
    "/startupz",
    "/metrics",
    "/version",
    "/load",
    "/status.json",
]
SINGLE = ["/health", "/readyz?model", "/readyz?model=", "/status.json", "/startupz"]


@pytest.fixture(params=[False, True], ids=["models", "single"])
async def failed(request, router):
    entries = (
        [ModelEntry(name="m")] if request.param else [ModelEntry(name="m"), ModelEntry(name="secret", unlisted=True)]
    )
    await router.serve(entries=entries, keys=["k"], has_single_model=request.param)
    router.pool.outcome = Outcome("failed", QUOTED)
    router.pool.starts.append({"model": "m", "outcome": "failed"})
    router.pool.starts.append({"model": "secret", "outcome": "failed"})
    return router


@pytest.mark.parametrize("path", sorted({*OPEN, *SINGLE}))
async def test_without_a_key_no_output_of_a_process_is_shown(path, failed, ask):
    without = await ask("GET", path)
    assert without.status in (200, 503)
    assert b"token=abc" not in without.body
    assert path == "/metrics" or b"secret" not in without.body
    if path in ("/status.json", "/readyz?model=m"):
        allowed = await ask("GET", path, headers={"Authorization": "Bearer k"})
        assert b"token=abc" in allowed.body


async def test_a_model_in_no_list_is_found_only_with_a_key(router, ask):
    await router.serve(entries=[ModelEntry(name="m"), ModelEntry(name="secret", unlisted=True)], keys=["k"])
    with_key = {"Authorization": "Bearer k"}
    assert (await ask("GET", "/readyz?model=secret")).status == 404
    assert (await ask("GET", "/readyz?model=secret", headers=with_key)).status == 503
    shown = [row["id"] for row in json.loads((await ask("GET", "/status.json")).body)["models"]]
    assert shown == ["m"]
    assert b"secret" in (await ask("GET", "/status.json", headers=with_key)).body


async def test_a_router_without_keys_shows_the_reason(router, ask):
    await router.serve(entries=[ModelEntry(name="m")])
    router.pool.outcome = Outcome("failed", QUOTED)
    assert b"token=abc" in (await ask("GET", "/status.json")).body
