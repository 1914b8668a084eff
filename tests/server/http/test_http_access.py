"""Keys, origins, request ids, paths and bodies: everything before a request is decoded."""

import json
import logging
import re
import socket

import httpx
import pytest

from startup.logs.formatters import TextFormatter
from tests.server.http.conftest import PATIENT_S

GUARDED = ["/v1/models", "/v1/models/smol", "/v1/completions", "/tokenize", "/docs", "/nowhere"]
PROBES = ["/health", "/ping", "/livez", "/readyz"]
STATUS = ["/", "/status.json", "/startupz", "/metrics", "/load", "/version", "/openapi.json"]


@pytest.fixture(scope="module")
def _keyed_server(_start):
    with _start(api_keys=("first", "zweiter-schlüssel")) as server:
        yield server


@pytest.fixture
def keyed(_keyed_server, engine):
    """The server with API keys that the tests of this module share."""
    return _keyed_server


@pytest.mark.parametrize("path", [*PROBES, *STATUS])
def test_probes_and_status_need_no_key(keyed, path):
    assert keyed.get(path).status_code == 200


def test_api_key_everywhere_leaves_only_probes_open(serve):
    server = serve(api_keys=("first",), api_key_everywhere=True)
    key = {"authorization": "Bearer first"}
    assert {path: server.get(path).status_code for path in STATUS} == dict.fromkeys(STATUS, 401)
    assert {path: server.get(path, headers=key).status_code for path in STATUS} == dict.fromkeys(STATUS, 200)
    assert {path: server.get(path).status_code for path in PROBES} == dict.fromkeys(PROBES, 200)


def test_open_paths_contain_no_secrets(serve):
    server = serve(api_keys=("sesame-key",))
    headers = {"authorization": "Bearer sesame-key", "user-agent": "sesame-agent", "x-request-id": "sesame-id"}
    answer = server.post("/v1/completions", {"prompt": "sesame-prompt", "user": "sesame-user"}, headers=headers)
    assert answer.status_code == 200
    server.post("/v1/sesame-path", {"prompt": "a"}, headers=headers)
    assert [path for path in STATUS if "sesame" in server.get(path).text] == []


@pytest.mark.parametrize("path", GUARDED)
def test_all_other_paths_need_a_key(keyed, path):
    response = keyed.get(path)
    assert response.status_code == 401
    assert response.json()["error"]["code"] == 401
    assert keyed.post(path, {}).status_code == 401
    assert keyed.get(path, headers={"authorization": "Bearer first"}).status_code != 401


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        *(("/v1/models", {"authorization": given}) for given in ("first", "Basic first", "Bearer", "Bearer firs")),
        *(("/v1/models", {"authorization": given}) for given in ("Bearer first,zweiter", "Bearer firstt")),
        *((path, {}) for path in ("//health", "/health/", "/HEALTH", "/;/health")),
        *((path, {}) for path in ("/health/%2e%2e/v1/models", "/v1/models/%2e%2e/%2e%2e/health")),
        *(("/v1/models", {name: "/health"}) for name in ("x-forwarded-for", "x-original-url", "x-rewrite-url")),
        ("/v1/models", {"x-http-method-override": "/health"}),
        ("/v1/models?api_key=first&authorization=Bearer%20first", {}),
    ],
    ids=str,
)
def test_nothing_but_a_key_opens_a_path(keyed, path, headers):
    assert keyed.get(path, headers=headers).status_code == 401


def test_each_of_the_keys_is_accepted(keyed):
    for key in ("Bearer first", "bearer first", "Bearer zweiter-schlüssel".encode()):
        assert keyed.get("/v1/models", headers={"authorization": key}).status_code == 200


def test_preflight_needs_no_key(serve):
    server = serve(api_keys=("first",), allowed_origins=("*",))
    headers = {"origin": "http://elsewhere", "access-control-request-method": "POST"}
    url = server.url + "/v1/completions"
    response = httpx.options(url, headers=headers, trust_env=False, timeout=PATIENT_S)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize(
    ("options", "origin", "allowed"),
    [
        ({}, "http://here", None),
        ({"allowed_origins": ("*",)}, "http://elsewhere", "*"),
        ({"allowed_origins": ("http://here",)}, "http://here", "http://here"),
        ({"allowed_origins": ("http://here",)}, "http://elsewhere", None),
    ],
    ids=["default", "all", "listed", "other"],
)
def test_origins_are_allowed_by_the_flag(serve, options, origin, allowed):
    server = serve(**options)
    for path in ("/v1/models", "/health", "/health"):
        headers = server.get(path, headers={"origin": origin}).headers
        assert headers.get("access-control-allow-origin") == allowed
        assert headers.get("vary") in (None, "Origin"), "the headers of one answer are not those of the next"


