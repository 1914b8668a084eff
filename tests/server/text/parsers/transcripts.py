"""Outputs of models in every format, with what a client gets of them."""

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from server.text.parsers.formats import FORCED, REASONING_FORMATS, TOOL_FORMATS, ReasoningFormat
from server.text.parsers.json_text import read_json
from server.text.parsers.output_parser import (
    CallArguments,
    CallStart,
    Content,
    Event,
    OutputParser,
    PromptEnd,
    Reasoning,
)


def _parameters(**properties: str) -> dict[str, Any]:
    return {"properties": {key: {"type": properties[key]} for key in properties}}


FUNCTIONS: Final = {
    "get_weather": _parameters(city="string", days="integer"),
    "search": _parameters(query="string", filters="object", tags="array", limit="integer"),
    "run_code": _parameters(code="string"),
    "now": None,
}

Part = str | tuple[str, Any] | Reasoning
"""Content, a call's name with its arguments, or reasoning."""


class Transcript(NamedTuple):
    """An output, and the parts that the parser finds in it."""

    text: str
    parts: Sequence[Part]
    tools: str | None = None
    reasoning: str | None = None
    prompt_end: PromptEnd = PromptEnd.SILENT

    def create_parser(self) -> OutputParser:
        return OutputParser(
            FUNCTIONS,
            tools=FORCED if self.tools == "forced" else TOOL_FORMATS[self.tools] if self.tools else None,
            reasoning=REASONING_FORMATS[self.reasoning] if self.reasoning else None,
            prompt_end=self.prompt_end,
        )

    def parse(self, pieces: Iterable[str]) -> list[Part]:
        parser = self.create_parser()
        return read_parts([*(event for piece in pieces for event in parser.feed(piece)), *parser.finish()])


def read_parts(events: Iterable[Event]) -> list[Part]:
    """Joins events as a client does. Arguments that are JSON are decoded."""
    parts: list[Any] = []
    for event in events:
        last = parts[-1] if parts else None
        match event:
            case CallStart(name):
                parts.append((name, ""))
            case CallArguments(text):
                parts[-1] = (last[0], last[1] + text)
            case Content(text) if isinstance(last, str):
                parts[-1] = last + text
            case Content(text):
                parts.append(text)
            case Reasoning(text) if isinstance(last, Reasoning):
                parts[-1] = Reasoning(last.text + text)
            case _:
                parts.append(event)
    return [(part[0], _decoded(part[1])) if type(part) is tuple else part for part in parts]


def _decoded(arguments: str) -> Any:
    try:
        return read_json(arguments)
    except ValueError:
        return arguments


_NESTED: Final = '{"a": "x\\"}] <", "b": [1, {"c": "é🎉"}]}'
_F: Final = f'{{"name": "f", "arguments": {_NESTED}}}'
_F_PARAMETERS: Final = f'{{"name": "f", "parameters": {_NESTED}}}'
_G: Final = '{"arguments": {}, "name": "g"}'
F: Final = ("f", {"a": 'x"}] <', "b": [1, {"c": "é🎉"}]})
G: Final = ("g", {})
_BEGIN, _END = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"
_ALL_BEGIN, _ALL_END, _SEP = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁sep｜>"
_QWEN: Final = (
    '<tool_call>\n<function=get_weather>\n<parameter=city>\nParis "1"\n</parameter>\n'
    "<parameter=days>\n2\n</parameter>\n"
)
_NOW_CALL: Final = "<|channel|>commentary to=functions.now <|constrain|>json<|message|>{}<|call|>"
PARIS: Final = ("get_weather", {"city": 'Paris "1"', "days": 2})
NOW: Final = ("now", {})

