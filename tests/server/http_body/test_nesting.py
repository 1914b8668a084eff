"""The check of a body's shape before it is decoded."""

import json

import pytest

from server.errors import RequestError
from server.http_body.nesting import NestingCheck
from server.limits import LimitsConfig

DEPTH = 4


def is_accepted(body: bytes, **limits: int) -> bool:
    try:
        NestingCheck(LimitsConfig(**({"max_json_depth": DEPTH} | limits))).check(body)
    except RequestError:
        return False
    return True


@pytest.mark.parametrize("padding", [0, 40_000], ids=["short", "long"])
@pytest.mark.parametrize("levels", [1, DEPTH, DEPTH + 1, 1000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_levels_are_counted(padding: int, levels: int, opening: str, closing: str) -> None:
    body = " " * padding + opening * levels + "1" + closing * levels
    assert is_accepted(body.encode()) == (levels <= DEPTH)


@pytest.mark.parametrize("size", [1, 70_000, 3 << 20])
@pytest.mark.parametrize("text", ["[", "{[", '"[', '\\"[', "\\", "\\\\[", 'a"', "[[\\"])
def test_brackets_in_texts_do_not_count(text: str, size: int) -> None:
    body = json.dumps({"a": text * (size // len(text)), "b": [[["x"]]]}).encode()
    assert is_accepted(body)
    assert not is_accepted(body.replace(b'[[["x"]]]', b'[[[["x"]]]]'))


def test_many_shallow_values_do_not_count_as_levels() -> None:
    assert is_accepted(b"[" + b"[[]]," * 50_000 + b"[]]")


@pytest.mark.parametrize("body", [b'["a","b"]', b'{"a":{}}', b"[[],[]]"])
def test_objects_lists_and_texts_are_counted(body: bytes) -> None:
    assert is_accepted(body, max_json_values=3)
    assert not is_accepted(body, max_json_values=2)


@pytest.mark.parametrize("gap", ["", " " * 40_000, " " * (3 << 20)], ids=["short", "long", "very long"])
def test_numbers_are_counted(gap: str) -> None:
    body = f'[1,{gap}2,{gap}{{"a,,,,":3,{gap}"b":true}},null{gap}]'.encode()
    assert is_accepted(body, max_json_values=5)
    assert not is_accepted(body, max_json_values=4)


@pytest.mark.parametrize("body", [b'"', b'"\\', b"]" * 100, b"[" * 4 + b'"', b"\xff" * 40_000, b""])
def test_invalid_json_is_not_rejected_by_this_check(body: bytes) -> None:
    assert is_accepted(body)


def test_brackets_of_invalid_json_count() -> None:
    assert not is_accepted(b'{"a' * 20_000)


@pytest.mark.parametrize(
    ("limit", "body", "message"),
    [
        ("max_json_depth", b'{"a": [[[1]]]}', "2 levels (--http-max-json-depth)"),
        ("max_json_values", b'{"a": ["a", "b"]}', "2 objects, lists, texts and numbers (--http-max-json-values)"),
        ("max_json_values", b'{"a": [1, 2]}', "2 objects, lists, texts and numbers (--http-max-json-values)"),
    ],
)
def test_the_rejection_names_limit_and_flag(limit: str, body: bytes, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        NestingCheck(LimitsConfig(**{limit: 2})).check(body)
    assert message in caught.value.message
