"""The scanner agrees with json.loads, whatever the document and wherever its parts begin."""

import itertools
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from startup.router.http.form_scanner import MultipartScanner
from startup.router.http.json_scanner import JsonScanner
from startup.router.http.model_name import create_scanner
from startup.router.http.model_scanner import SLICE_BYTES
from tests.growth import growth

SEEDS = range(40)
TEXTS = [
    "",
    "m",
    "model",
    "stream",
    'a"b',
    "\\",
    '\\"',
    "{",
    "}]",
    ",",
    ":",
    "é中🙂",
    "line\nbreak",
    "\u2028",
    "x" * 70,
]


def scan(body: bytes, borders: Iterator[int] | None = None) -> JsonScanner:
    scanner = JsonScanner()
    for part in parts_of(body, borders):
        scanner.feed(part)
    return scanner


def parts_of(body: bytes, borders: Iterator[int] | None) -> Iterator[bytes]:
    position = 0
    while position < len(body):
        size = len(body) if borders is None else next(borders)
        yield body[position : position + size]
        position += size


def random_sizes(dice: random.Random, most: int) -> Iterator[int]:
    while True:
        yield dice.randint(1, most)


def expected(body: bytes) -> tuple[str | None, bool, bool]:
    """model, whether it is of another type, stream: of the last members of these names."""
    document = json.loads(body)
    assert isinstance(document, dict)
    model = document.get("model")
    return model if isinstance(model, str) else None, not isinstance(model, str | None), document.get("stream") is True


def random_text(dice: random.Random) -> str:
    return "".join(dice.choice(TEXTS) for _ in range(dice.randrange(4)))


def random_value(dice: random.Random, depth: int = 0) -> Any:
    match dice.randrange(8 if depth < 4 else 6):
        case 0:
            return dice.choice([True, False, None])
        case 1:
            return dice.choice([0, -1, 1e300, 0.5, 10**30, float("nan"), float("inf"), -float("inf")])
        case 2 | 3 | 4 | 5:
            return random_text(dice)
        case 6:
            return [random_value(dice, depth + 1) for _ in range(dice.randrange(5))]
        case _:
            keys = [dice.choice(["model", "stream", random_text(dice)]) for _ in range(dice.randrange(5))]
            return {key: random_value(dice, depth + 1) for key in keys}


def random_document(dice: random.Random) -> bytes:
    """An object with duplicate keys, escapes and white space."""
    members = []
    for _ in range(dice.randrange(8)):
        key = dice.choice(["model", "model", "stream", "messages", random_text(dice)])
        text = json.dumps(key)
        if dice.random() < 0.3:
            text = '"' + "".join(f"\\u{ord(c):04x}" if ord(c) < 0x10000 else c for c in key) + '"'
        value = dice.choice([random_value(dice), True, "some/model"])
        separators = dice.choice([(",", ":"), (" , ", " : "), (",\n\t", ":\r\n")])
        dumped = json.dumps(value, ensure_ascii=dice.random() < 0.5, separators=separators)
        members.append(
            dice.choice(["", " ", "\n"]) + text + dice.choice(["", " "]) + ":" + dice.choice(["", "\t"]) + dumped
        )
    mark = b"\xef\xbb\xbf" if dice.random() < 0.1 else b""
    return mark + ("{" + ",".join(members) + " } \n").encode()


@pytest.mark.parametrize("seed", SEEDS)
def test_finds_what_json_finds_with_any_borders(seed: int) -> None:
    dice = random.Random(seed)
    for _ in range(60):
        body = random_document(dice)
        most = dice.choice([1, 2, 5, 1000])
        found = scan(body, random_sizes(dice, most))
        assert (found.model, found.is_other_type, found.is_stream) == expected(body), body
        assert found.is_complete
        assert not found.is_invalid


@pytest.mark.parametrize("seed", SEEDS)
def test_a_cut_or_changed_document_raises_nothing(seed: int) -> None:
    dice = random.Random(seed)
    for _ in range(60):
        body = bytearray(random_document(dice))
        for _ in range(dice.randrange(3)):
            body[dice.randrange(len(body))] = dice.choice(b'{}[]",:\\ \x00\xff0')
        cut = bytes(body[: dice.randrange(len(body) + 1)])
        whole, in_parts = scan(cut), scan(cut, random_sizes(dice, 7))
        assert (whole.model, whole.is_stream, whole.is_complete) == (
            in_parts.model,
            in_parts.is_stream,
            in_parts.is_complete,
        )