_TOOLS: Final[Sequence[tuple[str, str, Sequence[Part]]]] = (
    (
        "deepseek_v3",
        f"hi{_ALL_BEGIN}{_BEGIN}function{_SEP}f\n```json\n{_NESTED}\n```{_END}\n"
        f"{_BEGIN}function{_SEP}g\n```json\n{{}}\n```{_END}{_ALL_END}",
        ["hi", F, G],
    ),
    (
        "deepseek_v31",
        f"{_ALL_BEGIN}{_BEGIN}f{_SEP}{_NESTED}{_END}{_BEGIN}g{_SEP}{{}}{_END}{_ALL_END} bye",
        [F, G, " bye"],
    ),
    (
        "functiongemma",
        "a<start_function_call>call:search{limit:<escape>2<escape>,query:<escape>{}<escape>}<end_function_call>",
        ["a", ("search", {"limit": 2, "query": "{}"})],
    ),
    (
        "gemma4",
        'a<|tool_call>call:search{query:<|"|>"{é<|"|>,filters:{year:7,x:[<|"|>}<|"|>,[]]},tags:[ab c]}<tool_call|>b',
        ["a", ("search", {"query": '"{é', "filters": {"year": 7, "x": ["}", []]}, "tags": ["ab c"]}), "b"],
    ),
    ("gemma4", "<|tool_call>call:now{}<|tool_call>call:now{}", [NOW, NOW]),
    ("gigachat3", f"a<|function_call|>{_F}", ["a", F]),
    ("gigachat3", f"function call<|role_sep|>\n{_F}", [F]),
    (
        "glm45",
        '<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>"é</arg_value></tool_call>',
        [("get_weather", {"city": '"é'})],
    ),
    ("glm47", " \n<tool_call>now</tool_call>\n<tool_call>now</tool_call>\n", [NOW, NOW]),
    ("granite", f"a<|tool_call|> [{_F}, {_G}] b", ["a", F, G, " b"]),
    ("granite", '<tool_call>[{"name": "f"}]', [("f", {})]),
    ("granite-20b-fc", f"<function_call> {_F} <function_call> {_G}", [F, G]),
    (
        "granite4",
        'a<tool_call>{"name": "f", "arguments": "{\\"x\\": \\"é\\"}"}</tool_call>b',
        ["a", ("f", {"x": "é"}), "b"],
    ),
    ("hermes", f"Sure.\n<tool_call>\n{_F}\n</tool_call>", ["Sure.\n", F]),
    (
        "hermes",
        '<tool_call>{"name": "f", "arguments": {"a": "</tool_call>"}}</tool_call>',
        [("f", {"a": "</tool_call>"})],
    ),
    ("hermes", f"<tool_call>{_F}</tool_call>\n<tool_call>{_G}</tool_call>\n", [F, G]),
    (
        "hermes",
        '<tool_call>{"name": "f", "arguments": {}, "id": {"x": [1]}}</tool_call>\nDone.',
        [("f", {}), "\nDone."],
    ),
    ("hermes", '<tool_call>{"name": "f", "arguments": null}', [("f", None)]),
    ("internlm", f"a<|action_start|><|plugin|>\n{_F_PARAMETERS}<|action_end|>\n", ["a", F]),
    ("jamba", f"<tool_calls>[\n{_F},\n{_G}\n]</tool_calls>", [F, G]),
    (
        "lfm2",
        "a<|tool_call_start|>[now(), run_code(code='x\ny')]<|tool_call_end|>b",
        ["a", NOW, ("run_code", {"code": "x\ny"}), "b"],
    ),
    ("llama3_json", f"<|python_tag|>{_F_PARAMETERS}; {_G}", [F, G]),
    ("llama3_json", f"a {_F} b", ["a ", F, " b"]),
    ("llama4_pythonic", "<|python_start|>[now()]<|python_end|>", [NOW]),
    ("mimo", "<function=run_code><parameter=code>\nx\n</parameter></function>", [("run_code", {"code": "\nx\n"})]),
    ("mistral", f"[TOOL_CALLS] [{_F}, {_G}] a", [F, G, " a"]),
    ("mistral", '[TOOL_CALLS][{"name": "f", "arguments": "{\\"x\\": 1}"}]', [("f", {"x": 1})]),
    ("mistral", f"a[TOOL_CALLS]f[ARGS]{_NESTED}[TOOL_CALLS]g{{}}", ["a", F, G]),
    ("mistral", "[TOOL_CALLS]f[CALL_ID]123456789[ARGS]{}", [("f", {})]),
    (
        "olmo3",
        "a\n<function_calls>\nnow()\nsearch(limit=null,\n tags=['\\'é)'])\n</function_calls>b",
        ["a\n", NOW, ("search", {"limit": None, "tags": ["'é)"]}), "b"],
    ),
    (
        "openai",
        f"<|channel|>analysis<|message|>Hm<|end|><|start|>assistant{_NOW_CALL}"
        "<|start|>assistant<|channel|>final<|message|>é🙂<|return|>",
        [Reasoning("Hm"), NOW, "é🙂"],
    ),
    (
        "openai",
        "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant to=functions.now<|channel|>commentary "
        "json<|message|>{}",
        ["I look.", NOW],
    ),
    (
        "openai",
        "<|channel|>analysis<|message|>A<|end|><|start|>assistant<|channel|>analysis<|message|>B<|end|>"
        "<|start|>assistant<|channel|>commentary to=browser.search code<|message|>C<|call|>",
        [Reasoning("ABC")],
    ),
    ("phi4_mini_json", f"functools[{_F_PARAMETERS}, {_G}]", [F, G]),
    ("pythonic", "[get_weather(city='Paris \"1\"', days=+2), now()] b", [PARIS, NOW, " b"]),
    (
        "qwen3_xml",
        f"a\n{_QWEN}</function>\n</tool_call>\n<tool_call><function=now></function></tool_call>",
        ["a\n", PARIS, NOW],
    ),
    ("qwen3_xml", f"{_QWEN}</tool_call> b", [PARIS, " b"]),
    ("seed_oss", "<seed:tool_call><function=now>\n</function>\n</seed:tool_call>", [NOW]),
    ("xlam", f"[{_F}, {_G}]", [F, G]),
    ("xlam", f"a\n```json\n[{_F}]\n```\nb", ["a\n", F, "\nb"]),
    ("xlam", f"</think><tool_call>[{_F}]</tool_call>", ["</think>", F]),
    ("forced", f"[{_F_PARAMETERS}, {_G}]", [F, G]),
    ("forced", f'[{_F_PARAMETERS}, {{"name": "g", "parameters": {{"a', [F, ("g", '{"a')]),
    ("forced", '[{"name": "g', []),
)

