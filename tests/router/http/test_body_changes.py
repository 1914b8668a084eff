"""Bodies are changed as the models file says, and stay the same otherwise."""

import codecs
import json
from io import BytesIO
from typing import Any

import aiohttp
import pytest

from router.http import request_body
from router.http.answers import FailedRequestError
from router.http.body_changes import json_parts
from router.http.request_body import BodyRoom, ForwardedBody
from router.model_entry import BodyChanges, ModelEntry
from server.terms.limits import LimitsConfig
from tests.router.http.test_proxy import CHAT, MB, body_of, echo
from tests.router.http.test_requested_model import MOST_AT_ONCE, Pieces, costly

CHANGES = BodyChanges(
    model="upstream",
    strip=("top_p", "a.b"),
    set={"temperature": 0.5, "kwargs.think": False},
    set_by_name={"m:high": {"temperature": 1}},
)


async def change(body: bytes, changes: BodyChanges, media_type: str = "") -> bytes:
    """The changed body."""
    changed = ForwardedBody(BodyRoom(LimitsConfig()))
    try:
        await changed._keep(body)
        await changed.change(changes, await changed.find_model(media_type), media_type)
        return changed._bytes()
    finally:
        changed.close()


@pytest.mark.parametrize(
    ("body", "changed"),
    [
        ('{"model": "m", "top_p": 1}', {"model": "upstream", "temperature": 0.5, "kwargs": {"think": False}}),
        ('{"model":"m:high"}', {"model": "upstream", "temperature": 1, "kwargs": {"think": False}}),
        (
            '\ufeff{"a":{"b":1,"c":[ 1.50 ]},"kwargs":{"think":true,"k":"\\u00e9"},"temperature":9}',
            {"a": {"c": [1.5]}, "temperature": 0.5, "kwargs": {"think": False, "k": "é"}},
        ),
        ('{"a": [], "kwargs": 5, "x": NaN}', {"a": [], "temperature": 0.5, "kwargs": {"think": False}}),
    ],
)
async def test_keys_are_removed_and_set_and_the_model_is_renamed(body, changed):
    found = json.loads((await change(body.encode(), CHANGES)).removeprefix(codecs.BOM_UTF8))
    found.pop("x", None)
    assert found == changed


@pytest.mark.parametrize(
    ("body", "changed"),
    [
        (b'{ "a":1, "b" : [1, 2],"c":3 }', b'{"b" : [1, 2],"t":9}'),
        (b'{"c":3}', b'{"t":9}'),
        (b"{ }", b'{"t":9}'),
        (b'{"t":1 , "t" :2}', b'{"t":9 , "t" :9}'),
        (rb'{"\u0061":1,"b":{"a":1}, "t":{"c":[]}}', b'{"b":{"a":1}, "t":9}'),
        (
            rb'{"n": 1.50, "s": "\u00e9 ", "i": 12345678901234567890123}',
            rb'{"n": 1.50, "s": "\u00e9 ", "i": 12345678901234567890123,"t":9}',
        ),
    ],
)
async def test_what_is_not_changed_stays_as_it_is_written(body, changed):
    assert await change(body, BodyChanges(strip=("a", "c"), set={"t": 9})) == changed


@pytest.mark.parametrize("body", [b"", b"no json", b"[1]", b"{", b"[" * 100_000])
async def test_what_is_no_object_is_not_changed(body):
    assert await change(body, CHANGES) == body


async def test_only_a_member_that_is_small_is_changed_inside():
    with pytest.raises(FailedRequestError, match=r"has more than 1 MiB in 'a'"):
        await change(b'{"a":{"c":"%b"}}' % (b"x" * MB), CHANGES)


