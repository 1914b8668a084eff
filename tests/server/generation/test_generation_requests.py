"""Fields of completion and chat requests: ranges, rejected fields, and fields that reach the template.

A line of rejected.jsonl has the fields of a chat, of a completion or of both, with the parameter and the
words of the error.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer

from base.errors import ConfigError, RequestError
from server.engine.sampling.grammar import GrammarError
from server.generation.chat import chat_options
from server.generation.generation import SamplingDefaults
from server.generation.generation_request import ChatRequest, CompletionRequest, FunctionDefinition, Tool
from server.generation.guided import Constraint, find_constraint, find_strict_constraint
from server.terms.config import ModelFiles
from server.terms.http_body.request_body import _warn
from server.terms.limits import LimitsConfig
from server.terms.sampling_values import FILE, FLAG, SamplingValues
from server.terms.server_config import GenerationConfig
from server.terms.types import GuidedDecoding, SamplingParams
from server.text.parsers.formats import TOOL_FORMATS
from tests.conversations.conversation import differences, read_lines
from tests.server.engine.sampling.grammar_texts import build_grammar
from tests.server.generation.conftest import TIME, WEATHER, Model, decode, read_cases
from tests.server.server_config import INFO

BAD_VALUES: dict[str, list[Any]] = {
    "temperature": [-0.1, 2.1, "hot"],
    "top_p": [0, 1.1],
    "min_p": [-0.1, 1.1],
    "presence_penalty": [-2.1, 2.1],
    "frequency_penalty": [-2.1, 2.1],
    "max_tokens": [-1],
    "min_tokens": [-1],
    "seed": [2**63, -(2**63) - 1, 1.5],
    "stop": ["", ["a", ""], 3, True],
    "stop_token_ids": [[-1]],
    "logit_bias": [{"a": 1}],
    "bad_words": [["a"]],
    "logprobs": [-2],
    "prompt_logprobs": [-2],
    "truncate_prompt_tokens": [-2],
    "stream": ["yes"],
    "stream_options": [{"include_usage": True}],
    "request_id": ["", "a\nERROR forged", "a\rb", "a\x1b[31m", "a\u2028b", "a\n"],
    "response_format": ["json", {"type": "json_schema"}, {"type": "json_schema", "json_schema": {"name": "a"}}],
    "media_io_kwargs": [{"a": {}}],
    "truncation_side": ["right"],
    "logprob_token_ids": [[1]],
    "use_beam_search": [True],
    "stream_interval": [2],
    "kv_transfer_params": [{"prompt_token_ids": [1]}],
    "thinking_token_budget": [-2, 1.0, True, "10"],
    "cache_salt": ["", "a" * 129, "a/b", "a@b", "a\\b", "a\x00"],
}
"""Field -> values that are rejected. A request id is logged, so it must not forge lines of the log."""

IGNORED_IN_CHAT = [
    ("audio", {"voice": "alloy"}),
    ("functions", [{"name": "f"}]),
    ("function_call", "auto"),
    ("web_search_options", {"a": 1}),
]


@pytest.mark.parametrize("name", BAD_VALUES)
def test_bad_value_is_rejected_with_the_name_of_its_field(model, name):
    for value in BAD_VALUES[name]:
        with pytest.raises(RequestError) as caught:
            decode(model, **{name: value})
        assert (caught.value.status, caught.value.param) == (400, name)
        assert caught.value.message


@pytest.mark.parametrize(("name", "value"), IGNORED_IN_CHAT)
def test_field_that_vllm_ignores_too_is_logged_once(name, value, caplog):
    _warn.cache_clear()
    for _ in range(2):
        decode(ChatRequest, **{name: value})
    assert [record.args for record in caplog.records] == [(name,)]


@pytest.mark.parametrize("kind", ["json", "regex", "choice", "grammar", "whitespace_pattern"])
def test_a_field_of_former_versions_is_rejected_with_the_one_that_replaces_it(model, kind):
    with pytest.raises(RequestError, match=f"vLLM has replaced `guided_{kind}` by `structured_outputs.{kind}`") as err:
        decode(model, **{f"guided_{kind}": "a"})
    assert (err.value.status, err.value.param) == (400, f"guided_{kind}")


def test_cache_salts_may_be_as_long_as_in_vllm(model):
    decode(model, cache_salt="a" * 128)


SHOWN = {"type": "function", "function": {"name": "f", "description": None, "parameters": None}}
TOOLS = {"tools": [Tool(function=FunctionDefinition(name="f"))], "tool_choice": "none"}
BOTH = {"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": False, "reasoning_effort": "x"}}


def variables(**values: Any) -> dict[str, Any]:
    return {"chat_template_kwargs": values}


@pytest.mark.parametrize(
    ("fields", "excludes_tools", "options"),
    [
        ({"chat_template_kwargs": {"a": 1}}, False, variables(a=1)),
        ({"reasoning_effort": "none"}, False, variables(reasoning_effort="none", enable_thinking=False)),
        ({"reasoning_effort": "high"}, False, variables(reasoning_effort="high", enable_thinking=True)),
        (BOTH, False, variables(reasoning_effort="low", enable_thinking=False)),
        (TOOLS, False, {"tools": [SHOWN]}),
        (TOOLS, True, {"tools": None}),
        ({}, False, {"add_generation_prompt": True}),
        ({"continue_final_message": True}, False, {"add_generation_prompt": False}),
        ({"add_generation_prompt": False}, False, {"add_generation_prompt": False}),
    ],
)
def test_the_template_gets_the_same_options_as_in_vllm(fields, excludes_tools, options):
    config = GenerationConfig(exclude_tools_when_tool_choice_none=excludes_tools)
    found = chat_options(ChatRequest(messages=[{"role": "user", "content": "Hello"}], **fields), config)
    assert {name: getattr(found, name) for name in options} == options


@pytest.mark.parametrize(("line", "model", "fields"), read_cases("rejected.jsonl"))
def test_a_request_is_rejected(line: dict[str, Any], model: Model, fields: dict[str, Any]):
    kind = RequestError if "param" in line else GrammarError
    with pytest.raises(kind) as caught:
        if (constraint := find_constraint(decode(model, **fields))) is not None:
            build_grammar(constraint.guided)
        sample(model, num_prompt_tokens=line.get("num_prompt_tokens", 5), **fields)
    if isinstance(caught.value, RequestError):
        assert (caught.value.status, caught.value.param) == (400, line["param"])
        assert caught.value.message
    assert differences("message", str(caught.value), {"": line.get("message", "...")}) == []


LINES = [line for _, line in read_lines(Path(__file__).with_name("guided.jsonl"))]


@pytest.mark.parametrize("line", [line for line in LINES if "asks" in line], ids=lambda line: str(line["asks"]))
def test_constraint_is_found_and_compiles(model, line):
    constraint = find_constraint(decode(model, **line["asks"]))
    assert (constraint and constraint.guided) == (line["constraint"] and GuidedDecoding(*line["constraint"]))
    if constraint is not None:
        build_grammar(constraint.guided)


def test_schema_nested_too_deeply_is_rejected(model):
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(70):
        schema = {"type": "array", "items": schema}
    with pytest.raises(RequestError, match="nested too deeply"):
        find_constraint(decode(model, structured_outputs={"json": schema}))


@pytest.fixture(scope="module")
def accepts(model_path: Path):
    """A function that checks whether the engine's grammar accepts a text as complete."""
    tokenizer = LLTokenizer((model_path / "tokenizer.json").read_text(), n_vocab=49152, eos_token=2)

    def accepts(constraint: Constraint | None, text: str) -> bool:
        matcher = LLMatcher(tokenizer, build_grammar(constraint.guided))
        return bool(matcher.consume_tokens(tokenizer.tokenize_str(text)) and matcher.is_accepting())

    return accepts


