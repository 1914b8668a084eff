"""Long texts are cut out of a body without decoding it; the decoded request is the same."""

import json
import random
import sys
import time
from typing import Any

import pytest

from base.errors import RequestError
from server.generation.completion_request import CompletionRequest
from server.http_body import long_texts
from server.http_body.long_texts import ShortBody, shorten
from server.http_body.request_body import RequestDecoder
from server.renderers.prompts import EmbedsPrompt

FIELD = "prompt_embeds"
LONG = "QUJD" * 20_000
BIG = "QUJD" * 400_000


def restored(value: Any, short: ShortBody) -> Any:
    """The decoded body with all long texts restored as strings."""
    if isinstance(value, dict):
        return {key: restored(member, short) for key, member in value.items()}
    if isinstance(value, list):
        return [restored(member, short) for member in value]
    back = short.restore(value)
    return bytes(back).decode() if isinstance(back, memoryview) else back


@pytest.mark.parametrize(
    ("body", "num_texts"),
    [
        pytest.param({FIELD: LONG}, 1, id="alone"),
        pytest.param({"model": "m", FIELD: LONG, "n": 2}, 1, id="in the middle"),
        pytest.param({FIELD: [LONG, "short", LONG + "AAAA"], "n": 2}, 2, id="list"),
        pytest.param({FIELD: "short"}, 0, id="short"),
        pytest.param({FIELD: []}, 0, id="none"),
        pytest.param({FIELD: None, "prompt": LONG}, 0, id="another field"),
        pytest.param({"prompt": f'"{FIELD}": "{LONG}', FIELD: LONG}, 1, id="quoted"),
        pytest.param({"prompt": "\\" * 3001 + '"', FIELD: LONG}, 1, id="backslashes"),
        pytest.param({"prompt": FIELD, "stop": [FIELD], FIELD: LONG}, 1, id="its name as a value"),
        pytest.param({FIELD: LONG + '"' + LONG}, 0, id="escapes"),
        pytest.param({"metadata": {FIELD: LONG}, FIELD: LONG}, 2, id="nested"),
    ],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_restored_bodies_equal_the_original(body, num_texts, indent):
    encoded = json.dumps(body, indent=indent).encode()
    short = shorten(encoded, FIELD)
    assert len(short.texts) == num_texts
    assert len(short.body) <= len(encoded) - num_texts * len(LONG) + 4 * num_texts
    assert restored(json.loads(short.body), short) == body


def test_restored_random_json_equals_the_original(monkeypatch):
    monkeypatch.setattr(long_texts, "_LONG_BYTES", 3)
    rng = random.Random(1)
    parts = [f'"{FIELD}"', FIELD, "\\", '\\"', ":", "[", ",", '"', "AAAA", " "]

    def value(depth: int) -> Any:
        match rng.randrange(7 if depth < 4 else 4):
            case 0 | 1:
                return "".join(rng.choices(parts, k=rng.randrange(5)))
            case 2:
                return rng.randrange(9)
            case 3:
                return None
            case 4 | 5:
                return [value(depth + 1) for _ in range(rng.randrange(4))]
            case _:
                return {rng.choice([FIELD, f'"{FIELD}', f"{FIELD}\\"]): value(depth + 1) for _ in range(3)}

    num_texts = 0
    for _ in range(1500):
        body = {"a": value(0), FIELD: value(1), "b": value(0)}
        short = shorten(json.dumps(body, indent=rng.choice([None, 1])).encode(), FIELD)
        assert restored(json.loads(short.body), short) == body
        num_texts += len(short.texts)
    assert num_texts > 150


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"prompt_embeds"',
        b'{"prompt_embeds":',
        b'{"prompt_embeds":"' + LONG.encode(),
        b'{"prompt_embeds":["' + LONG.encode(),
        b'{"prompt_embeds":"' + LONG.encode() + b'"',
        b'{"prompt_embeds":"' + LONG.encode() + b'" "n":1}',
        b'{"prompt_embeds" "' + LONG.encode() + b'"}',
    ],
)
def test_invalid_json_stays_invalid(body):
    with pytest.raises(json.JSONDecodeError):
        json.loads(shorten(body, FIELD).body)


def test_a_stand_in_sent_by_a_client_is_an_ordinary_text():
    short = shorten(json.dumps({FIELD: ["#0", "#7", "#", LONG, "#-1", "#²"]}).encode(), FIELD)
    assert restored(json.loads(short.body), short)[FIELD] == [LONG, "#7", "#", LONG, "#-1", "#²"]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'{"prompt_embeds":1,"a":[' + b'"",' * 3_000_000 + b'""]}', id="many texts"),
        pytest.param(b'{"prompt_embeds":1,"a":"' + b'\\"' * 5_000_000 + b'"}', id="many quotes"),
        pytest.param(b'{"prompt_embeds":1,"a":"' + b"\\\\" * 5_000_000 + b'"}', id="many backslashes"),
        pytest.param(b'{"prompt_embeds":' + b'"prompt_embeds":' * 600_000 + b"}", id="many keys"),
    ],
)
def test_the_number_of_scanning_steps_is_bounded(body):
    """Counts steps, which do not depend on the machine; the time limit only bounds one step."""
    num_calls = 0

    def count(_frame: object, event: str, _arg: object) -> None:
        nonlocal num_calls
        num_calls += event.endswith("call")

    begin = time.process_time()
    sys.setprofile(count)
    try:
        short = shorten(body, FIELD)
    finally:
        sys.setprofile(None)
    assert short.body == body
    assert num_calls < 200_000, "the quotes that are looked at are bounded"
    assert time.process_time() - begin < 30


def decode(body: dict[str, Any]) -> CompletionRequest:
    return RequestDecoder(CompletionRequest, FIELD).decode(json.dumps(body).encode())


def test_a_long_text_becomes_a_view_and_a_short_one_stays_a_string():
    request = decode({FIELD: [BIG, "AAAA"], "prompt": "Hello"})
    first, second, text = request.prompts
    assert isinstance(first, EmbedsPrompt) and bytes(first.embeds) == BIG.encode()  # type: ignore[arg-type]
    assert second == EmbedsPrompt("AAAA")
    assert text == "Hello"
    assert decode({FIELD: "AAAA"}).prompts == [EmbedsPrompt("AAAA")]


def test_errors_in_a_body_with_a_long_text_are_unchanged():
    with pytest.raises(RequestError, match="must be in .0, 2., got 5") as caught:
        decode({FIELD: BIG, "temperature": 5})
    assert caught.value.param == "temperature"
    with pytest.raises(RequestError, match="`prompt_embeds\\[1\\]`: Expected `str`, got `int`"):
        decode({FIELD: [BIG, 1]})
    with pytest.raises(RequestError, match="must be in .0, 2., got 5"):
        decode({FIELD: BIG, "x": 1, "temperature": 5})


def test_an_unknown_field_beside_a_long_text_is_ignored():
    assert bytes(decode({FIELD: BIG, "x": 1}).prompts[0].embeds).decode() == BIG
