"""Misbehaving clients and fuzzed requests. `tests/contracts` has the limits of all ports."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.request_fuzzer import MODEL, RequestFuzzer, send_all
from tests.e2e.server_process import ServerProcess, wait_process
from tests.server.engine.pooling.tiny_poolers import save_pooler, save_sentence_files
from tests.support.http_client import RawClient, ask, request_bytes
from tests.support.waiting import wait_until

GET = b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n"
HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"
UPGRADE = b"GET /v1/realtime HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: WebSocket\r\n\r\n"
SHORT = {"prompt": "a", "max_tokens": 1}
LONG = {"prompt": "a", "max_tokens": 3000, "ignore_eos": True, "stream": True}
LOUD = LONG | {"logprobs": 20, "n": 8, "temperature": 1.0}
"""A request for about 20 MB of events."""


def _completion(**fields: object) -> bytes:
    return request_bytes("/v1/completions", json.dumps({"prompt": "a"} | fields).encode())


@pytest.fixture(scope="module")
def server(tiny_llama: Path) -> Iterator[ServerProcess]:
    """A server with the default time-outs."""
    with ServerProcess([str(tiny_llama), "--max-num-queued-reqs", "16"]) as running:
        yield running


@pytest.fixture(scope="module")
def impatient(tiny_llama: Path) -> Iterator[ServerProcess]:
    """A server with time-outs of 2 s, which a well-behaved client may exceed on a busy machine."""
    with ServerProcess([str(tiny_llama), "--http-body-timeout", "2", "--http-send-timeout", "2"]) as running:
        yield running


@pytest.fixture(autouse=True)
def check_server_afterwards(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test no request runs, and the next request is answered."""
    yield
    for name in {"server", "impatient"} & set(request.fixturenames):
        server: ServerProcess = request.getfixturevalue(name)
        wait_until(lambda server=server: server.metric("vllm:num_requests_running") == 0)  # type: ignore[misc]
        with RawClient(server.port) as client:
            assert client.post("/v1/completions", SHORT).read().status == 200


@pytest.mark.parametrize(
    ("sent", "status", "text"),
    [
        pytest.param(CHUNKED + b"1\r\n{\r\n0\r\nx: " + b"a" * (1 << 20), 431, "", id="a long trailer"),
        pytest.param(CHUNKED + b"1\r\n{\r\n0\r\n" + b"x: 1\r\n" * 300, 431, "", id="many trailers"),
        pytest.param(
            CHUNKED + (b"1;" + b"x" * 5000 + b"\r\n{\r\n") * 200, 431, "The framing of the body's chunks", id="framing"
        ),
        pytest.param(UPGRADE, 400, "upgrade to websocket", id="a websocket"),
    ],
)
def test_what_is_too_long_or_not_supported_is_rejected(server, sent, status, text):
    with RawClient(server.port) as client:
        answer = client.send(sent).read()
        assert (answer.status, text in answer.error["message"]) == (status, True)


@pytest.mark.parametrize(
    ("sent", "status", "text"),
    [
        (HEAD + b"content-length: 20000000\r\n\r\n" + b" " * 10_000_000, 408, "2 s (--http-body-timeout)"),
        (b"POST /nowhere HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{", 404, "Not Found"),
    ],
    ids=["burst", "rejected"],
)
def test_a_body_that_never_ends_does_not_keep_its_connection(impatient, sent, status, text):
    """A fast first part of a body does not extend the time-out for the rest."""
    with RawClient(impatient.port) as client:
        answer = client.send(sent).read()
        assert (answer.status, text in answer.error["message"]) == (status, True)
        assert client.is_closed()


def test_trailers_are_not_treated_as_headers(server):
    """Proxies filter headers but not trailers, so a trailer must not act as a header."""
    body, trailers = json.dumps(SHORT).encode(), b"x-request-id: theirs\r\ncontent-encoding: gzip\r\n"
    with RawClient(server.port) as client:
        answer = client.send(CHUNKED + b"%x\r\n%s\r\n0\r\n%s\r\n" % (len(body), body, trailers)).read()
    assert answer.status == 200
    assert "theirs" not in answer.json["id"]


def test_pipelined_requests_are_answered_in_order(server):
    with RawClient(server.port) as client:
        client.send(b"".join(_completion(max_tokens=number) for number in (3, 1, 2)) + GET)
        assert [client.read().json["usage"]["completion_tokens"] for _ in range(3)] == [3, 1, 2]
        assert client.read().status == 200


def test_garbage_after_a_request_does_not_change_its_response(server):
    with RawClient(server.port) as client:
        answer = client.send(_completion(max_tokens=50, stream=True) + b"garbage\r\n\r\n").read_to_end()
        assert answer.count(b"HTTP/1.1") == 1
        assert answer.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


