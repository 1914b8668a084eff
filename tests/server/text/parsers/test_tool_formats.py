"""Tool calls in every format. The events are the same for all cuts of a text, and no text is lost."""

import json
import random
import re
from importlib.util import find_spec

import pytest

from server.terms.parser_paths import TOOL_PARSERS
from server.text.parsers.base import CallArguments, CallStart, Content, Reasoning
from server.text.parsers.registry import load_tool_parser
from server.text.parsers.tools import json_formats
from tests.server.text.parsers.formats import FORMATS
from tests.server.text.parsers.parsed import DEFINITIONS, join, parse, parse_at_all_splits
from tests.server.text.parsers.raw_texts import raw_texts

needs_harmony = pytest.mark.skipif(find_spec("openai_harmony") is None, reason="openai_harmony is not installed")


@pytest.fixture(autouse=True)
def fixed_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the ids of Mistral's calls constant, which are random otherwise."""
    monkeypatch.setattr(json_formats, "_make_id", lambda: "abcDEF123")


NESTED = '{"a": "x\\"}] <", "b": [1, {"c": "é🎉"}]}'
F = f'{{"name": "f", "arguments": {NESTED}}}'
F_PARAMETERS = f'{{"name": "f", "parameters": {NESTED}}}'
G = '{"arguments": {}, "name": "g"}'
BOTH = [("f", NESTED), ("g", "{}")]
BEGIN, END = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"
ALL_BEGIN, ALL_END, SEP = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁sep｜>"

CALLS = [
    ("deepseek_v3", f"hi{ALL_BEGIN}{BEGIN}function{SEP}f\n```json\n{NESTED}\n```{END}\n"
        f"{BEGIN}function{SEP}g\n```json\n{{}}\n```{END}{ALL_END}", ["hi", *BOTH]),
    ("deepseek_v31", f"{ALL_BEGIN}{BEGIN}f{SEP}{NESTED}{END}{BEGIN}g{SEP}{{}}{END}{ALL_END} bye", [*BOTH, " bye"]),
    ("granite", f"a<|tool_call|> [{F}, {G}] b", ["a", *BOTH, " b"]),
    ("granite", f"<tool_call>[{F}]", [("f", NESTED)]),
    ("granite", '<tool_call>[{"name": "f"}]', [("f", "{}")]),
    ("granite-20b-fc", f"<function_call> {F} <function_call> {G}", BOTH),
    ("granite4", 'a<tool_call>{"name": "f", "arguments": "{\\"x\\": \\"é\\"}"}</tool_call>b',
        ["a", ("f", '{"x": "é"}'), "b"]),
    ("hermes", "1 < 2 <tool", ["1 < 2 <tool"]),
    ("hermes", f"Sure.\n<tool_call>\n{F}\n</tool_call>", ["Sure.\n", ("f", NESTED)]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": "</tool_call>"}}</tool_call>',
        [("f", '{"a": "</tool_call>"}')]),
    ("hermes", f"<tool_call>{F}</tool_call>\n<tool_call>{G}</tool_call>\n", BOTH),
    ("hermes", '<tool_call>{"name": "f", "arguments": {}, "id": {"x": [1]}}</tool_call>\nDone.',
        [("f", "{}"), "\nDone."]),
    ("hermes", '<tool_call>{"name": "f", "arguments": null}', [("f", "null")]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1', [("f", '{"a": 1')]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": {"b": 1}</tool_call>!', [("f", '{"a": {"b": 1}'), "!"]),
    ("internlm", f"a<|action_start|><|plugin|>\n{F_PARAMETERS}<|action_end|>\n", ["a", ("f", NESTED)]),
    ("jamba", f"<tool_calls>[\n{F},\n{G}\n]</tool_calls>", BOTH),
    ("llama3_json", f"<|python_tag|>{F_PARAMETERS}; {G}", BOTH),
    ("llama3_json", f"a {F} b", ["a ", ("f", NESTED), " b"]),
    ("mistral", f"[TOOL_CALLS] [{F}, {G}] a", [*BOTH, " a"]),
    ("mistral", '[TOOL_CALLS][{"name": "f", "arguments": "{\\"x\\": 1}"}]', [("f", '{"x": 1}')]),
    ("mistral", f"a[TOOL_CALLS]f[ARGS]{NESTED}[TOOL_CALLS]g{{}}", ["a", *BOTH]),
    ("phi4_mini_json", f"functools[{F_PARAMETERS}, {G}]", BOTH),
    ("xlam", f"[{F}, {G}]", BOTH),
    ("xlam", f"a\n```json\n[{F}]\n```\nb", ["a\n", ("f", NESTED), "\nb"]),
    ("xlam", f"</think><tool_call>[{F}]</tool_call>", ["</think>", ("f", NESTED)]),
]  # fmt: skip


def read(name, text):
    """Parses a text. Returns the content as text, and calls as pairs of name and arguments."""
    read = []
    for event in parse_at_all_splits(lambda: load_tool_parser(name)([]), text):
        match event:
            case Content(text):
                read.append(text)
            case CallStart(name):
                read.append((name, ""))
            case CallArguments(text):
                read[-1] = (read[-1][0], read[-1][1] + text)
    return read


@pytest.mark.parametrize(("name", "text", "parts"), CALLS, ids=[f"{case[0]}-{i}" for i, case in enumerate(CALLS)])
def test_calls_and_content(name, text, parts):
    assert read(name, text) == parts


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("deepseek_v3", f"{ALL_BEGIN}{BEGIN}function{SEP}\n```json\n{{}}\n```"),
        ("deepseek_v31", f"{BEGIN}" + "f" * 600),
        ("granite", "<tool_call>[]"),
        ("granite", "<|tool_call|>[1, 2]"),
        ("hermes", "<tool_call>"),
        ("hermes", "<tool_call>f(1)</tool_call> and more"),
        ("hermes", '<tool_call>{"name": "f"}</tool_call>'),
        ("hermes", '<tool_call>{"name": 1, "arguments": {}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f", "argum'),
        ("hermes", '<tool_call>["name"]</tool_call>'),
        ("hermes", "<tool_call>{'name': 'f'}</tool_call>"),
        ("llama3_json", 'a {b} {"c": 1} {"name": "x", "n": {"y": 2}} {'),
        ("mistral", "[TOOL_CALLS]f"),
        ("phi4_mini_json", "I like functools[1] because"),
        ("xlam", "x[1][2] ```python\na=[]\n```"),
    ],
)
def test_what_is_no_call_is_content(name, text):
    assert read(name, text) == [text]


