"""The responder repeats an answer only if it tells the server's health."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn

from startup.vllm.probes.serving_probes import HealthSampler


def _server(status: int) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    config = uvicorn.Config(app, lifespan="off", server_header=False, log_config=None)
    config.load()
    return SimpleNamespace(
        config=config, server_state=SimpleNamespace(default_headers=[]), lifespan=SimpleNamespace(state={})
    )


@pytest.mark.parametrize(("status", "is_repeated"), [(200, True), (503, True), (401, False), (404, False)])
def test_only_200_and_503_are_repeated(status, is_repeated):
    answer = asyncio.run(HealthSampler(_server(status)).current())
    assert (answer is not None and answer.status == status) == is_repeated
