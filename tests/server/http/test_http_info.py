"""The description of the API, the status page, lines of the log, and answers while the state changes."""

import base64
import hashlib
import json
import logging
import re
import subprocess
import sys
import threading
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from base.errors import EngineStartError
from base.status_page import page
from server.operation.engine_monitor import make_ready
from server.terms.types import EngineStats
from startup.logs.formatters import TextFormatter
from tests.server.http.conftest import ScriptedEngine
from tests.support.http_client import RawClient


def test_openapi_names_the_routes_that_exist(server):
    for path, operations in server.get("/openapi.json").json()["paths"].items():
        response = server.get(path.replace("{model}", "smol"))
        assert response.status_code == (200 if "get" in operations else 405), path
        if path != (absent := path.replace("{model}", "x")) and "get" in operations:
            assert str(server.get(absent).status_code) in operations["get"]["responses"]


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def test_the_page_and_its_policy_allow_only_its_own_style_and_script_and_no_other_address(server):
    answer = server.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
    (style,) = re.findall(r"<style>(.*?)</style>", answer.text, re.DOTALL)
    (script,) = re.findall(r"<script>(.*?)</script>", answer.text, re.DOTALL)
    assert (policy["style-src"], policy["script-src"]) == (_hash(style), _hash(script))
    assert (policy["default-src"], policy["connect-src"]) == ("'none'", "'self'")
    assert "frame-ancestors" in policy
    text = answer.text
    for library in Path(page.__file__).with_name("vendor").glob("*.js"):
        assert library.read_text() in text
        text = text.replace(library.read_text(), "")
    addresses = set(re.findall(r"https?://[^\s\"'`]+", text))
    names = {"http://www.w3.org/2000/svg", "http://www.w3.org/1998/Math/MathML"}
    assert addresses <= names, "except the names of the namespaces"
    assert not re.findall(r"\bon\w+=|style=\"|@import|url\(", text)


_HOLD = "held = b'a' * (1 << 28); print(flush=True); __import__('sys').stdin.read()"
"""A program with 256 MiB that no other process shares."""


