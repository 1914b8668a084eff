"""vLLM gives the same answers to lines of tests/conversations that do not depend on the model's text."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conversations.conversation import Turn, conversations, differences
from tests.vllm_engine.conftest import StartVllm
from tests.vllm_engine.vllm_server import VllmServer

MARKED = [turn for one in conversations() for turn in one.turns if turn.line.get("vllm")]


@pytest.fixture(scope="module")
def server(start_vllm: StartVllm) -> Iterator[VllmServer]:
    with start_vllm("ours", "--max-model-len", "512") as server:
        server.wait_ready()
        yield server


@pytest.mark.parametrize("turn", [pytest.param(turn, id=turn.place) for turn in MARKED])
def test_vllm_answers_as_recorded(server: VllmServer, turn: Turn) -> None:
    answer = server.ask(turn.path, None if turn.body is None else {"model": "model"} | turn.body)
    body = _content(answer.body)
    problems = [
        *differences("status", answer.status, {"": turn.line.get("status", 200)}),
        *differences("answer", body, turn.line.get("answer", {})),
    ]
    assert problems == [], body


def _content(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return body.decode()
