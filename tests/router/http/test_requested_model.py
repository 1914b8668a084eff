"""The router finds a body's model as json.loads and forms do. It repeats the reports of its only model."""

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web

from router.http import body_members, request_body
from router.http.body_members import json_members
from router.http.request_body import BodyRoom, ForwardedBody, RequestedModel, boundary_of, find_in_form, find_in_json
from server.terms.limits import LimitsConfig
from tests.support.growth import count_calls
from tests.support.marks import thorough_but_for

MOST_AT_ONCE = 32 << 10
"""The most bytes of a body that a call may read, whatever the body's length. Other threads wait meanwhile."""
_MOST_CALLS_PER_BYTE = 8
"""The most calls for a byte that is searched on the event loop. A call takes about 0.1 µs."""


def costly(num_bytes: int) -> dict[str, bytes]:
    """Bodies of about this size that scanners read slowly."""
    begin, end = b'{"model":"a","x":', b',"model":"b"}'
    nested = {"lists": b"[],", "deep lists": b"[[[[]]]],", "numbers": b"1,", "texts": b'"a",', "quotes": b'"",'}
    bodies = {name: begin + b"[%b0]" % (text * (num_bytes // len(text))) + end for name, text in nested.items()}
    return bodies | {
        "equal keys": b"{" + b'"model":"a",' * (num_bytes // 12) + b'"x":1}',
        "other keys": b"{%b}" % b",".join(b'"%d":[%b1]' % (n, b"[]," * (num_bytes // 3000)) for n in range(998)),
        "brackets": begin + b"[" * num_bytes,
        "escaped keys": b"{" + b'"\\u0061":1,' * (num_bytes // 11) + b'"x":1}',
        "escapes": begin + b'"%b"' % (b'\\"' * (num_bytes // 2)) + end,
        "a text": begin + b'"%b"' % (b"a" * num_bytes) + end,
        "blanks": begin + b" " * num_bytes + b"1" + end,
        "a number": begin + b"1" * num_bytes + end,
    }


COSTLY = [*costly(1 << 12)]


class Pieces:
    """A body of which only slices can be read, so that no call can read it as a whole."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.most_at_once = 0

    def __len__(self) -> int:
        return len(self._body)

    def __getitem__(self, part: slice) -> bytes:
        found = self._body[part]
        self.most_at_once = max(self.most_at_once, len(found))
        return found


@pytest.mark.parametrize("name", thorough_but_for(COSTLY, "brackets", "escaped keys", "a text", "blanks"))
def test_no_call_holds_the_interpreter_for_long(name):
    """The work of a call is bounded, because it reads a piece. The number of calls grows as the body does."""
    costs = []
    for num_bytes in (MOST_AT_ONCE, 2 * MOST_AT_ONCE):
        pieces = Pieces(costly(num_bytes)[name])
        costs.append(count_calls(lambda pieces=pieces: find_in_json(pieces)))
        assert 0 < pieces.most_at_once <= MOST_AT_ONCE
    assert costs[1] <= 2.2 * costs[0] + 1000


@pytest.mark.parametrize("name", COSTLY)
def test_what_is_searched_on_the_event_loop_takes_few_steps(name):
    body = costly(request_body._MOST_ON_LOOP)[name][: request_body._MOST_ON_LOOP]
    assert count_calls(lambda: find_in_json(body)) <= _MOST_CALLS_PER_BYTE * request_body._MOST_ON_LOOP


def test_members_of_an_object_are_bounded():
    def of(number: int) -> bytes:
        return b"{" + b",".join(b'"%d":1' % index for index in range(number)) + b"}"

    assert len(json_members(of(1000)).all) == 1000
    assert find_in_json(of(1001)).fault == "has more than 1000 members"


@pytest.mark.parametrize("piece_bytes", [2, 3, 5, 64])
def test_pieces_end_anywhere(piece_bytes, monkeypatch):
    monkeypatch.setattr(body_members, "_PIECE_BYTES", piece_bytes)
    body = rb'{"a":[{"b":"]\\\"}"},[]],"c":-1.5e10 ,"mod\u0065l":"\"x\\","d":{},"e":"","f":tru' + b"e}"
    members = json_members(body)
    values = [body[member.value : member.end] for member in members.all]
    assert values == [rb'[{"b":"]\\\"}"},[]]', b"-1.5e10", rb'"\"x\\"', b"{}", b'""', b"true"]
    assert find_in_json(body).name == '"x\\'


def without_places(found: RequestedModel) -> RequestedModel:
    return found._replace(members=RequestedModel().members)


@pytest.mark.parametrize(
    ("body", "model"),
    [
        (rb'{"mod\u0065l":"x"}', "x"),
        (rb'{"model":"\u0078\/y"}', "x/y"),
        (b'{"messages":[{"model":"no"}],"model":"x"}', "x"),
        (b'{"a":{"model":"no"},"b":NaN,"model":"x"}', "x"),
        (rb'{"messages":"\ud800","model":"x"}', "x"),
        (b'{"model":"first","model":"last"}', "last"),
        (b'{"model":"first","model":null}', None),
        (b'{"model":null}', None),
        (b'\xef\xbb\xbf{ "model" :\n"x" } ', "x"),
        (b'{"x":10000000000000000000000000000000,"model":"x"}', "x"),
        (b'{"model":"' + b"x" * 5000 + b'"}', "x" * 4096),
        (b'{"model":"' + b"x" * 50_000 + b'"}', "x" * 4096),
        pytest.param(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b',"model":"x"}', "x", id="deep"),
    ],
)
def test_the_model_of(body, model):
    assert without_places(find_in_json(body)) == RequestedModel(model)


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"x","stream":',
        b'{"model" "x"}',
        b'{"model":"x",}',
        b'{"model":"x"} {}',
        b'["model"]',
        b'"model"',
        b'{"model":"\xff"}',
        b'{"model":"a\nb"}',
        b'{"model":"x"',
        b'{"model":"x" 1}',
        b'{"a":1 2}',
        b"{,}",
        b'{"model":"x"}}',
        b'{5:1,"model":"x"}',
        b"",
    ],
)
def test_what_is_no_json_object_has_no_model(body):
    assert find_in_json(body) == RequestedModel(fault="is not valid JSON, or not an object")


def test_a_stream_and_a_response_in_the_background_are_found():
    found = find_in_json(b'{"model":"x","stream":true,"background": true }')
    assert without_places(found) == RequestedModel("x", is_stream=True, is_background=True)
    assert not any(find_in_json(b'{"stream":%b}' % value).is_stream for value in (b"false", b'"true"', b"1", b"[true]"))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32", "utf-8-sig"])
async def test_all_encodings_of_json_are_read(encoding):
    body = ForwardedBody(BodyRoom(LimitsConfig()))
    await body._keep('{"model":"ä"}'.encode(encoding))
    assert (await body.find_model("")).name == "ä"
    body.close()


async def test_two_bodies_are_searched_at_once_and_two_that_lie_in_files(monkeypatch):
    """More threads would hold the interpreter and delay the event loop."""
    room, may_end, searched = BodyRoom(LimitsConfig()), asyncio.Event(), []
    bodies = [ForwardedBody(room) for _ in range(8)]
    for number, body in enumerate(bodies):
        await body._keep(b'{"x":"%b"}' % (b"x" * (10_000 if number % 2 else 2_000_000)))

    async def wait_first(find: Callable[..., RequestedModel], *arguments: Any) -> RequestedModel:
        searched.append(find.__self__._is_in_memory)  # type: ignore[attr-defined]
        await may_end.wait()
        return find(*arguments)

    monkeypatch.setattr(asyncio, "to_thread", wait_first)
    async with asyncio.TaskGroup() as tasks:
        for body in bodies:
            tasks.create_task(body.find_model(""))
        for _ in range(20):
            await asyncio.sleep(0)
        assert sorted(searched) == [False, False, True, True]
        may_end.set()
    assert len(searched) == 8
    for body in bodies:
        body.close()


BOUNDARY = b"--------a-boundary"


def form(*fields: tuple[str, bytes, str]) -> bytes:
    parts = [
        b'--%b\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n'
        % (BOUNDARY, name.encode(), f'; filename="{file}"'.encode() if file else b"", value)
        for name, value, file in fields
    ]
    return b"".join(parts) + b"--%b--\r\n" % BOUNDARY


AUDIO = bytes(random.Random(1).randbytes(200_000)) + b"\r\n--" * 50


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param([("model", b"x/y", ""), ("file", AUDIO, "a.wav"), ("stream", b"true", "")], id="before"),
        pytest.param([("stream", b"true", ""), ("file", AUDIO, "a.wav"), ("model", b"x/y", "")], id="behind"),
        pytest.param([("model", b"no", "f"), ("model", b"x/y", ""), ("stream", b"True", "")], id="a file named model"),
        pytest.param([("model", b"no", ""), ("model", b"x/y", ""), ("stream", b"on", "")], id="twice"),
    ],
)
def test_finds_the_fields_of_a_form(fields):
    assert without_places(find_in_form(form(*fields), BOUNDARY)) == RequestedModel("x/y", is_stream=True)


def test_a_form_is_bounded():
    endless = b"--%b\r\n" % BOUNDARY + b"X-Header: " + b"a" * 100_000
    assert find_in_form(endless, BOUNDARY).fault
    assert find_in_form(form(*[("a", b"", "")] * 2000), BOUNDARY).fault
    assert len(find_in_form(form(("model", b"x" * 100_000, "")), BOUNDARY).name or "") == 4096
    pieces = Pieces(b"--a\r\nA: b\r\n\r\n" + b"\r\n--axx" * 100_000)
    find_in_form(pieces, b"a")
    assert pieces.most_at_once <= MOST_AT_ONCE


@pytest.mark.parametrize("boundary", [BOUNDARY, b"b" * 900])
def test_a_broken_form_has_no_model(boundary):
    body = b'--%b\r\nContent-Disposition; name="model"\n\nx' % boundary
    assert find_in_form(body, boundary).fault.startswith("is not a valid form")


def test_a_form_is_told_by_its_media_type():
    assert boundary_of('Multipart/Form-Data; boundary="a;b"') == b"a;b"


@pytest.mark.parametrize(
    "media_type",
    [
        "",
        "application/json; charset=utf-8",
        "text/plain",
        "multipart/form-data",
        'a/b; c="',
        ";;",
        "multipart/form-data; boundary=",
        pytest.param("multipart/form-data; boundary=a; é", id="not ascii"),
        pytest.param('multipart/form-data; boundary=a; b="' + ";" * 60_000, id="too long"),
    ],
)
def test_other_media_types_are_taken_for_json(media_type):
    assert boundary_of(media_type) is None


async def answer(request: web.BaseRequest) -> web.StreamResponse:
    return web.Response(text=f"server {request.raw_path}\n")


async def test_the_last_reports_of_the_only_model_are_repeated_while_it_is_stopped(router, ask):
    await router.serve("m", has_single_model=True)
    await router.start_model("m", answer)
    await router.http.keep_answers()
    await router.pool.unload("m")
    for path in ("/startupz", "/version", "/v1/models"):
        response = await ask("GET", path)
        assert (response.status, response.body.decode()) == (200, f"server {path}\n")
    text = (await ask("GET", "/metrics")).body.decode()
    assert 'vllm_cli:model_state{model="m",state="stopped"} 1.0\n' in text
    assert text.endswith("server /metrics\n")
    response = await ask("GET", "/health")
    assert (response.status, response.headers["model-state"]) == (200, "stopped")
    assert (await ask("GET", "/readyz?model")).status == 503