def test_arguments_come_as_they_arrive():
    parser = load_tool_parser("hermes")([])
    assert parser.feed('<tool_call>{"name": "f", "arguments": ', ()) == [CallStart("f")]
    assert parser.feed('{"ci', ()) == [CallArguments('{"ci')]
    assert parser.feed('ty": "Par', ()) == [CallArguments('ty": "Par')]


def test_ids_of_mistral_are_those_that_its_tokenizers_accept(monkeypatch):
    monkeypatch.undo()
    (start, _) = load_tool_parser("mistral")([]).feed("[TOOL_CALLS]f[ARGS]{}", ())
    assert re.fullmatch("[a-zA-Z0-9]{9}", start.id)
    (start, _) = load_tool_parser("mistral")([]).feed("[TOOL_CALLS]f[CALL_ID]123456789[ARGS]{}", ())
    assert start == CallStart("f", "123456789")


def test_all_names_can_be_loaded():
    assert all(load_tool_parser(name)([]).feed("text", ()) is not None for name in TOOL_PARSERS if name != "openai")


QWEN = (
    '<tool_call>\n<function=get_weather>\n<parameter=city>\nParis "1"\n</parameter>\n'
    "<parameter=days>\n2\n</parameter>\n"
)
PARIS = ("get_weather", {"city": 'Paris "1"', "days": 2})
NOW = ("now", {})

