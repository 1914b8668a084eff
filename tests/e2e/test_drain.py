"""A server that is asked to stop: who runs finishes, who comes is sent away politely, and nobody is left in doubt."""

import http.client
import json
import signal
from typing import Any

_GONE_S = 60.0
_BODY = json.dumps({"prompt": "Once", "max_tokens": 1})
_JSON = {"Content-Type": "application/json"}


def _ask(connection: http.client.HTTPConnection, method: str, path: str) -> http.client.HTTPResponse:
    connection.request(method, path, _BODY if method == "POST" else None, _JSON)
    response = connection.getresponse()
    response.read()
    return response


def test_port_stays_open_for_the_grace_and_refuses_politely(start_server: Any) -> None:
    with start_server("--drain-grace", "600") as server:
        kept = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        assert _ask(kept, "GET", "/health").getheader("connection") is None
        server.process.send_signal(signal.SIGTERM)
        for method, path in (("GET", "/readyz"), ("GET", "/health"), ("POST", "/v1/completions")):
            server.wait_unready()
            fresh = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
            response = _ask(fresh, method, path)
            assert response.status == 503
            assert response.getheader("retry-after") == "1"
            assert response.getheader("connection") == "close"
            fresh.close()
        assert _ask(kept, "POST", "/v1/completions").getheader("connection") == "close"
        assert kept.sock is None  # the client has understood it
        live = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        assert _ask(live, "GET", "/livez").status == 200
        assert server.terminate() == 0  # the second signal waits for nobody


def test_request_that_is_still_coming_in_is_answered(start_server: Any) -> None:
    with start_server("--shutdown-timeout", "200") as server:
        slow = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        slow.putrequest("POST", "/v1/completions")
        slow.putheader("Content-Type", "application/json")
        slow.putheader("Content-Length", str(len(_BODY)))
        slow.endheaders(_BODY[:10].encode())
        server.wait_load(1)
        server.process.send_signal(signal.SIGTERM)
        server.wait_unready()
        slow.send(_BODY[10:].encode())
        response = slow.getresponse()
        assert response.status == 200
        assert json.loads(response.read())["choices"]
        assert server.process.wait(_GONE_S) == 0
