"""Lines of the log that a request causes, and a request that only a socket can send."""

import json
import logging

import pytest

from startup.logs.formatters import TextFormatter
from tests.support.http_client import RawClient


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