def test_request_id_of_the_client_is_part_of_the_response_id(server):
    response = server.complete()
    assert "x-request-id" not in response.headers
    response = server.post("/v1/completions", {"prompt": "a"}, headers={"x-request-id": "mine"})
    assert response.json()["id"] == "cmpl-mine"


def test_request_id_is_echoed_if_the_server_is_configured_to(serve):
    server = serve(enable_request_id_headers=True)
    response = server.post("/v1/completions", {"prompt": "a"}, headers={"x-request-id": "mine"})
    assert response.headers["x-request-id"] == "mine"
    response = server.complete()
    assert response.json()["id"] == f"cmpl-{response.headers['x-request-id']}"
    for path in ("/nowhere", "/health"):
        assert len(server.get(path).headers["x-request-id"]) == 32


@pytest.mark.parametrize("path", ["/nowhere", "/v1", "/v1/nowhere", "/v1/audio/speech", "/v1/chat/completions/batch"])
def test_unknown_path_is_a_404_in_the_envelope_that_names_the_engine_for_vllm_s_other_endpoints(server, path):
    response = server.get(path)
    assert response.status_code == 404
    error = response.json()["error"]
    assert error | {"message": ""} == {"message": "", "type": "Not Found", "param": None, "code": 404}
    assert "--engine vllm" in error["message"]


def test_wrong_method_is_a_405_in_the_envelope(server):
    response = server.get("/v1/completions")
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"
    assert response.json()["error"]["code"] == 405


@pytest.mark.parametrize("prefix", ["/api", ""], ids=["kept", "stripped"])
def test_routes_work_with_and_without_the_root_path(serve, prefix):
    server = serve(root_path="/api", api_keys=("key",))
    assert server.get(prefix + "/health").status_code == 200
    assert server.get(prefix + "/version").status_code == 200
    assert server.get(prefix + "/v1/models").status_code == 401
    assert server.get(prefix + "/v1/models", headers={"authorization": "Bearer key"}).status_code == 200


@pytest.mark.parametrize(
    ("content_type", "content", "message"),
    [
        ("text/plain", b'{"prompt": "a"}', "application/json"),
        ("", b'{"prompt": "a"}', "application/json"),
        ("application/x-www-form-urlencoded", b'{"prompt": "a"}', "application/json"),
        ("application/json", b'{"prompt": ', "not valid JSON"),
        ("Application/JSON; charset=utf-8", b'{"prompt": "a"}', None),
    ],
    ids=["text", "none", "form", "broken", "charset"],
)
def test_bodies_must_be_json_and_declared_as_json(server, content_type, content, message):
    response = server.post_bytes("/v1/completions", content, content_type)
    if message is None:
        assert response.status_code == 200
    else:
        assert (response.status_code, response.json()["error"]["type"]) == (400, "BadRequestError")
        assert message in response.json()["error"]["message"]


def test_a_request_id_unfit_for_headers_and_logs_is_replaced(serve):
    """See tests/server/routes/test_asgi.py for all unfit ids."""
    server = serve(enable_request_id_headers=True)
    response = server.post("/v1/completions", {"prompt": "a"}, headers={"x-request-id": "<script>"})
    assert response.status_code == 200
    assert re.fullmatch(r"[0-9a-f]{32}", response.headers["x-request-id"])
    assert response.json()["id"] == f"cmpl-{response.headers['x-request-id']}"


def test_a_terminal_escape_in_a_header_is_rejected_by_the_parser(server):
    headers = {"x-request-id": b"a\x1b[31m"}
    assert server.post("/v1/completions", {"prompt": "a"}, headers=headers).status_code == 400


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


def test_a_query_with_other_bytes_than_ascii_is_rejected(server):
    with socket.create_connection(("127.0.0.1", httpx.URL(server.url).port)) as connection:
        connection.sendall(b"GET /v1/models?key=\xc3\xbc HTTP/1.1\r\nhost: x\r\n\r\n")
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 400 ")


def test_a_stream_to_a_client_of_http_1_0_ends_with_the_connection(server):
    body = json.dumps({"prompt": "a", "stream": True, "max_tokens": 3}).encode()
    head = b"POST /v1/completions HTTP/1.0\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    with socket.create_connection(("127.0.0.1", httpx.URL(server.url).port)) as connection:
        connection.sendall(head + body)
        with connection.makefile("rb") as answer:
            head, _, events = answer.read().partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    assert events.startswith(b"data: {")
    assert events.endswith(b"data: [DONE]\n\n")


def test_no_key_is_logged(serve, caplog):
    caplog.set_level(logging.DEBUG)
    server = serve(api_keys=("sesame-open",), enable_log_requests=True)
    for key in ("sesame-open", "sesame-shut"):
        for path in ("/v1/completions", "/nowhere"):
            server.post(path, {"prompt": "a"}, headers={"authorization": f"Bearer {key}"})
    assert caplog.records
    assert "sesame" not in "".join(record.getMessage() for record in caplog.records if record.name != "httpx")
