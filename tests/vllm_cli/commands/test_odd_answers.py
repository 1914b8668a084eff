"""Commands and benchmarks read odd answers of servers: an error in words, no traceback."""

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from tests.support.http_server import ScriptedServer, serving
from vllm_cli.bench.target import ReadyServer
from vllm_cli.client.running_servers import _poll_state, _read_models
from vllm_cli.client.server_address import parse_url
from vllm_cli.client.waiting import parse_graphs
from vllm_cli.errors import ConnectionFailedError

VALUES = (None, True, 5, -1.5, 10**400, float("inf"), "text", "\ud800\x1b[2J", [], [None], ["x"], {}, {"a": 1})
FORMS: tuple[Callable[[Any], Any], ...] = (
    lambda value: value,
    lambda value: {"error": value, "choices": []},
    lambda value: {"error": {"message": value}},
    lambda value: {"data": value, "spans": value, "version": value, "models": value, "status": value},
    lambda value: {"data": [value], "spans": [value], "models": [value]},
    lambda value: {"data": [{"id": value}], "spans": [dict.fromkeys(("process", "name", "end_s"), value)]},
    lambda value: {"models": [{"id": "m", "aliases": value, "status": value, "progress": value, "for_s": value}]},
    lambda value: {"models": [{"id": value, "num_running": value, "pid": value, "memory_bytes": value}]},
    lambda value: {"status": value, "phase": value, "progress": value, "eta_s": value},
    lambda value: {"choices": value, "usage": value},
    lambda value: {"choices": [value]},
    lambda value: {"choices": [{"text": value}], "usage": {"completion_tokens": value}},
    lambda value: {"choices": [{"delta": value}]},
    lambda value: {"choices": [{"delta": {"content": value}}]},
)
BODIES = [json.dumps(form(value)).encode() for form in FORMS for value in VALUES] + [
    b"", b"<html>", b"\xff\xfe\x00", b"[" * 100_000, b'{"data": [', b'"\\ud800', b"1" * 5000, b"x" * 100_000,
]  # fmt: skip
_CHAT = "chat --model m --stats --quick hi --url"
_COMMANDS = (_CHAT, "chat --quick hi --url", "load m --url", "unload m --url", "wait --graphs --timeout 0.01")
_BENCH = {"path": "/v1/completions", "model": "m", "api_key": None}


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    with serving(ScriptedServer(lambda _: (200, b""))) as running:
        yield running


def answers() -> Iterator[tuple[int, bytes]]:
    """Each body as a whole answer, as a failure, and as a stream that ends properly or not."""
    for body in BODIES:
        yield from ((200, body), (503, body), (404, body))
        yield from ((200, b"data: " + body + b"\n\ndata: [DONE]\n\n"), (200, b"data: " + body))


@pytest.mark.thorough
@pytest.mark.parametrize("command", _COMMANDS)
def test_a_command_reads_every_answer(command, server, invoke):
    for answer in answers():
        server.decide = lambda _, answer=answer: answer
        done = invoke(*command.split(), server.url)
        assert done.returncode in (0, 1, 4), answer
        assert done.returncode == 0 or "Error: " in done.stderr, (answer, done)


@pytest.mark.thorough
def test_tables_and_benchmarks_read_every_answer(server):
    address = parse_url(server.url)
    for answer in answers():
        server.decide = lambda _, answer=answer: answer
        str(_poll_state(address)), _read_models(address), parse_graphs(answer[1].decode(errors="replace"))
        with suppress(ConnectionFailedError):
            ReadyServer(base_url=server.url, **_BENCH).ask_spans()
    assert parse_graphs("vllm_cli:cuda_graphs_total 1.2.3\nvllm_cli:cuda_graphs_captured " + "9" * 400) is None


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ({"error": "no\x1b memory"}, "The server failed: no\\x1b memory"),
        ({"error": {"message": "no memory"}}, "The server failed: no memory"),
        ({"choices": {}}, "as an OpenAI server does: `choices.0.text` is in {}"),
        ({"choices": [{"text": 5}]}, "as an OpenAI server does: `choices.0.text` is in 5"),
        ([1], "as an OpenAI server does: `the answer` is in [1]"),
    ],
)
def test_the_error_names_what_is_wrong_in_a_stream(event, message, server, invoke):
    server.decide = lambda _: (200, b"data: " + json.dumps(event).encode() + b"\n\n")
    done = invoke(*_CHAT.split(), server.url)
    assert (done.returncode, message in done.stderr) == (1, True), done.stderr


def test_another_kind_of_answer_is_named(server, invoke):
    server.decide = lambda _: (200, b"<html>", {"Content-Type": "text/html"})
    assert "No stream, but text/html, came" in invoke(*_CHAT.split(), server.url).stderr
    assert "its answer is no JSON (<html>)" in invoke("chat", "-q", "hi", "--url", server.url).stderr