MARKED = [
    ("qwen3_xml", f"a\n{QWEN}</function>\n</tool_call>\n<tool_call><function=now></function></tool_call>",
        "a\n\n", [PARIS, NOW]),
    ("qwen3_xml", f"{QWEN}</tool_call> b", "b", [PARIS]),
    ("qwen3_xml", "<tool_call>\nno call</tool_call>", "<tool_call>\nno call</tool_call>", []),
    ("qwen3_xml", "<tool_call>\n<function=", "<tool_call>\n<function=", []),
    ("mimo", "<function=run_code><parameter=code>\nx\n</parameter></function>", "", [("run_code", {"code": "\nx\n"})]),
    ("glm45", "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>\"é</arg_value></tool_call>", "",
        [("get_weather", {"city": '"é'})]),
    ("glm47", "<tool_call>unknown</tool_call>", "<tool_call>unknown</tool_call>", []),
    ("functiongemma", "a<start_function_call>call:search{limit:<escape>2<escape>,query:<escape>{}<escape>}"
        "<end_function_call>", "a", [("search", {"limit": 2, "query": "{}"})]),
    ("gemma4", 'a<|tool_call>call:search{query:<|"|>"{é<|"|>,filters:{year:7,x:[<|"|>}<|"|>,[]]},tags:[]}'
        "<tool_call|>b",
        "ab", [("search", {"query": '"{é', "filters": {"year": 7, "x": ["}", []]}, "tags": []})]),
    ("gemma4", "<|tool_call>call:now{}<|tool_call>call:now{}", "", [NOW, NOW]),
    ("lfm2", "a<|tool_call_start|>[now(), run_code(code='x\ny')]<|tool_call_end|>b", "ab",
        [NOW, ("run_code", {"code": "x\ny"})]),
    ("pythonic", "[get_weather(city='Paris \"1\"', days=+2), now()] b", "b", [PARIS, NOW]),
    ("pythonic", "[now(), [1, 2]]", "[1, 2]]", [NOW]),
    ("pythonic", "[now(1)]", "[now(1)]", []),
    ("pythonic", "a [now()]", "a [now()]", []),
    ("llama4_pythonic", "<|python_start|>[now()]<|python_end|>", "", [NOW]),
    ("olmo3", "a\n<function_calls>\nnow()\nsearch(limit=null,\n tags=['\\'é)'])\n</function_calls>b", "a\nb",
        [NOW, ("search", {"limit": None, "tags": ["'é)"]})]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "content", "calls"), MARKED)
def test_values_of_marked_formats_are_those_of_the_schema(name, text, content, calls):
    parsed = join(parse_at_all_splits(lambda: load_tool_parser(name)(DEFINITIONS), text))
    assert parsed.content.rstrip() == content.rstrip()
    assert [(call.name, json.loads(call.arguments)) for call in parsed.calls] == calls


def test_strings_are_reported_as_they_arrive():
    parser = load_tool_parser("qwen3_xml")(DEFINITIONS)
    parser.feed("<tool_call><function=run_code>", ())
    parser.feed("<parameter=code>ab", ())
    assert parser.feed("cd", ()) == [CallArguments("cd")]
    assert parser.feed('e"</para', ()) == [CallArguments('e\\"')]
    assert parser.finish() == [CallArguments("</para")]


def test_other_values_are_reported_when_complete():
    parser = load_tool_parser("glm45")(DEFINITIONS)
    begin = parser.feed("<tool_call>get_weather<arg_key>days</arg_key><arg_value>1", ())
    assert begin == [CallStart("get_weather"), CallArguments('{"days": ')]
    assert parser.feed("0</arg_value>", ()) == [CallArguments("10")]


@pytest.mark.parametrize("name", ["qwen3_xml", "glm45", "olmo3"])
def test_little_text_is_held_back(name):
    """The parser's unsent text does not grow with the text, and so the cost of a piece does not grow."""
    parser = load_tool_parser(name)(DEFINITIONS)
    reported = 0
    for index in range(3000):
        reported += sum(len(event.text) for event in parser.feed(" < {[('\"", ()) if isinstance(event, Content))
        assert reported >= index * 8


def test_blanks_before_a_call_are_no_content():
    parser = load_tool_parser("glm45")(DEFINITIONS)
    events = [event for _ in range(3) for event in parser.feed(" \n", ())]
    assert [*events, *parser.feed("<tool_call>now</tool_call>\n", ()), *parser.finish()] == [
        CallStart("now"),
        CallArguments("{}"),
    ]


def test_deeply_nested_values_of_gemma4_are_text():
    nested = "[" * 10_000
    form = next(form for form in FORMATS if form.name == "gemma4")
    parsed = parse(form, [f"<|tool_call>call:search{{tags:{nested}{']' * 10_000}}}<tool_call|>"])
    assert "[" in parsed.calls[0].arguments