_NO_CALLS: Final = (
    ("deepseek_v3", f"{_ALL_BEGIN}{_BEGIN}function{_SEP}\n```json\n{{}}\n```"),
    ("deepseek_v31", f"{_BEGIN}" + "f" * 200),
    ("glm47", "<tool_call>unknown</tool_call>"),
    ("granite", "<tool_call>[]"),
    ("granite", "<|tool_call|>[1, 2]"),
    ("hermes", "1 < 2 <tool"),
    ("hermes", "<tool_call>"),
    ("hermes", "<tool_call>f(1)</tool_call> and more"),
    ("hermes", '<tool_call>{"name": 1, "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "f", "argum'),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1'),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": {"b": 1}</tool_call>!'),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call>'),
    ("hermes", '<tool_call>["name"]</tool_call>'),
    ("hermes", "<tool_call>{'name': 'f'}</tool_call>"),
    ("hermes", " \n"),
    ("llama3_json", 'a {b} {"c": 1} {"name": "x", "n": {"y": 2}} {'),
    ("llama3_json", '{"name": "Ada"}'),
    ("mistral", "[TOOL_CALLS]f"),
    ("openai", "Hello"),
    ("openai", "<|channel|>final"),
    ("phi4_mini_json", "I like functools[1] because"),
    ("pythonic", "[now(1)]"),
    ("pythonic", "[now(), [1, 2]]"),
    ("pythonic", "a [now()]"),
    ("qwen3_xml", "<tool_call>\nno call</tool_call>"),
    ("qwen3_xml", "<tool_call>\n<function="),
    ("qwen3_xml", "<function=now>oops</function>"),
    ("xlam", "x[1][2] ```python\na=[]\n```"),
)

