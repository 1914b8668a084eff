"""Which requests are rejected before they start a stopped model."""

from pathlib import Path

import pytest

from startup.on_request.front_keys import FrontKeys


def _request(*headers: str, line: str = "POST /v1/completions") -> bytes:
    return "\r\n".join(
        [f"{line} HTTP/1.1", "Host: a", *headers, "", '{"prompt": "Authorization: Bearer one"}']
    ).encode()


def _is_rejected(keys: FrontKeys, received: bytes) -> bool:
    answer = keys.find_rejection(received)
    assert answer is None or (answer.status, answer.headers) == (401, (("WWW-Authenticate", "Bearer"),))
    return answer is not None


@pytest.mark.parametrize(
    "header", ["Authorization: Bearer one", "authorization:bearer  two ", "X-Api-Key: two", "AUTHORIZATION: BEARER one"]
)
def test_a_valid_key_may_start_the_model(header: str) -> None:
    assert not _is_rejected(FrontKeys(["one", "two"]), _request("Accept: */*", header))


@pytest.mark.parametrize(
    "header", ["", "Authorization: Bearer", "Authorization: Bearer three", "Authorization: Basic one"]
)
def test_any_other_request_may_not(header: str) -> None:
    assert _is_rejected(FrontKeys(["one", "two"]), _request(*filter(None, [header])))


@pytest.mark.parametrize(
    "received",
    [
        _request(line="OPTIONS /v1/completions"),
        _request(line="POST /tokenize"),
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\n",
        b"no HTTP\r\n\r\n",
    ],
    ids=["OPTIONS", "other path", "incomplete head", "no HTTP"],
)
def test_what_is_not_certainly_wrong_is_left_to_the_server(received: bytes) -> None:
    assert not _is_rejected(FrontKeys(["one"]), received)


def test_without_keys_every_request_may_start_the_model() -> None:
    assert not _is_rejected(FrontKeys(()), _request())


def test_the_root_path_of_a_proxy_is_no_part_of_the_path() -> None:
    assert _is_rejected(FrontKeys(["one"], root_path="/api"), _request(line="POST /api/v1/completions"))


@pytest.mark.parametrize("target", ["/%76%31/models", "http://a/v1/models", "HTTPS://a:1/api/%761/x", "/%61pi/v1/x"])
def test_the_path_is_the_one_that_the_server_sees(target: str) -> None:
    assert _is_rejected(FrontKeys(["one"], root_path="/api"), _request(line=f"GET {target}"))


def test_a_changed_file_of_keys_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("first\n")
    keys = FrontKeys((), str(path))
    assert _is_rejected(keys, _request("Authorization: Bearer second"))
    path.write_text("# changed\nsecond\n")
    assert not _is_rejected(keys, _request("Authorization: Bearer second"))
    assert _is_rejected(keys, _request("Authorization: Bearer first"))
    path.unlink()
    assert not _is_rejected(keys, _request("Authorization: Bearer first"))