@pytest.mark.parametrize("line", [line for line in LINES if "forces" in line], ids=lambda line: str(line["accepts"]))
def test_a_forced_call_follows_its_schema(accepts, line):
    constraint = find_constraint(decode(ChatRequest, **line["forces"]))
    assert [text for text in line["accepts"] + line["rejects"] if accepts(constraint, text)] == line["accepts"]


def strict_constraint(*tools: dict[str, Any]) -> Constraint | None:
    """The constraint for calls in the format `hermes`. The first tool is strict."""
    first = {"function": tools[0]["function"] | {"strict": True}}
    call_format = TOOL_FORMATS["hermes"].call_format
    assert call_format is not None
    return find_strict_constraint(decode(ChatRequest, tools=[first, *tools[1:]]), call_format, trigger_id=None)


def test_chosen_calls_of_strict_tools_follow_their_schema(accepts):
    constraint = strict_constraint(WEATHER, TIME)

    def calls(name: str, arguments: str) -> bool:
        text = f'Wait <b>. <tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'
        return accepts(constraint, text)

    assert accepts(constraint, "No call <tool")
    assert calls("get_weather", '{"city": "Rome"}')
    assert calls("get_time", '{"zone": 1}')
    assert not calls("get_weather", '{"days": 1}')
    assert not calls("get_weather", '{"city": "Rome", "more": 1}')
    assert not calls("other", "{}")


