"""Writes calls in the format of each kind of model."""

import json
import random
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Final

from tests.server.text.parsers.differences import LOSES_ARGUMENTS, LOSES_CALLS, LOSES_TEXT, WRONG_TYPES
from tests.server.text.parsers.raw_texts import Call, Format, json_text, plain_text

Write = Callable[[Sequence[Call], random.Random], str]

_BEGIN: Final = "<｜tool▁call▁begin｜>"
_END: Final = "<｜tool▁call▁end｜>"
_SEPARATOR: Final = "<｜tool▁sep｜>"
_ALL_BEGIN: Final = "<｜tool▁calls▁begin｜>"
_ALL_END: Final = "<｜tool▁calls▁end｜>"


def _objects(start: str, end: str = "", *, between: str = "\n", key: str = "arguments", most: int = 9) -> Write:
    """Writes each call as an object between markers."""

    def write(calls: Sequence[Call], choose: random.Random) -> str:
        line = choose.choice(("", "\n"))
        return between.join(f"{start}{line}{_call(call, choose, key)}{line}{end}" for call in calls[:most])

    return write


def _array(start: str, end: str = "", *, key: str = "arguments") -> Write:
    """Writes all calls in one list."""

    def write(calls: Sequence[Call], choose: random.Random) -> str:
        separator = choose.choice((", ", ",", ",\n"))
        return f"{start}[{separator.join(_call(call, choose, key) for call in calls)}]{end}"

    return write


def _text_arguments(calls: Sequence[Call], choose: random.Random) -> str:
    """Writes calls as Granite 4, whose arguments are often JSON in a JSON text."""
    blocks = []
    for call in calls:
        arguments: Any = choose.choice((call.arguments, json_text(call.arguments)))
        blocks.append(f"<tool_call>\n{json_text({'name': call.name, 'arguments': arguments})}\n</tool_call>")
    return "\n".join(blocks)


def _mistral(calls: Sequence[Call], choose: random.Random) -> str:
    return "".join(f"[TOOL_CALLS]{call.name}[ARGS]{_any_json(call.arguments, choose)}" for call in calls)


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
    return _any_json({"name": call.name, key: call.arguments}, choose)


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


def _qwen3(calls: Sequence[Call], choose: random.Random, start: str = "<tool_call>", end: str = "</tool_call>") -> str:
    line = choose.choice(("\n", "\n", "\n", ""))
    blocks = []
    for call in calls:
        arguments = "".join(
            f"<parameter={name}>{line}{plain_text(value)}{line}</parameter>{line}"
            for name, value in call.arguments.items()
        )
        blocks.append(f"{start}{line}<function={call.name}>{line}{arguments}</function>{line}{end}")
    return line.join(blocks)


def _seed_oss(calls: Sequence[Call], choose: random.Random) -> str:
    return _qwen3(calls, choose, "<seed:tool_call>", "</seed:tool_call>")


def _glm(calls: Sequence[Call], choose: random.Random) -> str:
    line = choose.choice(("\n", ""))
    blocks = []
    for call in calls:
        arguments = "".join(
            f"<arg_key>{name}</arg_key>{line}<arg_value>{plain_text(value)}</arg_value>{line}"
            for name, value in call.arguments.items()
        )
        blocks.append(f"<tool_call>{call.name}{line}{arguments}</tool_call>")
    return line.join(blocks)


def _pythonic(calls: Sequence[Call], choose: random.Random) -> str:
    return f"[{', '.join(_python_call(call, choose) for call in calls)}]"


def _llama4_pythonic(calls: Sequence[Call], choose: random.Random) -> str:
    written = _pythonic(calls, choose)
    return choose.choice((written, f"<|python_start|>{written}<|python_end|>"))


def _olmo3(calls: Sequence[Call], choose: random.Random) -> str:
    lines = "\n".join(_python_call(call, choose) for call in calls)
    line = choose.choice(("", "\n"))
    return f"<function_calls>{line}{lines}{line}</function_calls>"


def _python_call(call: Call, choose: random.Random) -> str:
    write: Callable[[Any], str] = choose.choice((repr, repr, json_text))
    separator = choose.choice((", ", ",", ", ", ",\t"))
    return f"{call.name}({separator.join(f'{name}={write(value)}' for name, value in call.arguments.items())})"


def _lfm2(calls: Sequence[Call], choose: random.Random) -> str:
    return f"<|tool_call_start|>{_pythonic(calls, choose)}<|tool_call_end|>"


def _functiongemma(calls: Sequence[Call], choose: random.Random) -> str:
    return "".join(
        f"<start_function_call>call:{call.name}{{"
        + ",".join(f"{name}:<escape>{plain_text(value)}<escape>" for name, value in call.arguments.items())
        + "}<end_function_call>"
        for call in calls
    )