@pytest.mark.parametrize(
    ("body", "model"),
    [
        (rb'{"mod\u0065l":"x"}', "x"),
        (rb'{"model":"\u0078\/y"}', "x/y"),
        (b'{"messages":[{"model":"no"}],"model":"x"}', "x"),
        (b'{"a":{"model":"no"},"b":NaN,"model":"x"}', "x"),
        (b'{"model":"first","model":"last"}', "last"),
        (b'{"model":null}', None),
        (b'{"model":"' + b"x" * 5000 + b'"}', "x" * 4096),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b',"model":"x"}', "x"),
        (b'{"model":"x","stream":', "x"),
        (b'{"model" "x"}', None),
        (b'{"model":"x",}', None),
        (b'["model"]', None),
        (b'"model"', None),
        (b'{"model":"\xff"}', None),
        (b'{"model":"a\nb"}', None),
        (b"", None),
    ],
)
def test_the_model_of(body: bytes, model: str | None) -> None:
    assert scan(body).model == model


@pytest.mark.parametrize("value", ["5", "true", "[]", '{"a":"b"}', "NaN"])
def test_a_model_that_is_no_text_is_told(value: str) -> None:
    assert scan(b'{"model":' + value.encode() + b"}").is_other_type


@pytest.mark.parametrize("value", ["false", "null", '"true"', "1", "[true]"])
def test_only_true_asks_for_a_stream(value: str) -> None:
    assert not scan(b'{"stream":' + value.encode() + b"}").is_stream


def test_keeps_nothing_of_what_it_skips() -> None:
    scanner = JsonScanner()
    scanner.feed(b'{"image":"')
    for _ in range(200):
        scanner.feed(b"A" * SLICE_BYTES)
    assert len(scanner._kept) == 0
    scanner.feed(b'","model":"' + b"x" * 100_000)
    assert len(scanner._kept) <= 4097


@pytest.mark.alone
@pytest.mark.parametrize(
    ("begin", "unit"),
    [
        pytest.param(b'{"input":"', b"QUJD", id="base64"),
        pytest.param(b'{"input":"', rb"\"", id="escapes"),
        pytest.param(b'{"input":[', b"0.125, ", id="numbers"),
        pytest.param(b'{"input":', b"[", id="brackets"),
        pytest.param(b'{"input":["', b'","', id="quotes"),
        pytest.param(b'{"input":[', b"[1,2],", id="pairs"),
        pytest.param(b"{", b'"a":1,', id="members"),
        pytest.param(b"{", rb'"\u0061":1,', id="escaped keys"),
        pytest.param(b"{", b" ", id="spaces"),
    ],
)
def test_the_cost_is_linear(begin: bytes, unit: bytes) -> None:
    def prepare(size: int) -> Callable[[], object]:
        body = begin + unit * (size // len(unit))
        return lambda: scan(body, itertools.repeat(SLICE_BYTES))

    assert growth(prepare, smallest=4096) is None


BOUNDARY = b"--------a-boundary"


def form(*fields: tuple[str, bytes, str]) -> bytes:
    parts = [
        b'--%b\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n'
        % (BOUNDARY, name.encode(), f'; filename="{file}"'.encode() if file else b"", value)
        for name, value, file in fields
    ]
    return b"".join(parts) + b"--%b--\r\n" % BOUNDARY


def scan_form(body: bytes, borders: Iterator[int] | None = None) -> MultipartScanner:
    scanner = create_scanner(f'multipart/form-data; boundary="{BOUNDARY.decode()}"')
    assert isinstance(scanner, MultipartScanner)
    for part in parts_of(body, borders):
        scanner.feed(part)
    return scanner


AUDIO = bytes(random.Random(1).randbytes(100_000)) + b"\r\n--" * 50


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param([("model", b"x/y", ""), ("file", AUDIO, "a.wav"), ("stream", b"true", "")], id="before"),
        pytest.param([("stream", b"true", ""), ("file", AUDIO, "a.wav"), ("model", b"x/y", "")], id="behind"),
        pytest.param([("model", b"no", "f"), ("model", b"x/y", ""), ("stream", b"True", "")], id="a file named model"),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_finds_the_fields_of_a_form(fields: list[tuple[str, bytes, str]], seed: int) -> None:
    dice = random.Random(seed)
    found = scan_form(form(*fields), random_sizes(dice, 999))
    assert (found.model, found.is_stream, found.is_complete) == ("x/y", True, True)


def test_a_form_is_bounded() -> None:
    endless = b"--%b\r\n" % BOUNDARY + b"X-Header: " + b"a" * 100_000
    assert scan_form(endless, itertools.repeat(1000)).is_invalid
    assert len(scan_form(form(("model", b"x" * 100_000, ""))).model or "") == 4096


def test_a_broken_form_has_no_model() -> None:
    found = scan_form(b'--%b\r\nContent-Disposition; name="model"\n\nx' % BOUNDARY)
    assert found.model is None
    assert found.is_invalid


def test_other_media_types_are_taken_for_json() -> None:
    for media_type in ("", "application/json; charset=utf-8", "text/plain", "multipart/form-data", 'a/b; c="', ";;"):
        assert isinstance(create_scanner(media_type), JsonScanner)