def test_names_and_schemas_of_strict_tools_may_be_strange(accepts):
    constraint = strict_constraint({"function": {"name": 'a"NAME\\', "parameters": {"type": "object"}}})
    assert accepts(constraint, '<tool_call>{"name": "a\\"NAME\\\\", "arguments": {}}</tool_call>')
    deep: dict[str, Any] = {"type": "object"}
    for _ in range(40):
        deep = {"properties": {"a": deep}}
    with pytest.raises(RequestError, match="nested too deeply"):
        strict_constraint({"function": {"name": "f", "parameters": deep}})


@pytest.mark.parametrize("pattern", [5, {}, None])
def test_a_pattern_of_names_that_is_no_text_is_left_to_the_grammars_compiler(pattern, accepts):
    names = {"type": "object", "propertyNames": {"pattern": pattern}}
    assert strict_constraint({"function": {"name": "f", "parameters": names}}) is not None


def sample(model: Model, *, num_prompt_tokens: int = 5, max_logprobs: int = 20, **fields: Any) -> SamplingParams:
    defaults = SamplingDefaults(max_logprobs=max_logprobs)
    request = decode(model, limits=LimitsConfig(max_choices=INFO.vocab_size), **fields)
    [params] = defaults.build_all(request, [num_prompt_tokens], INFO, reasoning=[None])
    return params


@pytest.mark.parametrize(("line", "model", "fields"), read_cases("sampled.jsonl"))
def test_values_are_normalised_as_in_vllm(line, model, fields):
    params = sample(model, num_prompt_tokens=line.get("num_prompt_tokens", 5), **fields)
    found = {name: getattr(params, name) for name in line["params"]}
    assert {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()} == line["params"]


def test_minus_one_asks_for_the_log_probabilities_of_the_whole_vocabulary():
    assert sample(CompletionRequest, logprobs=-1, max_logprobs=-1).logprobs == INFO.vocab_size


def test_prompts_of_a_request_share_its_lists(model):
    request = decode(model, max_tokens=505, allowed_token_ids=list(range(1000)), logit_bias={5: 1.0})
    first, second = SamplingDefaults().build_all(request, [5, 12], INFO, reasoning=[None, None])
    assert (first.max_tokens, second.max_tokens) == (505, 500)
    assert second.allowed_token_ids is first.allowed_token_ids
    assert second.logit_bias is first.logit_bias


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "generation_config.json").write_text(
        json.dumps({"temperature": 0.6, "top_k": 20, "top_p": None, "max_new_tokens": 100, "eos_token_id": [1, 2]})
    )
    return ModelFiles(folder, folder)