class _ReadFile:
    """A file that notes the most bytes of a call."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.seek, self.close = file.seek, file.close
        self.most_at_once = 0

    def read(self, num_bytes: int) -> bytes:
        self.most_at_once = max(self.most_at_once, num_bytes)
        found: bytes = self._file.read(num_bytes)
        return found


@pytest.mark.parametrize("name", ["lists", "a text", "other keys"])
async def test_the_event_loop_is_free_while_a_long_body_is_changed(name):
    body = ForwardedBody(BodyRoom(LimitsConfig()))
    await body._keep(costly(2 << 20)[name])
    found = await body.find_model("")
    with body._content() as content:
        pieces = Pieces(content[:])
        parts = json_parts(pieces, found.members, CHANGES, "m")
        assert pieces.most_at_once <= MOST_AT_ONCE
    file = body._file = _ReadFile(body._file)
    body._rewrite(parts)
    assert 0 < file.most_at_once <= request_body._READ_BACK_BYTES
    body.close()


async def test_the_model_of_a_form_is_renamed():
    form = (
        b'--B\r\nContent-Disposition: form-data; name="file"; filename="model"\r\n\r\nmodel\r\n'
        b'--B\r\ncontent-disposition: form-data; name="model"\r\n\r\nm\r\n--B--\r\n'
    )
    media_type = "multipart/form-data; boundary=B"
    assert await change(form, CHANGES, media_type) == form.replace(b"\r\nm\r\n", b"\r\nupstream\r\n")
    assert await change(form, BodyChanges(strip=("file",)), media_type) == form


@pytest.mark.parametrize("size", [0, 3 * MB])
async def test_the_model_gets_the_changed_body(router, client, size):
    await router.serve("n", entries=[ModelEntry(name="m", aliases=("m:high",), changes=BodyChanges(model="up"))])
    await router.start_model("m", echo)

    async def send(path: str, data: Any) -> dict[str, Any]:
        async with client.post(router.url + path, data=data) as response:
            answer: dict[str, Any] = await response.json()
            return answer

    answer = await send(CHAT, BytesIO(body_of("m:high", size)))
    assert answer["size"] == len(body_of("up", size))
    assert size or json.loads(answer["body"])["model"] == "up"
    unchanged = await send("/upstream/m/v1/x", BytesIO(body_of("m", size)))
    assert unchanged["size"] == len(body_of("m", size))
    form = aiohttp.FormData()
    form.add_field("model", "m")
    form.add_field("file", BytesIO(b"x" * size), filename="a.wav")
    answer = await send("/v1/audio/transcriptions", form)
    assert "\r\n\r\nup\r\n" in answer["body"]


@pytest.mark.parametrize(
    ("body", "changed"),
    [
        ('{"model":"m"}', {"t": 1, "kwargs": {"think": False}, "n": 2}),
        ('{"model":"m","t":null,"kwargs":{"think":true},"n":0}', {"t": None, "kwargs": {"think": True}, "n": 0}),
        ('{"model":"m","kwargs":{"k":1},"gone":5}', {"t": 1, "kwargs": {"k": 1, "think": False}, "n": 2, "gone": 6}),
        ('{"model":"m:x","n":9}', {"t": 1, "kwargs": {"think": False}, "n": 9}),
        ('{"model":"m:x"}', {"t": 1, "kwargs": {"think": False}, "n": 2, "hard": 1}),
    ],
    ids=["missing", "sent", "stripped-and-nested", "sent-with-a-name", "set-before-by-all"],
)
async def test_a_key_with_a_question_mark_is_set_only_if_it_is_missing(body, changed):
    """As in llama-swap, blocks apply in order. Within a block, keys without a question mark win."""
    by_name = {"m:x": {"t?": 5, "n?": 7, "hard?": 0, "hard": 1}}
    params = {"t?": 1, "kwargs.think?": False, "n?": 2, "gone?": 6}
    changes = BodyChanges(strip=("gone",), set=params, set_by_name=by_name)
    found = json.loads(await change(body.encode(), changes))
    found.pop("model")
    assert found == {"gone": 6, **({"hard": 1} if "m:x" in body else {}), **changed}


async def test_a_large_member_is_not_read_for_a_default():
    body = b'{"prompt":"' + b"a" * (2 << 20) + b'"}'
    assert await change(body, BodyChanges(set={"prompt?": "b"})) == body
