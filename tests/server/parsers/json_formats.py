"""How models write calls in the formats that consist of JSON."""

import json
import random
from collections.abc import Callable, Sequence
from typing import Any, Final

from tests.server.parsers.raw_texts import Call, Format, json_text

Write = Callable[[Sequence[Call], random.Random], str]

_BEGIN: Final = "<｜tool▁call▁begin｜>"
_END: Final = "<｜tool▁call▁end｜>"
_SEPARATOR: Final = "<｜tool▁sep｜>"
_ALL_BEGIN: Final = "<｜tool▁calls▁begin｜>"
_ALL_END: Final = "<｜tool▁calls▁end｜>"


def _objects(start: str, end: str = "", *, between: str = "\n", key: str = "arguments", most: int = 9) -> Write:
    """Each call between markers."""

    def write(calls: Sequence[Call], choose: random.Random) -> str:
        line = choose.choice(("", "\n"))
        return between.join(f"{start}{line}{_call(call, choose, key)}{line}{end}" for call in calls[:most])

    return write


def _array(start: str, end: str = "", *, key: str = "arguments") -> Write:
    """All calls in one list."""

    def write(calls: Sequence[Call], choose: random.Random) -> str:
        separator = choose.choice((", ", ",", ",\n"))
        return f"{start}[{separator.join(_call(call, choose, key) for call in calls)}]{end}"

    return write


def _text_arguments(calls: Sequence[Call], choose: random.Random) -> str:
    """Granite 4: the arguments are often a JSON text of JSON."""
    blocks = []
    for call in calls:
        arguments: Any = choose.choice((call.arguments, json_text(call.arguments)))
        blocks.append(f"<tool_call>\n{json_text({'name': call.name, 'arguments': arguments})}\n</tool_call>")
    return "\n".join(blocks)


def _mistral(calls: Sequence[Call], choose: random.Random) -> str:
    return "".join(f"[TOOL_CALLS]{call.name}[ARGS]{_json(call.arguments, choose)}" for call in calls)


def _deepseek_v3(calls: Sequence[Call], choose: random.Random) -> str:
    blocks = [
        f"{_BEGIN}function{_SEPARATOR}{call.name}\n```json\n{json_text(call.arguments)}\n```{_END}" for call in calls
    ]
    return _ALL_BEGIN + "\n".join(blocks) + _ALL_END


def _deepseek_v31(calls: Sequence[Call], choose: random.Random) -> str:
    blocks = [f"{_BEGIN}{call.name}{_SEPARATOR}{json_text(call.arguments)}{_END}" for call in calls]
    return _ALL_BEGIN + "".join(blocks) + _ALL_END


def _xlam(calls: Sequence[Call], choose: random.Random) -> str:
    start, end = choose.choice((("", ""), ("```json\n", "\n```"), ("<tool_call>", "</tool_call>")))
    return start + _array("")(calls, choose) + end


def _call(call: Call, choose: random.Random, key: str) -> str:
    return _json({"name": call.name, key: call.arguments}, choose)


def _json(value: Any, choose: random.Random) -> str:
    return json.dumps(
        value,
        ensure_ascii=choose.random() < 0.3,
        indent=choose.choice((None, None, None, 2)),
        separators=choose.choice((None, None, (",", ":"))),
    )


_DEEPSEEK: Final = (_ALL_BEGIN, _ALL_END, _BEGIN, _END, _SEPARATOR)

JSON_FORMATS: Final = (
    Format(name="hermes", write=_objects("<tool_call>", "</tool_call>"), markers=("<tool_call>", "</tool_call>")),
    Format(name="ernie45", write=_objects("<tool_call>\n", "\n</tool_call>"), markers=("<tool_call>", "</tool_call>")),
    Format(name="granite4", write=_text_arguments, markers=("<tool_call>", "</tool_call>")),
    Format(name="granite", write=_array("<|tool_call|>"), markers=("<|tool_call|>",)),
    Format(name="granite-20b-fc", write=_objects("<function_call> ", between=" ")),
    Format(name="gigachat3", write=_objects("<|function_call|>", between=" ", most=1), markers=("<|function_call|>",)),
    Format(
        name="internlm",
        write=_objects("<|action_start|><|plugin|>", "<|action_end|>", key="parameters", most=1),
        markers=("<|action_start|>", "<|plugin|>", "<|action_end|>"),
    ),
    Format(name="hunyuan_a13b", write=_array("<tool_calls>", "</tool_calls>")),
    Format(name="jamba", write=_array("<tool_calls>", "</tool_calls>"), markers=("<tool_calls>", "</tool_calls>")),
    Format(name="llama3_json", write=_objects("", between="; ", key="parameters"), markers=("<|python_tag|>",)),
    Format(name="mistral", write=_mistral, markers=("[TOOL_CALLS]", "[ARGS]")),
    Format(name="phi4_mini_json", write=_array("functools")),
    Format(name="xlam", write=_xlam),
    Format(name="deepseek_v3", write=_deepseek_v3, markers=_DEEPSEEK),
    Format(name="deepseek_v31", write=_deepseek_v31, markers=_DEEPSEEK),
)
