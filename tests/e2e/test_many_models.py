"""Many models behind one port, through clients: what one server answers, the router answers too."""

import asyncio
import hashlib
import json
import re
import shlex
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import aiohttp
import psutil
import pytest
from openai import NotFoundError, OpenAI
from yarl import URL

from tests.e2e.test_tools import CALL, QUESTION, WEATHER
from tests.http_answer import ask
from tests.server.engine.pooling.tiny_poolers import save_pooler, save_sentence_files
from tests.startup.router.router_process import RouterProcess, embedded, foreign
from tests.waiting import wait_until

ECHO: Final = Path(__file__).parents[1] / "startup/router/echo_server.py"
TOOLS: Final = ["--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--max-model-len", "4096"]
MB: Final = 1 << 20


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Iterator[RouterProcess]:
    folder = tmp_path_factory.mktemp("models")
    bert = folder / "bert"
    bert.mkdir()
    save_pooler(bert, "bert")
    save_sentence_files(bert)
    models = {
        "org/alpha": embedded(tiny_llama) | {"args": TOOLS, "aliases": ["alpha"]},
        "org/beta": embedded(tiny_llama) | {"args": [*TOOLS, "--seed", "1"]},
        "bert": {"model": str(bert), "engine": "embedded", "args": ["--runner", "pooling"]},
        "echo": {"cmd": f"{shlex.join([sys.executable, str(ECHO)])} ${{PORT}}"},
    }
    with RouterProcess(folder, models) as running:
        for name in models:
            assert ask(f"{running.url}/v1/models/{name}/load", {}).status == 200
        yield running


@pytest.fixture
def client(router: RouterProcess) -> Iterator[OpenAI]:
    with router.openai() as openai:
        yield openai


def forced(text: str) -> dict[str, Any]:
    """The options with which a model writes this text."""
    return {"max_tokens": 300, "temperature": 0, "extra_body": {"structured_outputs": {"regex": re.escape(text)}}}


def test_two_models_take_turns_in_one_conversation_with_tools(client):
    """The first model calls the tool, the second one reads its result, in streams and in whole answers."""
    for number in range(3):
        messages: list[Any] = [QUESTION]
        with client.chat.completions.stream(
            model="org/alpha", messages=messages, tools=[WEATHER], **forced(CALL)
        ) as stream:
            for _ in stream:
                pass
            call = stream.get_final_completion().choices[0].message
        assert call.tool_calls is not None
        messages += [call, {"role": "tool", "tool_call_id": call.tool_calls[0].id, "content": f"sunny {number}"}]
        answer = client.chat.completions.create(
            model="org/beta", messages=messages, tools=[WEATHER], **forced(f"It is sunny {number}.")
        )
        assert answer.model == "org/beta"
        assert answer.choices[0].message.content == f"It is sunny {number}."


def test_streams_of_two_models_at_once(client):
    def read(number: int) -> str:
        model = ("org/alpha", "org/beta")[number % 2]
        chunks = client.completions.create(
            model=model, prompt="Once", stream=True, **forced(f"upon a time {number} of {model}")
        )
        return "".join(chunk.choices[0].text for chunk in chunks)

    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(read, range(16)))
    assert texts == [f"upon a time {number} of {('org/alpha', 'org/beta')[number % 2]}" for number in range(16)]


def test_embeddings_beside_text(client):
    alone = client.embeddings.create(model="bert", input="hello world").data[0].embedding
    texts = ["hello world"] * 200
    assert [item.embedding for item in client.embeddings.create(model="bert", input=texts).data] == [
        pytest.approx(alone, abs=1e-5)
    ] * 200


def test_names_of_models(client):
    assert [model.id for model in client.models.list()] == ["org/alpha", "org/beta", "bert", "echo"]
    assert client.models.retrieve("org/alpha").id == "org/alpha"
    assert client.completions.create(model="alpha", prompt="Once", max_tokens=1).choices
    with pytest.raises(NotFoundError, match="org/alpha"):
        client.completions.create(model="org/alpah", prompt="Once")


def test_responses_are_stored_where_they_were_made(client):
    made = [
        client.responses.create(model=model, input="Hello", max_output_tokens=4) for model in ("org/alpha", "org/beta")
    ]
    for response in made:
        found = client.responses.retrieve(response.id)
        assert (found.id, found.model) == (response.id, response.model)
    with pytest.raises(NotFoundError, match="resp_none"):
        client.responses.retrieve("resp_none")


def test_an_error_of_a_model_is_passed_on(client, router):
    async def send() -> tuple[int, Any]:
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{router.url}/v1/completions", json={"model": "org/alpha", "max_tokens": -1}) as response,
        ):
            return response.status, await response.json()

    status, body = asyncio.run(send())
    assert status == 400
    assert body["error"]["type"] == "BadRequestError"


def test_a_form_with_a_file_of_50_mb(client):
    file = b"RIFF" + bytes(range(256)) * (200 * 1024)
    answer: Any = client.audio.transcriptions.create(model="echo", file=("a.wav", file))
    assert answer.size > len(file)


@pytest.mark.parametrize("is_first", [True, False], ids=["first", "last"])
def test_a_body_of_50_mb(router, is_first):
    image = "data:image/png;base64," + "QUJD" * (12 * MB)
    name = {"model": "echo"}
    body = json.dumps(name | {"image": image} if is_first else {"image": image} | name).encode()

    async def send() -> Any:
        async with (
            aiohttp.ClientSession() as session,
            session.post(URL(f"{router.url}/v1/chat/completions?a=%2F", encoded=True), data=body) as response,
        ):
            return await response.json()

    answer = asyncio.run(send())
    assert answer["sha256"] == hashlib.sha256(body).hexdigest()
    assert answer["target"] == "/v1/chat/completions?a=%2F"


def test_thousands_of_waiting_clients_cost_little_and_leave_nothing(tmp_path):
    words = ("--max-waiting", "10000", "--max-wait", "600", "--startup-timeout", "600")
    with RouterProcess(tmp_path, {"slow": foreign("never-listens")}, *words) as router:
        process = psutil.Process(router.process.pid)
        body = json.dumps({"model": "slow", "prompt": "x" * 2000}).encode()
        before = process.memory_info().rss
        clients = [socket.create_connection(("127.0.0.1", router.port)) for _ in range(2000)]
        for client in clients:
            client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        wait_until(lambda: router.models()["slow"]["num_waiting"] == 2000)
        assert process.memory_info().rss - before < 150 * MB
        for client in clients:
            client.close()
        wait_until(lambda: router.models()["slow"]["num_waiting"] == 0)
        wait_until(lambda: process.num_fds() < 100)


def test_a_websocket(router):
    async def talk() -> list[str]:
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{router.url}/v1/realtime?model=echo") as socket,
        ):
            answers = []
            for number in range(20):
                await socket.send_str(f"{number}" * 10_000)
                answers.append(await socket.receive_str())
            return answers

    assert asyncio.run(talk()) == [f"{number}" * 10_000 for number in range(20)]