def defaults_of(files, **options):
    return SamplingDefaults.from_config(GenerationConfig(**options), files)


@pytest.mark.parametrize(
    ("options", "values", "cap"),
    [
        ({}, {"temperature": 0.6, "top_k": 20, "top_p": 1.0, "max_new_tokens": 100}, None),
        ({"generation_config": "vllm"}, {"temperature": 1.0, "max_new_tokens": None}, None),
        (
            {"override_generation_config": {"temperature": 0.1, "max_new_tokens": 7}},
            {"temperature": 0.1, "top_k": 20},
            7,
        ),
        ({"generation_config": "FOLDER"}, {"min_p": 0.2, "temperature": 1.0}, 9),
    ],
    ids=["the model's own", "neutral", "override", "folder"],
)
def test_defaults_are_the_models_or_the_operators(files, tmp_path, options, values, cap):
    (tmp_path / "generation_config.json").write_text('{"min_p": 0.2, "max_new_tokens": 9}')
    options = {name: str(tmp_path) if value == "FOLDER" else value for name, value in options.items()}
    found = defaults_of(files, **options)
    assert {name: getattr(found.values, name) for name in values} == values
    assert found.max_tokens_cap == cap


def test_model_without_a_file_is_neutral(tmp_path):
    assert defaults_of(ModelFiles(tmp_path, tmp_path)).values.temperature == 1.0


@pytest.mark.parametrize(
    ("options", "content", "words"),
    [
        ({"generation_config": "nowhere"}, "{}", "--generation-config"),
        ({}, "{", r"generation_config\.json"),
        ({}, "[1]", r"generation_config\.json"),
        ({}, '{"max_new_tokens": 0}', r"generation_config\.json: max_new_tokens 0"),
        ({}, '{"max_new_tokens": "9"}', r"generation_config\.json: max_new_tokens '9'"),
    ],
)
def test_what_neither_engine_starts_with_is_an_error(files, options, content, words):
    (files.path / "generation_config.json").write_text(content)
    with pytest.raises(ConfigError, match=words):
        defaults_of(files, **options)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"temperature": -1}, "temperature -1 can be in no request"),
        ({"temperature": "0.7"}, "temperature '0.7' can be in no request"),
        ({"temperature": [1]}, "temperature [1] can be in no request"),
        ({"top_p": 0.0}, "top_p 0.0 can be in no request"),
        ({"top_k": -5}, "top_k -5 can be in no request"),
        ({"min_p": 2}, "min_p 2 can be in no request"),
        ({"repetition_penalty": 0}, "repetition_penalty 0 can be in no request"),
        ({"temprature": 0.5}, "'temprature' has no effect (did you mean 'temperature'?)"),
        ({"max_tokens": 5}, "'max_tokens' has no effect (did you mean 'max_new_tokens'?)"),
        ({"typical_p": 0.9, "max_length": 9, "chat_format": "x", "top_k": None, "temperature": True}, None),
    ],
    ids=repr,
)
@pytest.mark.parametrize("is_flag", [False, True], ids=["file", "flag"])
def test_values_that_no_request_can_have_are_told_and_ignored(files, caplog, content, told, is_flag):
    """vLLM starts with them, too. Then each request that omits them fails there."""
    (files.path / FILE).write_text(json.dumps({} if is_flag else content))
    found = defaults_of(files, override_generation_config=content if is_flag else {})
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    if told is not None:
        assert found.values == SamplingValues()
        assert warnings == [f"{FLAG if is_flag else files.path / FILE}: {told}" + warnings[0].partition(told)[2]]
    else:
        assert len(warnings) == (3 if is_flag else 0)  # the flag's other names have no effect


def test_a_limit_of_the_flag_is_ignored_as_it_is_no_fault_of_the_start(files, caplog):
    assert defaults_of(files, override_generation_config={"max_new_tokens": 0}).max_tokens_cap is None
    assert "--override-generation-config: max_new_tokens 0 can be in no request" in caplog.text
