"""API keys from a file, and the detection of changed files. Answers to preflight requests are Starlette's."""

import asyncio
import itertools
import logging
import threading
from functools import partial
from pathlib import Path

import pytest
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from base.security import credentials
from base.security.api_keys import ApiKeys, KeyFileError
from base.security.cors import CorsPolicy
from base.security.credentials import FileWatch
from base.server_settings import NetworkConfig


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_bytes(b"# people\nfirst\n\n  second  \r\n#third\nschl\xc3\xbcssel")
    return path


def test_each_line_of_the_file_is_a_key_except_blanks_and_comments(file):
    keys = ApiKeys(("given",), file)
    assert all(keys.is_valid(key) for key in (b"given", b"first", b"second", "schlüssel".encode()))
    assert not any(keys.is_valid(key) for key in (b"", b"#third", b"third", b"people", b"first\n", b"  second  "))


def test_keys_are_added_and_removed_with_the_file_and_none_is_logged(file, caplog):
    caplog.set_level(logging.DEBUG)
    keys = ApiKeys(("given",), file)
    file.write_text("new-key")
    assert keys.is_valid(b"first")
    keys.reload()
    assert [keys.is_valid(key) for key in (b"given", b"first", b"new-key")] == [True, False, True]
    file.write_text("")
    keys.reload()
    assert len(caplog.records) == 2
    assert not any(key in caplog.text for key in ("given", "first", "second", "new-key"))


@pytest.mark.parametrize("content", [b"", b"# nothing\n", None])
def test_a_file_without_keys_does_not_change_the_keys(file, content, caplog):
    keys = ApiKeys((), file)
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    keys.reload()
    assert keys.is_valid(b"first")
    assert not keys.is_valid(b"")
    assert "The previous keys stay valid" in caplog.text
    with pytest.raises(KeyFileError):
        ApiKeys((), file)


TIMEOUT_S = 60.0


async def test_a_file_system_that_hangs_does_not_hold_the_event_loop(tmp_path, monkeypatch):
    polls, may_go_on = asyncio.Event(), threading.Event()
    watch = FileWatch([tmp_path / "file"], lambda: None, interval_s=0.02)
    loop = asyncio.get_running_loop()

    def hang(path: Path) -> None:
        loop.call_soon_threadsafe(polls.set)
        may_go_on.wait()

    monkeypatch.setattr(credentials, "read_stamp", hang)
    watch.start()
    await asyncio.wait_for(polls.wait(), TIMEOUT_S)
    watch.close()
    may_go_on.set()


@pytest.mark.parametrize("way", ["in place", "by a rename", "behind a link", "away and back"])
async def test_every_way_to_change_a_file_is_detected(tmp_path, way):
    file, changed = tmp_path / "file", asyncio.Event()
    if way == "behind a link":  # as Kubernetes replaces secrets
        (tmp_path / "1").write_text("old")
        file.symlink_to("1")
    else:
        file.write_text("old")
    report = partial(asyncio.get_running_loop().call_soon_threadsafe, changed.set)
    watch = FileWatch([tmp_path / "other", file], report, interval_s=0.02)
    watch.start()
    try:
        if way == "in place":
            file.write_text("newer")
        elif way == "by a rename":
            (tmp_path / "new").write_text("new")
            (tmp_path / "new").replace(file)
        elif way == "behind a link":
            (tmp_path / "2").write_text("new")
            (tmp_path / "link").symlink_to("2")
            (tmp_path / "link").replace(file)
        else:
            file.unlink()
            await asyncio.wait_for(changed.wait(), TIMEOUT_S)
            changed.clear()
            file.write_text("new")
        await asyncio.wait_for(changed.wait(), TIMEOUT_S)
    finally:
        watch.close()


def test_cors_has_starlettes_answers():
    for origins, headers, methods, has_credentials in itertools.product(
        (("*",), ("https://a.example", "https://b.example")),
        (("*",), ("X-Own",), ()),
        (("*",), ("POST",)),
        (False, True),
    ):
        rules = {"allow_origins": origins, "allow_methods": methods, "allow_headers": headers}
        theirs = CORSMiddleware(Response(), **rules, allow_credentials=has_credentials)
        allowed = {name.replace("allow_", "allowed_"): rule for name, rule in rules.items()}
        _compare(theirs, CorsPolicy(NetworkConfig(**allowed, allow_credentials=has_credentials)))


def _compare(theirs: CORSMiddleware, ours: CorsPolicy) -> None:
    for origin, method, asked, more in itertools.product(
        ("https://a.example", "https://c.example", "null"),
        ("POST", "GET", "QUERY", "post"),
        (None, "", "x-own", "x-own, Content-Type", "x-other"),
        ({}, {"Access-Control-Request-Private-Network": "true"}),
    ):
        sent = {"Origin": origin, "Access-Control-Request-Method": method, **more}
        sent |= {} if asked is None else {"Access-Control-Request-Headers": asked}
        expected = theirs.preflight_response(Headers(sent))
        answer = ours.answer_preflight({name.lower(): value for name, value in sent.items()})
        assert (answer.status, answer.text) == (expected.status_code, expected.body.decode()), sent
        expected_headers = {name: value for name, value in expected.headers.items() if not name.startswith("content-")}
        assert answer.headers == expected_headers, sent