@pytest.mark.parametrize("end", ["}", "}<tool_call|>", "<tool_call|>", "a}", '<|"|><|"|>}', "[}"])
def test_a_list_of_gemma4_that_is_not_closed_ends(end):
    parser = load_tool_parser("gemma4")(DEFINITIONS)
    assert parser.feed(f"<|tool_call>call:search{{tags:[{end}", ())
    parser.finish()


def test_deeply_nested_values_are_text():
    nested = "[" * 200_000
    form = next(form for form in FORMATS if form.name == "glm45")
    text = f"<tool_call>search<arg_key>tags</arg_key><arg_value>{nested}</arg_value></tool_call>"
    assert json.loads(parse(form, [text]).calls[0].arguments) == {"tags": nested}


HARMONY = next(form for form in FORMATS if form.name == "openai")
NOW_CALL = "<|channel|>commentary to=functions.now <|constrain|>json<|message|>{}<|call|>"


def events_of_harmony(text):
    parser = load_tool_parser("openai")(DEFINITIONS)
    events = [event for token_id in HARMONY.tokenize(text) for event in parser.feed("", [token_id])]
    return [*events, *parser.finish()]


@needs_harmony
def test_harmony_has_reasoning_calls_and_content():
    final = "<|start|>assistant<|channel|>final<|message|>é🙂<|return|>"
    events = events_of_harmony(f"<|channel|>analysis<|message|>Hm<|end|><|start|>assistant{NOW_CALL}{final}")
    assert events[:3] == [Reasoning("Hm"), CallStart("now"), CallArguments("{}")]
    assert join(events).content == "é🙂"


@needs_harmony
@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("Hello", "Hello"),
        ("<|channel|>final", "<|channel|>final"),
        ("<|channel|>final<|message|>a<|return|>b", "ab"),
        (f"{NOW_CALL}oops", "oops"),
    ],
)
def test_malformed_messages_of_harmony_are_content(text, content):
    assert join(events_of_harmony(text)).content == content


@needs_harmony
def test_messages_to_built_in_tools_are_dropped():
    assert events_of_harmony("<|channel|>commentary to=browser.search code<|message|>x<|call|>") == []


@needs_harmony
def test_one_token_of_harmony_at_a_time_or_all_at_once():
    for raw in raw_texts(HARMONY):
        parser = load_tool_parser("openai")(DEFINITIONS)
        at_once = join([*parser.feed(raw.text, HARMONY.tokenize(raw.text)), *parser.finish()])
        assert at_once == join(events_of_harmony(raw.text))


TEXT_FORMATS = [form for form in FORMATS if form.name != "openai"]
"""All formats except `openai`, whose parser reads tokens."""

every_format = pytest.mark.parametrize("form", TEXT_FORMATS, ids=lambda form: form.name)


@pytest.mark.slow
@every_format
def test_every_cut(form):
    """Skips cuts with the same surroundings as an earlier cut."""
    seen: set[tuple[str, str]] = set()
    for raw in raw_texts(form):
        around = {(raw.text[max(0, cut - 24) : cut], raw.text[cut : cut + 12]): cut for cut in range(len(raw.text))}
        new = [cut for surroundings, cut in around.items() if surroundings not in seen]
        seen |= around.keys()
        parse_at_all_splits(lambda: load_tool_parser(form.name)(DEFINITIONS), raw.text, new)
    print(f"\n{form.name}: {len(seen)} cuts")


@every_format
def test_some_texts_at_every_cut(form):
    for raw in random.Random(0).sample(raw_texts(form), 8):
        parse_at_all_splits(lambda: load_tool_parser(form.name)(DEFINITIONS), raw.text)


@every_format
def test_nothing_is_invented(form):
    for raw in raw_texts(form):
        rest = iter(raw.text)
        assert all(character in rest for character in parse(form, [raw.text]).content), raw


@every_format
def test_a_text_without_calls_is_content(form):
    for raw in raw_texts(form):
        parsed = parse(form, [raw.text])
        if not parsed.calls:
            assert parsed.content == raw.text


@every_format
def test_damage_loses_no_word(form):
    """A word that is inserted anywhere ends up in the content, in a name, or in arguments."""
    choose = random.Random(form.name)
    texts = [raw.text for raw in raw_texts(form) if raw.kind == "calls"]
    for text in texts:
        cut = choose.randrange(len(text) + 1)
        parsed = parse(form, [f"{text[:cut]} vanadium {text[cut:]}"])
        assert "vanadium" in repr(parsed), text
