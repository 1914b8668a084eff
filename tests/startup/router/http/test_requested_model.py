"""The router finds the model of a body as json.loads and forms do; its only model gets all requests."""

import random
import time
from io import BytesIO

import pytest
from aiohttp import web

from startup.router.http import requested_model
from startup.router.http.requested_model import RequestedModel, boundary_of, find_in_form, find_in_json
from tests.startup.router.http.test_proxy import CHAT

COSTLY = {
    "equal keys": b"{" + b'"model":"a",' * 87_000 + b'"x":1}',
    "brackets": b'{"x":' + b"[" * (1 << 20),
    "escaped keys": b"{" + b'"\\u0061":1,' * 95_000 + b'"x":1}',
}
"""A mebibyte of what scanners read slowly."""


@pytest.mark.parametrize("body", COSTLY.values(), ids=COSTLY)
def test_a_mebibyte_takes_a_few_milliseconds(body):
    costs_s = []
    for _ in range(3):
        begin_s = time.process_time()
        find_in_json(body)
        costs_s.append(time.process_time() - begin_s)
    assert min(costs_s) < 0.05


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
    ],
)
def test_the_model_of(body, model):
    assert find_in_json(body) == RequestedModel(model)


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
        pytest.param(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b',"model":"x"}', id="too deep"),
        b"",
    ],
)
def test_what_is_no_json_object_has_no_model(body):
    assert find_in_json(body) == RequestedModel(is_invalid=True)


@pytest.mark.parametrize("value", ["5", "true", "[]", '{"a":"b"}', "NaN"])
def test_a_model_that_is_no_text_is_told(value):
    assert find_in_json(b'{"model":' + value.encode() + b"}") == RequestedModel(is_other_type=True)


@pytest.mark.parametrize("value", ["false", "null", '"true"', "1", "[true]"])
def test_only_true_asks_for_a_stream(value):
    assert not find_in_json(b'{"stream":' + value.encode() + b"}").is_stream


@pytest.mark.parametrize("more", [b"1", b"NaN"], ids=["quickly", "loosely"])
def test_a_stream_and_a_response_in_the_background_are_found(more):
    found = find_in_json(b'{"model":"x","stream":true,"background":true,"more":%b}' % more)
    assert found == RequestedModel("x", is_stream=True, is_background=True)


def test_a_long_body_is_not_read_in_the_slow_way(monkeypatch):
    monkeypatch.setattr(requested_model, "_LOOSE_BYTES", 20)
    assert find_in_json(b'{"model":"x","a":NaN}').is_invalid
    assert find_in_json(b'{"model":"x","a":123456789}').name == "x"


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
    assert find_in_form(BytesIO(form(*fields)), BOUNDARY) == RequestedModel("x/y", is_stream=True)


def test_a_form_is_bounded():
    endless = b"--%b\r\n" % BOUNDARY + b"X-Header: " + b"a" * 100_000
    assert find_in_form(BytesIO(endless), BOUNDARY).is_invalid
    assert find_in_form(BytesIO(form(*[("a", b"", "")] * 2000)), BOUNDARY).is_invalid
    assert len(find_in_form(BytesIO(form(("model", b"x" * 100_000, ""))), BOUNDARY).name or "") == 4096


@pytest.mark.parametrize("boundary", [BOUNDARY, b"b" * 900])
def test_a_broken_form_has_no_model(boundary):
    body = b'--%b\r\nContent-Disposition; name="model"\n\nx' % boundary
    assert find_in_form(BytesIO(body), boundary) == RequestedModel(is_invalid=True)


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
    """A server that is ill, and says which path was asked."""
    return web.Response(status=503 if request.path == "/health" else 200, text=f"server {request.raw_path}\n")


async def test_its_server_gets_all_requests_and_answers_for_itself(router, client):
    await router.serve("m", has_only_model=True)
    await router.start_model("m", answer)
    async with client.post(router.url + CHAT, json={"model": "another"}) as response:
        assert await response.text() == f"server {CHAT}\n"
    async with client.get(router.url + "/any?x=1") as response:
        assert await response.text() == "server /any?x=1\n"
    async with client.get(router.url + "/health") as response:
        assert (response.status, await response.text()) == (503, "server /health\n")


async def test_its_last_reports_are_repeated_while_it_is_stopped(router, client):
    await router.serve("m", has_only_model=True)
    child = await router.start_model("m", answer)
    assert router.pool.before_stop is not None
    await router.pool.before_stop(child)
    await router.pool.unload("m")
    for path in ("/startupz", "/version", "/v1/models"):
        async with client.get(router.url + path) as response:
            assert (response.status, await response.text()) == (200, f"server {path}\n")
    async with client.get(router.url + "/metrics") as response:
        text = await response.text()
    assert 'vllm_cli:model_state{model="m",state="stopped"} 1.0\n' in text
    assert text.endswith("server /metrics\n")
    async with client.get(router.url + "/health") as response:
        assert (response.status, response.headers["Model-State"]) == (200, "stopped")
    async with client.get(router.url + "/readyz?model") as response:
        assert response.status == 503
