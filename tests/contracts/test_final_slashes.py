"""Each port of ours answers a path with final slashes like the path. vLLM redirects such a request."""

from urllib.parse import urljoin, urlsplit

import pytest

from tests.contracts.conftest import Served
from tests.contracts.test_transport import all_ports
from tests.support.http_client import Answer, RawClient

GETS = ("/health", "/ping", "/livez", "/readyz", "/startupz", "/version", "/load", "/v1/models", "/status.json")
POSTS = ("/v1/completions", "/v1/chat/completions", "/v1/messages", "/tokenize", "/ping", "/metrics")


def follow(port: int, method: str, path: str) -> Answer:
    """The answer to a request with an empty JSON body, after at most one redirect."""
    for _ in range(2):
        with RawClient(port) as client:
            answer = (client.post(path, {}) if method == "POST" else client.get(path)).read()
        if answer.status != 307:
            break
        target = urlsplit(urljoin(f"http://127.0.0.1:{port}{path}", answer.headers["location"]))
        path = f"{target.path}?{target.query}"
    return answer


@all_ports
@pytest.mark.parametrize(("method", "path"), [("GET", path) for path in GETS] + [("POST", path) for path in POSTS])
def test_final_slashes_change_no_answer(served: Served, method, path):
    plain = follow(served.patient, method, f"{path}?a=1")
    assert plain.status != 404
    for slashes in ("/", "//"):
        answer = follow(served.patient, method, f"{path}{slashes}?a=1")
        assert (answer.status, answer.headers.get("content-type")) == (plain.status, plain.headers.get("content-type"))


@all_ports
@pytest.mark.parametrize("path", ["/v1/model/", "/v1//models/", "/v1/models/unknown/", "/unknown/", "//"])
def test_final_slashes_make_no_unknown_path_known(served: Served, path):
    assert follow(served.patient, "GET", path).status in (404, 503)