def test_any_number_of_pipelined_requests_is_answered(server):
    """The server parses them one by one, after the response to the one before."""
    with RawClient(server.port) as client:
        client.send(_completion(max_tokens=1) + GET * 1000)
        assert [client.read().status for _ in range(1001)] == [200] * 1001


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_disconnects_frees_all_its_pipelined_requests(server, stream):
    aborted, body = _num_aborted(server), LONG | {"stream": stream}
    with RawClient(server.port) as client:
        client.post("/v1/completions", body).post("/v1/completions", body)
        wait_until(lambda: server.metric("vllm:num_requests_running") == 1)
    wait_until(lambda: _num_aborted(server) == aborted + 1)


def test_a_client_that_offers_http2_gets_http1(server):
    """Java's HttpClient and `curl --http2` send such requests."""
    with RawClient(server.port) as client:
        client.post("/v1/completions", SHORT, connection="Upgrade, HTTP2-Settings", upgrade="h2c", http2_settings="AA")
        answer = client.read()
        assert (answer.status, answer.headers["connection"]) == (200, "close")


def test_a_client_that_does_not_read_is_disconnected_and_its_request_cancelled(impatient):
    aborted = _num_aborted(impatient)
    with RawClient(impatient.port, receive_buffer=4096) as client:
        client.post("/v1/completions", LOUD)
        wait_until(lambda: _num_aborted(impatient) == aborted + 8)
        impatient.wait_logged("has read nothing for 2 s (--http-send-timeout)")


def test_a_path_cannot_write_lines_or_colours_into_the_log(server):
    path = b"/one%0aERROR%20forged%1b[31m%e2%80%a8two"
    with RawClient(server.port) as client:
        client.send(GET.replace(b"/version", path))
        assert client.read().status == 404
    server.wait_logged("/one")
    (line,) = (line for line in server.log.split("\n") if "forged" in line)
    assert "/one%0AERROR%20forged%1B" in line
    assert line.isprintable()


def test_a_client_that_reads_slowly_gets_everything(server):
    with RawClient(server.port) as client:
        client.post("/v1/completions", LOUD | {"max_tokens": 50})
        assert client.read().body.endswith(b"data: [DONE]\n\n")


def _num_aborted(server: ServerProcess) -> float:
    return server.metric("vllm:request_success_total", finished_reason="abort")


TEXT_ROUTES = (
    "/v1/responses",
    *("/v1/completions", "/v1/chat/completions", "/v1/messages", "/v1/messages/count_tokens"),
    *("/tokenize", "/detokenize"),
)
POOLING_ROUTES = ("/v1/embeddings", "/pooling", "/classify", "/score", "/rerank", "/tokenize")
SETTINGS = (
    *("--served-model-name", MODEL, "--max-model-len", "128", "--override-generation-config.max_new_tokens", "4"),
    *("--disable-uvicorn-access-log", "--enable-prompt-embeds"),
)


@pytest.fixture(scope="module")
def text_server(tiny_llama: Path) -> Iterator[ServerProcess]:
    """A server whose model reasons and calls tools."""
    parsers = ("--reasoning-parser", "qwen3", "--enable-auto-tool-choice", "--tool-call-parser", "hermes")
    with ServerProcess([str(tiny_llama), *SETTINGS, *parsers]) as server:
        yield server


@pytest.fixture(scope="module")
def pooling_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("bert")
    save_pooler(folder, "bert")
    save_sentence_files(folder)
    arguments = [str(folder), "--served-model-name", MODEL, "--runner", "pooling", "--disable-uvicorn-access-log"]
    with ServerProcess(arguments) as server:
        yield server


def test_fuzzed_requests_for_text_are_answered(text_server):
    fuzz(text_server, range(1200), TEXT_ROUTES)


def test_fuzzed_requests_for_vectors_are_answered(pooling_server):
    fuzz(pooling_server, range(600), POOLING_ROUTES)


def fuzz(server: ServerProcess, seeds: range, paths: tuple[str, ...]) -> None:
    """Sends the requests, then checks the server."""
    fuzzer = RequestFuzzer(ask(f"{server.url}/openapi.json").json, *paths)
    engine = wait_process(server, "engine")
    by_status, failures = send_all(server.port, fuzzer.request, seeds)
    assert failures == []
    for status in (200, 400):  # if validation rejected all requests, the fuzzer would find nothing
        assert by_status[status] >= len(seeds) / 20, by_status
    assert server.health() == 200
    assert wait_process(server, "engine") == engine
    wait_until(lambda: server.metric("vllm:num_requests_running") + server.metric("vllm:num_requests_waiting") == 0)
