"""Bodies are changed as the file of models says, and in nothing else."""

import json
import time
from io import BytesIO
from typing import Any

import aiohttp
import pytest

from startup.router.http.body_changes import change_form, change_json
from startup.router.model_entry import BodyChanges, ModelEntry
from tests.startup.router.http.test_proxy import CHAT, MB, body_of, echo
from tests.startup.router.http.test_requested_model import COSTLY

CHANGES = BodyChanges(
    model="upstream",
    strip=("top_p", "a.b"),
    set={"temperature": 0.5, "kwargs.think": False},
    set_by_name={"m:high": {"temperature": 1}},
)


@pytest.mark.parametrize(
    ("body", "name", "changed"),
    [
        ('{"model": "m", "top_p": 1}', "m", {"model": "upstream", "temperature": 0.5, "kwargs": {"think": False}}),
        ('{"model":"m:high"}', "m:high", {"model": "upstream", "temperature": 1, "kwargs": {"think": False}}),
        (
            '\ufeff{"a":{"b":1,"c":[ 1.50 ]},"kwargs":{"think":true,"k":"\\u00e9"},"temperature":9}',
            "m",
            {"a": {"c": [1.5]}, "temperature": 0.5, "kwargs": {"think": False, "k": "é"}},
        ),
        ('{"a": [], "kwargs": 5, "x": NaN}', "m", {"a": [], "temperature": 0.5, "kwargs": {"think": False}}),
    ],
)
def test_keys_are_removed_and_set_and_the_model_is_renamed(body, name, changed):
    found = json.loads(change_json(body.encode(), CHANGES, name))
    found.pop("x", None)
    assert found == changed


def test_what_is_not_changed_stays_as_it_is_written():
    body = b'{"n": 1.50, "model":"m", "s": "\\u00e9 \xc3\xa9", "big": 123456789012345678901}'
    changed = change_json(body, BodyChanges(set={"t": 1}), "m")
    assert changed == b'{"n":1.50,"model":"m","s":"\\u00e9 \xc3\xa9","big":123456789012345678901,"t":1}'


@pytest.mark.parametrize("body", [b"", b"no json", b"[1]", b"{", b"[" * 100_000])
def test_what_is_no_object_is_not_changed(body):
    assert change_json(body, CHANGES, "m") == body


@pytest.mark.parametrize("body", COSTLY.values(), ids=COSTLY)
def test_a_mebibyte_takes_a_few_milliseconds(body):
    costs_s = []
    for _ in range(3):
        begin_s = time.process_time()
        change_json(body, CHANGES, "m")
        costs_s.append(time.process_time() - begin_s)
    assert min(costs_s) < 0.2


def test_the_model_of_a_form_is_renamed():
    form = (
        b'--B\r\nContent-Disposition: form-data; name="file"; filename="model"\r\n\r\nmodel\r\n'
        b'--B\r\ncontent-disposition: form-data; name="model"\r\n\r\nm\r\n--B--\r\n'
    )
    assert change_form(form, CHANGES, b"B") == form.replace(b"\r\nm\r\n", b"\r\nupstream\r\n")
    assert change_form(form, BodyChanges(strip=("file",)), b"B") == form


@pytest.mark.parametrize("size", [0, 3 * MB])
async def test_the_model_gets_the_changed_body(router, client, size):
    await router.serve("n", entries=[ModelEntry(name="m", aliases=("m:high",), changes=BodyChanges(model="up"))])
    await router.start_model("m", echo)

    async def send(path: str, data: Any) -> dict[str, Any]:
        async with client.post(router.url + path, data=data) as response:
            answer: dict[str, Any] = await response.json()
            return answer

    answer = await send(CHAT, BytesIO(body_of("m:high", size)))
    assert answer["size"] == len(json.dumps({"prompt": "x" * size, "model": "up"}, separators=(",", ":")))
    assert size or json.loads(answer["body"])["model"] == "up"
    unchanged = await send("/upstream/m/v1/x", BytesIO(body_of("m", size)))
    assert unchanged["size"] == len(body_of("m", size))
    form = aiohttp.FormData()
    form.add_field("model", "m")
    form.add_field("file", BytesIO(b"x" * size), filename="a.wav")
    answer = await send("/v1/audio/transcriptions", form)
    assert "\r\n\r\nup\r\n" in answer["body"]
