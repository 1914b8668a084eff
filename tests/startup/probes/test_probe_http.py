"""Only a plain `GET /health` is answered instead of the HTTP server."""

import pytest

from startup.probes.probe_http import parse_probe

_CURL = b"GET /health HTTP/1.1\r\nHost: a:8000\r\nUser-Agent: curl/8\r\nAccept: */*\r\n\r\n"
_KUBELET = b"GET /health HTTP/1.1\r\nHost: 10.0.0.1:8000\r\nUser-Agent: kube-probe/1.34\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize(
    ("request_bytes", "keeps_alive"),
    [
        pytest.param(_CURL, True, id="curl"),
        pytest.param(_KUBELET, False, id="kubelet"),
        pytest.param(b"GET /health HTTP/1.0\r\n\r\n", False, id="http-1.0"),
        pytest.param(b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: Keep-Alive\r\n\r\n", True, id="keep-alive"),
        pytest.param(b"GET /health HTTP/1.1\r\nAuthorization: Bearer k\r\n\r\n", True, id="with-a-key"),
    ],
)
def test_a_probe_is_recognized(request_bytes, keeps_alive):
    probe = parse_probe(request_bytes)
    assert probe is not None
    assert probe.keeps_alive is keeps_alive
    assert probe.num_bytes == len(request_bytes)


def test_only_the_first_of_several_requests_is_consumed():
    probe = parse_probe(_CURL + b"POST /v1/completions HTTP/1.1\r\n")
    assert probe is not None
    assert probe.num_bytes == len(_CURL)


@pytest.mark.parametrize(
    "request_bytes",
    [
        pytest.param(_CURL[:-2], id="incomplete"),
        pytest.param(_CURL.replace(b"GET", b"HEAD"), id="head"),
        pytest.param(_CURL.replace(b"GET", b"POST"), id="post"),
        pytest.param(_CURL.replace(b"/health", b"/health?x=1"), id="query"),
        pytest.param(_CURL.replace(b"/health", b"/healthy"), id="longer-path"),
        pytest.param(_CURL.replace(b"/health", b"/v1/models"), id="other-path"),
        pytest.param(_CURL.replace(b"\r\n\r\n", b"\r\nOrigin: http://b\r\n\r\n"), id="cors"),
        pytest.param(_CURL.replace(b"\r\n\r\n", b"\r\nContent-Length: 2\r\n\r\nab"), id="body"),
        pytest.param(
            _CURL.replace(b"\r\n\r\n", b"\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"), id="upgrade"
        ),
        pytest.param(_CURL.replace(b"\r\n\r\n", b"\r\nX-Request-Id: 7\r\n\r\n"), id="request-id"),
        pytest.param(_CURL.replace(b"\r\n\r\n", b"\r\n folded\r\n\r\n"), id="folded-header"),
        pytest.param(_CURL.replace(b"\r\n", b"\n"), id="bare-line-feeds"),
        pytest.param(_CURL.replace(b"1.1", b"2.0"), id="other-version"),
        pytest.param(b"\x16\x03\x01\x02", id="tls"),
        pytest.param(b"G", id="first-byte"),
    ],
)
def test_any_other_request_is_left_to_the_http_server(request_bytes):
    assert parse_probe(request_bytes) is None
