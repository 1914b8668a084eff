"""Bodies are changed as the models file says, and stay the same otherwise."""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from router.http import request_body
from router.http.answers import FailedRequestError
from router.http.request_body import BodyRoom, ForwardedBody, json_parts
from router.model_entry import BodyChanges, ModelEntry
from server.terms.limits import LimitsConfig
from tests.conversations.conversation import read_lines
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


LINES = [line for _, line in read_lines(Path(__file__).with_name("body_changes.jsonl"))]


@pytest.mark.parametrize("line", [pytest.param(line, id=line["why"]) for line in LINES])
async def test_a_body_is_changed_as_the_models_file_says(line):
    changes = {name: tuple(value) if name == "strip" else value for name, value in line["changes"].items()}
    found = (await change(line["body"].encode(), BodyChanges(**changes))).decode()
    assert (found if isinstance(line["becomes"], str) else json.loads(found.removeprefix("\ufeff"))) == line["becomes"]


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


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["lists", "a text", "other keys"])
async def test_the_event_loop_is_free_while_a_long_body_is_changed(name):
    body = ForwardedBody(BodyRoom(LimitsConfig()))
    await body._keep(costly(1 << 19)[name])
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


async def test_a_large_member_is_not_read_for_a_default():
    body = b'{"prompt":"' + b"a" * (2 << 20) + b'"}'
    assert await change(body, BodyChanges(set={"prompt?": "b"})) == body
