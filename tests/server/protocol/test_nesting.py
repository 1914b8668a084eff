"""The shape of a body, judged before it is decoded."""

import json

import pytest

from server.errors import RequestError
from server.limits import LimitsConfig
from server.protocol.nesting import NestingCheck

DEPTH = 4


def is_taken(body: bytes, **limits: int) -> bool:
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
    assert is_taken(body.encode()) == (levels <= DEPTH)


@pytest.mark.parametrize("size", [1, 70_000, 3 << 20])
@pytest.mark.parametrize("text", ["[", "{[", '"[', '\\"[', "\\", "\\\\[", 'a"', "[[\\"])
def test_brackets_in_texts_do_not_count(text: str, size: int) -> None:
    body = json.dumps({"a": text * (size // len(text)), "b": [[["x"]]]}).encode()
    assert is_taken(body)
    assert not is_taken(body.replace(b'[[["x"]]]', b'[[[["x"]]]]'))


def test_many_shallow_values_are_no_depth() -> None:
    assert is_taken(b"[" + b"[[]]," * 50_000 + b"[]]")


@pytest.mark.parametrize("body", [b'["a","b"]', b'{"a":{}}', b"[[],[]]"])
def test_objects_lists_and_texts_are_counted(body: bytes) -> None:
    assert is_taken(body, max_json_values=3)
    assert not is_taken(body, max_json_values=2)


@pytest.mark.parametrize("gap", ["", " " * 40_000, " " * (3 << 20)], ids=["short", "long", "very long"])
def test_numbers_are_counted(gap: str) -> None:
    body = f'[1,{gap}2,{gap}{{"a,,,,":3,{gap}"b":true}},null{gap}]'.encode()
    assert is_taken(body, max_json_values=5)
    assert not is_taken(body, max_json_values=4)


@pytest.mark.parametrize("body", [b'"', b'"\\', b"]" * 100, b"[" * 4 + b'"', b"\xff" * 40_000, b'{"a' * 20_000, b""])
def test_what_is_no_json_is_somebody_elses_to_refuse(body: bytes) -> None:
    is_taken(body)