def test_figures_come_from_the_engine_its_process_and_the_metrics(serve, engine):
    server = serve()
    before = server.get("/status.json").json()["live"]
    server.complete(max_tokens=3)
    engine.stats = EngineStats(3, 4, 0.25, 100, 40)
    body = server.get("/status.json").json()
    live = body["live"]
    assert (body["status"], body["model"], body["version"]) == ("ready", "smol", "1.2.3")
    assert (live["num_running"], live["num_waiting"], live["kv_cache_usage"]) == (3, 4, 0.25)
    assert (live["prefix_cache_queries"], live["prefix_cache_hits"]) == (100, 40)
    assert live["generation_tokens"] - before["generation_tokens"] == 3
    assert live["prompt_tokens"] - before["prompt_tokens"] == server.complete().json()["usage"]["prompt_tokens"]
    assert live["time_s"] > before["time_s"]
    with subprocess.Popen([sys.executable, "-c", _HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout.readline()
        grown = server.get("/status.json").json()["live"]["memory_bytes"] - live["memory_bytes"]
        child.communicate()
    assert live["memory_bytes"] > 1 << 20
    assert grown > 1 << 27, "the memory of all processes"
    assert live["uptime_s"] == 60.0


@pytest.mark.parametrize("headers", [{}, {"x-request-id": "<script>"}], ids=["no id", "an unfit id"])
def test_a_request_without_a_fit_id_has_that_of_its_answer(serve, headers):
    server = serve(enable_request_id_headers=True)
    response = server.post("/v1/completions", {"prompt": "a"}, headers=headers)
    assert response.json()["id"] == f"cmpl-{response.headers['x-request-id']}"


def test_text_of_a_request_takes_one_line_of_the_log(serve, caplog):
    caplog.set_level(logging.INFO, logger="server")
    server = serve(enable_log_requests=True)
    hostile = "x\nERROR 11-20 18:00:00 (api) forged: line\r\x1b[2J"
    assert server.complete(stop=[hostile], user=hostile).status_code == 200
    server.complete(model=hostile)
    server.chat(messages=[{"role": hostile, "content": hostile, "name": hostile}])
    call = {"id": hostile, "type": "function", "function": {"name": hostile, "arguments": hostile}}
    server.chat(messages=[{"role": "assistant", "content": None, "tool_calls": [call]}])
    server.get("/v1/models/x%0aforged")
    formatter = TextFormatter("api")
    lines = [formatter.format(record) for record in caplog.records if record.name.startswith("server")]
    assert lines
    assert not [line for line in lines if any(character in line for character in "\n\r\x1b")]


def test_neither_a_salt_nor_a_schema_nor_a_long_list_is_logged(serve, caplog):
    caplog.set_level(logging.INFO, logger="server")
    server = serve(enable_log_requests=True)
    lists = {"allowed_token_ids": list(range(5, 500)), "logit_bias": {str(token): 1 for token in range(5, 500)}}
    fields = {"cache_salt": "sesame-salt", "structured_outputs": {"regex": "sesame-text"}, "max_tokens": 3}
    assert server.complete(prompt=["a", "b c"], **fields, **lists).status_code == 200
    [line] = [record.getMessage() for record in caplog.records if "prompt tokens" in record.getMessage()]
    assert "sesame" not in line
    assert "guided=regex of 11 characters" in line
    assert "max_tokens=3," in line
    assert len(line) < 1000


def test_a_client_that_waits_before_its_body_is_asked_for_it_once(server):
    head = b"POST /tokenize HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nexpect: 100-continue\r\n"
    with RawClient(int(server.url.rpartition(":")[2])) as client:
        client.send(head + b"transfer-encoding: chunked\r\n\r\n")
        assert client.socket.recv(99) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.send(b'c\r\n{"prompt": "\r\n')
        assert client.send(b'3\r\na"}\r\n0\r\n\r\n').read().status == 200


def test_a_stream_to_a_client_of_http_1_0_ends_with_the_connection(server):
    body = json.dumps({"prompt": "a", "stream": True, "max_tokens": 3}).encode()
    head = b"POST /v1/completions HTTP/1.0\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    with RawClient(int(server.url.rpartition(":")[2])) as client:
        head, _, events = client.send(head + body).read_to_end().partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    assert events.startswith(b"data: {")
    assert events.endswith(b"data: [DONE]\n\n")


class LoadedEngine(ScriptedEngine):
    error: str | None = None

    async def wait_loaded(self, timeout_s: float):
        return self.info


@pytest.mark.parametrize(
    ("end", "message"),
    [
        ({"fails_after": 0}, "the first token could not be generated: the grammar became too large"),
        ({"dies_after": 0}, "the engine process ended unexpectedly"),
        ({"error": "killed"}, "killed"),
    ],
    ids=["the token fails", "the engine dies before its token", "after it"],
)
async def test_engine_without_a_first_token_is_not_ready(renderer, end, message):
    engine = LoadedEngine([5])
    vars(engine).update(end)
    parts = SimpleNamespace(engine=engine, renderer=renderer, metrics=SimpleNamespace(register_engine=lambda *_: None))
    with pytest.raises(EngineStartError, match=message):
        await make_ready(parts, lambda *_, **__: nullcontext(), timeout_s=5)


def test_draining_server_finishes_and_counts_running_requests_and_rejects_new_ones(serve, engine, wait_until):
    engine.holds_after = 0
    server = serve()
    assert server.get("/load").json() == {"server_load": 0}
    answers = []
    running = threading.Thread(target=lambda: answers.append(server.complete().json()))
    running.start()
    wait_until(lambda: engine.requests)
    assert server.get("/load").json() == {"server_load": 1}
    server.parts.lifecycle.drain()
    response = server.complete()
    assert (response.status_code, response.json()["status"]) == (503, "draining")
    assert response.headers["retry-after"] == "1"
    assert server.get("/health").status_code == 503
    engine.holds_after = None
    running.join()
    assert answers[0]["choices"][0]["finish_reason"] == "stop"
    wait_until(lambda: server.get("/load").json() == {"server_load": 0})


@pytest.mark.thorough
def test_bug_in_mid_stream_becomes_an_event_without_details(server, engine, monkeypatch, caplog):
    def fail(*args):
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(engine, "_outputs", fail)
    error, done = server.stream_lines("/v1/completions", {"prompt": "a"})
    assert json.loads(error)["error"]["message"] == "Internal server error"
    assert server.complete().json()["error"] == json.loads(error)["error"]
    assert "secret" in caplog.text