def _gemma4(calls: Sequence[Call], choose: random.Random) -> str:
    return "".join(f"<|tool_call>call:{call.name}{_gemma4_value(call.arguments)}<tool_call|>" for call in calls)


def _gemma4_value(value: Any) -> str:
    if isinstance(value, str):
        return f'<|"|>{value}<|"|>'
    if isinstance(value, dict):
        return "{" + ",".join(f"{name}:{_gemma4_value(member)}" for name, member in value.items()) + "}"
    if isinstance(value, list):
        return f"[{','.join(map(_gemma4_value, value))}]"
    return json_text(value)


def _harmony(calls: Sequence[Call], choose: random.Random) -> str:
    written = "<|channel|>analysis<|message|>I need a tool.<|end|>"
    for call in calls:
        written += (
            f"<|start|>assistant<|channel|>commentary to=functions.{call.name} <|constrain|>json<|message|>"
            f"{_any_json(call.arguments, choose)}<|call|>"
        )
    return written


def _harmony_messages(before: str, calls: str, after: str) -> str:
    """Puts text around calls into separate messages. The first message begins without `<|start|>`."""
    messages = []
    if before:
        messages.append(f"<|channel|>commentary<|message|>{before}<|end|>")
    if calls:
        messages.append(calls)
    if after:
        messages.append(f"<|channel|>final<|message|>{after}<|return|>")
    return "<|start|>assistant".join(messages)


def _harmony_tokens(text: str) -> list[int]:
    return _harmony_encoding().encode(text, allowed_special="all")


@cache
def _harmony_encoding() -> Any:
    import openai_harmony

    return openai_harmony.load_harmony_encoding(openai_harmony.HarmonyEncodingName.HARMONY_GPT_OSS)


def _any_json(value: Any, choose: random.Random) -> str:
    return json.dumps(
        value,
        ensure_ascii=choose.random() < 0.3,
        indent=choose.choice((None, None, None, 2)),
        separators=choose.choice((None, None, (",", ":"))),
    )


_XML: Final = ("<tool_call>", "</tool_call>")

FORMATS: Final = (
    Format(name="qwen3_xml", write=_qwen3, markers=_XML),
    Format(name="mimo", write=_qwen3, markers=_XML),
    Format(name="step3p5", write=_qwen3, markers=_XML),
    Format(name="seed_oss", write=_seed_oss, markers=("<seed:tool_call>", "</seed:tool_call>")),
    Format(name="glm45", write=_glm, markers=_XML),
    Format(name="poolside_v1", write=_glm, markers=_XML),
    Format(name="pythonic", write=_pythonic),
    Format(name="llama4_pythonic", write=_llama4_pythonic, markers=("<|python_start|>", "<|python_end|>")),
    Format(name="olmo3", write=_olmo3),
    Format(name="lfm2", write=_lfm2, markers=("<|tool_call_start|>", "<|tool_call_end|>")),
    Format(
        name="functiongemma",
        write=_functiongemma,
        markers=("<start_function_call>", "<end_function_call>", "<escape>"),
    ),
    Format(name="gemma4", write=_gemma4, markers=("<|tool_call>", "<tool_call|>", '<|"|>')),
    Format(name="openai", write=_harmony, around=_harmony_messages, tokenize=_harmony_tokens),
    *JSON_FORMATS,
)
"""All formats. If several names mean the same parser, only one is here."""

LOSSES: Final = {
    "deepseek_v3": {LOSES_TEXT},
    "ernie45": {LOSES_TEXT},
    "functiongemma": {LOSES_TEXT, LOSES_ARGUMENTS, WRONG_TYPES},
    "gigachat3": {LOSES_TEXT, LOSES_ARGUMENTS},
    "granite-20b-fc": {LOSES_TEXT},
    "granite4": {LOSES_TEXT},
    "hermes": {LOSES_TEXT},
    "hunyuan_a13b": {LOSES_TEXT},
    "internlm": {LOSES_TEXT},
    "jamba": {LOSES_TEXT},
    "llama3_json": {LOSES_TEXT, LOSES_CALLS},
    "lfm2": {LOSES_TEXT},
    "llama4_pythonic": {LOSES_TEXT},
    "mistral": {LOSES_TEXT, LOSES_ARGUMENTS},
    "olmo3": {LOSES_TEXT},
    "phi4_mini_json": {LOSES_TEXT, LOSES_CALLS},
    "pythonic": {LOSES_TEXT},
    "xlam": {LOSES_TEXT, LOSES_ARGUMENTS, LOSES_CALLS},
}
"""Format -> what vLLM loses of outputs that are not truncated or damaged. Mostly, it is text after calls."""
