"""The nesting of JSON is limited before a parser reads it, independently of the interpreter's limit."""

import json
import sys
import tracemalloc
from typing import Any

import msgspec
import pytest

from base import json_depth
from base.json_depth import MOST_LEVELS, JsonDepthError, check_depth, read_json
from tests.support.properties import given, json_values, st

DEEPEST = "[" * MOST_LEVELS + "]" * MOST_LEVELS
TOO_DEEP = "[" * (MOST_LEVELS + 1) + "]" * (MOST_LEVELS + 1)
TEXTS = {
    "objects": ('{"a":' * MOST_LEVELS + "1" + "}" * MOST_LEVELS, '{"a":' * (MOST_LEVELS + 1) + "1"),
    "arrays": (DEEPEST, TOO_DEEP),
    "not closed": ("[" * MOST_LEVELS, "[" * 1_000_000),
    "many beside each other": (f"[{'[],' * 100_000}{DEEPEST[1:-1]}]", f"[{'[],' * 100_000}{DEEPEST}]"),
    "in a text": (json.dumps(["[" * 500, '"\\[' * 300]), f"{json.dumps([TOO_DEEP])},{TOO_DEEP}"),
    "after a long text": (f'["{"x" * 400_000}",{DEEPEST[1:-1]}]', f'["{"x" * 400_000}",{DEEPEST}]'),
    "after escapes": (f'["{chr(92) * 400_000}",{DEEPEST[1:-1]}]', f'["{chr(92) * 400_001}"",{DEEPEST}]'),
}


@pytest.mark.parametrize(("accepted", "refused"), TEXTS.values(), ids=TEXTS)
def test_levels_are_counted_outside_of_texts(accepted, refused):
    for text in (accepted, accepted.encode()):
        check_depth(text)
    for text in (refused, refused.encode()):
        with pytest.raises(JsonDepthError, match="nested more than 200 levels deep"):
            check_depth(text)


@pytest.mark.thorough
@given(json_values(st.text('a\\"[]{},\n🙂', max_size=8)), st.integers(2, 30), st.booleans())
def test_every_structure_is_cut_anywhere(value, piece_bytes, is_ascii):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_depth, "MOST_LEVELS", 3)
        patch.setattr(json_depth, "_PIECE_BYTES", piece_bytes)
        try:
            check_depth(json.dumps(value, ensure_ascii=is_ascii))
            is_accepted = True
        except JsonDepthError:
            is_accepted = False
    assert is_accepted == (_depth(value) <= 3)


def _depth(value: Any) -> int:
    if not isinstance(value, list | dict):
        return 0
    return 1 + max(map(_depth, value.values() if isinstance(value, dict) else value), default=0)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32-le"])
def test_json_is_read_as_python_reads_it(encoding):
    assert read_json('{"a": ["≛", NaN]}'.encode(encoding))["a"][0] == "≛"
    assert read_json('"\ud83d"'.encode(errors="surrogatepass")) == "\ud83d"
    with pytest.raises(JsonDepthError):
        read_json(f'["≛≛≛≛", {DEEPEST}]'.encode(encoding))


@pytest.mark.parametrize("read", [read_json, msgspec.json.decode], ids=["json", "msgspec"])
def test_parsers_read_the_deepest_text_wherever_they_are_called(read):
    def call(depth: int) -> Any:
        return call(depth - 1) if depth else read(DEEPEST)

    frame, num_frames = sys._getframe(), 0
    while frame := frame.f_back:  # type: ignore[assignment]
        num_frames += 1
    assert call(sys.getrecursionlimit() - num_frames - MOST_LEVELS - 20)


def test_a_long_text_costs_no_copy():
    body = b'["' + b"a" * (8 << 20) + b'"' + b",[]" * MOST_LEVELS + b"]"
    tracemalloc.start()
    try:
        check_depth(body)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
