"""`vllm-cli load` and `unload` with HTTP servers that answer like a router or like another server."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.support.http_server import Request, ScriptedServer, serving
from vllm_cli.commands import load

_NEAR = "The model `qwem` does not exist. Did you mean `qwen`?"
_FAILED = {"error": {"message": "qwen failed: \x1b[2Jnot enough memory", "type": "unavailable_error", "code": 503}}


@pytest.fixture
def start() -> Iterator[Callable[..., ScriptedServer]]:
    """A function that starts a server with an answer to each POST. Its status data is a router's or not."""

    def start_server(*answer: Any, is_router: bool = True) -> ScriptedServer:
        own = {"models": []} if is_router else {"model": "smol"}
        server = ScriptedServer(lambda request: answer if request.method == "POST" else (200, own))
        return running.enter_context(serving(server))

    with ExitStack() as running:
        yield start_server


@pytest.mark.parametrize(("verb", "ending"), [("load", "ready"), ("sleep", "asleep"), ("unload", "stopped")])
def test_a_model_is_named_in_the_path_and_the_outcome_is_told(verb, ending, start, invoke):
    server = start(200, {"status": ending})
    done = invoke(verb, "org/model:tag", "--port", server.server_port, "--json", "--api-key", "secret")
    assert done.returncode == 0
    (post,) = (request for request in server.requests if request.method == "POST")
    assert (post.path, post.headers["Authorization"]) == (f"/v1/models/org/model:tag/{verb}", "Bearer secret")
    outcome = json.loads(done.stdout)
    assert (outcome["model"], outcome["status"], outcome["reason"]) == ("org/model:tag", ending, None)
    assert outcome["took_s"] >= 0
    assert done.stderr.startswith("org/model:tag ")


def test_near_names_and_the_reason_of_a_failure_are_shown_without_control_characters(start, invoke):
    unknown = invoke("load", "qwem", "--url", f"{start(404, {'error': {'message': _NEAR, 'code': 404}}).url}/v1")
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert unknown.stderr == f"Error: The server answered 404: {_NEAR}\n"
    server = start(503, _FAILED)
    done = invoke("load", "qwen", "--url", server.url, "--json")
    assert done.returncode == 1
    assert "not enough memory" in done.stderr
    assert "\x1b" not in done.stderr + done.stdout
    assert json.loads(done.stdout)["status"] == "failed"
    quiet = invoke("load", "qwen", "--url", server.url, "-q")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (1, "", "")


@pytest.mark.parametrize("status", [404, 405])
def test_a_server_with_one_model_is_named_as_such(status, start, invoke):
    server = start(status, {"error": {"message": "Not Found"}}, is_router=False)
    done = invoke("unload", "smol", "--url", server.url)
    assert done.returncode == 1
    assert "has one model" in done.stderr


def test_a_load_that_takes_too_long_ends_with_a_code_of_its_own(start, invoke):
    is_over = threading.Event()
    server = start(200, {})
    server.decide = lambda _: (200, {}) if is_over.wait(60) else ()
    done = invoke("load", "qwen", "--url", server.url, "--timeout", "0.3", "--json")
    is_over.set()
    assert done.returncode == 4
    assert json.loads(done.stdout)["status"] == "timed out"


def test_what_the_router_waits_for_is_told(start, invoke, monkeypatch):
    monkeypatch.setattr(load, "_POLL_S", 0.05)
    monkeypatch.setattr(load, "_ANSWER_S", 60.0)
    is_over = threading.Event()
    server = start(200, {})
    row = {"id": "org/qwen", "aliases": ["qwen"], "status": "draining", "num_running": 3, "progress": None}

    def decide(request: Request) -> tuple[int, Any]:
        if request.method == "POST":
            return (200, {}) if is_over.wait(60) else (504, {})
        if len(server.requests) > 2:
            is_over.set()
        return 200, {"models": [{**row, "id": "other", "aliases": []}, row]}

    server.decide = decide
    done = invoke("unload", "qwen", "--url", server.url)
    assert done.returncode == 0
    assert re.match(r" +[\d.]+ s  qwen is draining, 3 requests run\nqwen has stopped after ", done.stderr)