_REASONING: Final[Sequence[tuple[str, str, Sequence[Part]]]] = (
    ("deepseek_r1", "A</think>B</think>C", [Reasoning("A"), "B</think>C"]),
    ("ernie45", "A\n</think>\n\n<response>\nB\n</response>\n", [Reasoning("A\n"), "\nB\n\n"]),
    ("ernie45", "A</think>\n<resp", [Reasoning("A"), "<resp"]),
    ("gemma4", "<|channel>thought\nA\n<channel|>B", [Reasoning("A"), "B"]),
    ("gemma4", "<|channel>though<channel|>B", [Reasoning("though"), "B"]),
    ("gemma4", "<|channel>thou", [Reasoning("thou")]),
    ("glm45", "<think>\nA \n</think>\n\nB", [Reasoning("\nA"), "\n\nB"]),
    ("glm45", "<think>A \n\n b \n", [Reasoning("A \n\n b")]),
    ("granite", "Here is my thought", ["Here is my thought"]),
    (
        "granite",
        "Ah. Here is my thought process: A Here is my response: B",
        ["Ah. Here is my thought process: A Here is my response: B"],
    ),
    ("granite_thinking_parser", "<think>A\n</think>\n\n\nB\n", [Reasoning("A"), "B\n"]),
    ("hunyuan_a13b", "<think>\nA\n</think>\n<answer>\nB\n</answer>", [Reasoning("A"), "B"]),
    ("hunyuan_a13b", "<think>\n\n</think>\n<answer>\nB", ["B"]),
    ("mistral", "[TH]x[THINK]A \n[/THINK]B", ["[TH]x", Reasoning("A"), "B"]),
    (
        "openai_gptoss",
        "<|channel|>analysis<|message|>A<|end|><|start|>assistant<|channel|>final<|message|>B",
        [Reasoning("A"), "B"],
    ),
    ("qwen3", "<think>\nA\n</think>\n\nB", [Reasoning("\nA\n"), "\n\nB"]),
    ("qwen3", 'A<tool_call>{"n', [Reasoning("A"), '<tool_call>{"n']),
)

_BOTH: Final = (
    Transcript(
        f"<think>A <tool</think>\nI call.<tool_call>{_F}</tool_call>",
        [Reasoning("A <tool"), "\nI call.", F],
        "hermes",
        "deepseek_r1",
    ),
    Transcript(f"A<tool_call>{_F}</tool_call>", [Reasoning("A"), F], "hermes", "qwen3"),
    Transcript(f"[THINK]A[/THINK]\n[TOOL_CALLS]f{_NESTED}", [Reasoning("A"), F], "mistral", "mistral"),
    Transcript("<think>A</think>\n\n[now()]", [Reasoning("A"), NOW], "pythonic", "deepseek_r1"),
    Transcript(f"A<tool_call>[{_F_PARAMETERS}]", [Reasoning("A"), F], "forced", "qwen3"),
)

_THOUGHTS: Final = "I <th </thin é 🎉\n1 < 2 "


def _of_every_format(name: str, form: ReasoningFormat) -> Iterable[Transcript]:
    """Complete and incomplete reasoning, for each start and end marker and each end of the prompt."""
    kept = str.rstrip if form.strips_reasoning else str
    for start in (*form.starts, "") if form.is_open_at_start else form.starts:
        for end in form.ends:
            text = f"{start}{_THOUGHTS}{end}Paris </t"
            yield Transcript(text, [Reasoning(kept(_THOUGHTS)), "Paris </t"], None, name)
    text = f"{_THOUGHTS}{form.ends[0]}Paris"
    yield Transcript(text, [Reasoning(kept(_THOUGHTS)), "Paris"], None, name, PromptEnd.OPEN)
    yield Transcript("Paris", ["Paris"], None, name, PromptEnd.ENDED)
    yield Transcript("", [], None, name, PromptEnd.OPEN)
    yield Transcript(form.starts[0] + "Hm </thi", [Reasoning("Hm </thi")], None, name)
    yield Transcript("Hm", [Reasoning("Hm") if form.is_open_at_start else "Hm"], None, name)


TRANSCRIPTS: Final = (
    *(Transcript(text, parts, name) for name, text, parts in _TOOLS),
    *(Transcript(text, [text], name) for name, text in _NO_CALLS),
    *(Transcript(text, parts, None, name) for name, text, parts in _REASONING),
    *_BOTH,
    *(transcript for name, form in REASONING_FORMATS.items() for transcript in _of_every_format(name, form)),
)
