"""Reasoning in chat completions: apart from the content, with tools, grammars and a budget."""

import json

import pytest

from server.types import ReasoningMarker
from tests.server.http.conftest import assert_rejected

MESSAGES = [{"role": "user", "content": "Weather?"}]
THOUGHTS = "It is < 10 degrees, I think."
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
NAMED = {"type": "function", "function": {"name": "get_weather"}}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'
SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}


@pytest.fixture(scope="module")
def reasoner(_start, _shared_engine):
    with _start(reasoning_parser="qwen3", enable_auto_tool_choice=True, tool_call_parser="hermes") as server:
        yield server


@pytest.fixture
def ask(reasoner, engine, encode):
    """The choice of a chat whose output is this text."""

    def ask(text, **fields):
        engine.reply = encode(text)
        return reasoner.chat_completion(max_tokens=300, **fields)["choices"][0]

    return ask


@pytest.fixture
def rules_of(reasoner, engine):
    """The engine's rules for a chat with these fields."""

    def rules_of(**fields):
        engine.requests.clear()
        assert reasoner.chat(**fields).status_code == 200
        ((_, params),) = engine.requests.values()
        return params.reasoning

    return rules_of


TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


@pytest.mark.parametrize("tokens_per_step", [1, 2, 5, 1000])
def test_reasoning_comes_before_the_content(reasoner, engine, encode, tokens_per_step):
    engine.reply, engine.tokens_per_step = encode(f"<think>\n{THOUGHTS}\n</think>\n\nYes."), tokens_per_step
    answer = reasoner.chat_completion(messages=MESSAGES, n=2, temperature=1)
    for choice in answer["choices"]:
        assert choice["message"]["reasoning"] == f"\n{THOUGHTS}\n"
        assert choice["message"]["content"] == "\n\nYes."
        assert "reasoning_content" not in choice["message"]
    num_tokens = len(encode(f"\n{THOUGHTS}\n"))
    spent = answer["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert spent == pytest.approx(2 * num_tokens, abs=4)
    assert "reasoning" not in reasoner.stream_chat(messages=MESSAGES)[0]["choices"][0]["delta"]


def test_reasoning_without_an_answer_has_no_content(ask):
    choice = ask("<think>Hm")
    assert (choice["message"]["reasoning"], choice["message"]["content"]) == ("Hm", None)


def test_reasoning_can_be_left_out(ask, reasoner, engine):
    fields = {"include_reasoning": False, "logprobs": True, "return_token_ids": True}
    choice = ask("<think>Hm</think>Yes", **fields)
    assert choice["message"]["reasoning"] is None
    assert choice["message"]["content"] == "Yes"
    assert choice["logprobs"] is None
    assert choice["token_ids"] is None
    lines = reasoner.stream_lines("/v1/chat/completions", {"messages": MESSAGES} | fields)
    assert "Hm" not in "".join(lines)
    assert not any("token_ids" in line and "prompt_token_ids" not in line for line in lines)


def test_reasoning_precedes_the_models_own_tool_calls(ask):
    choice = ask(f"<think>{THOUGHTS}</think>Well.{CALL}", tools=[TOOL])
    message = choice["message"]
    assert (message["reasoning"], message["content"]) == (THOUGHTS, "Well.")
    (call,) = message["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"city": "Rome"}
    assert choice["finish_reason"] == "tool_calls"


def test_a_tool_call_ends_the_reasoning(ask):
    message = ask(f"<think>Hm\n{CALL}", tools=[TOOL])["message"]
    assert (message["reasoning"], len(message["tool_calls"])) == ("Hm\n", 1)


FORCED = pytest.mark.parametrize(
    ("tool_choice", "output"),
    [("required", '[{"name": "get_weather", "parameters": {"city": "Rome"}}]'), (NAMED, '{"city": "Rome"}')],
    ids=["required", "named"],
)


@FORCED
def test_reasoning_precedes_forced_tool_calls(ask, rules_of, tool_choice, output):
    message = ask(f"<think>{THOUGHTS}</think>{output}", tools=[TOOL], tool_choice=tool_choice)["message"]
    (call,) = message["tool_calls"]
    assert message["reasoning"] == THOUGHTS
    assert json.loads(call["function"]["arguments"]) == {"city": "Rome"}
    assert rules_of(tools=[TOOL], tool_choice=tool_choice).delays_grammar


@FORCED
def test_the_tag_of_a_tool_call_is_not_part_of_a_forced_call(ask, tool_choice, output):
    message = ask(f"Hm<tool_call>{output}", tools=[TOOL], tool_choice=tool_choice)["message"]
    (call,) = message["tool_calls"]
    assert (message["reasoning"], message["content"]) == ("Hm", "")
    assert json.loads(call["function"]["arguments"]) == {"city": "Rome"}


def test_an_answer_without_reasoning_follows_its_grammar_from_the_first_token(ask, rules_of):
    """As in vLLM, without `include_reasoning` the model does not reason before a constrained answer."""
    fields = {"response_format": SCHEMA, "include_reasoning": False}
    assert rules_of(**fields) is None
    assert ask('{"a": 1}', **fields)["message"]["content"] == '{"a": 1}'


def test_the_prompt_may_have_opened_or_ended_the_reasoning(serve, engine, encode, use_template):
    engine.reply = encode("Hm</think>Yes")
    server = serve(reasoning_parser="deepseek_r1")
    use_template(TEMPLATE + "<|im_start|>assistant\n<think>So,")
    (choice,) = server.chat_completion(response_format=SCHEMA, thinking_token_budget=5)["choices"]
    assert choice["message"]["content"] == "Yes"
    ((_, params),) = engine.requests.values()
    assert params.reasoning.delays_grammar
    assert params.reasoning.is_open
    assert (params.reasoning.budget, params.reasoning.num_spent_tokens) == (5, len(encode("So,")))
    assert params.reasoning.forced_end == tuple(encode("</think>"))
    use_template(TEMPLATE + "<|im_start|>assistant\n<think>\n\n</think>\n\n")
    message = server.chat_completion(response_format=SCHEMA)["choices"][0]["message"]
    ((_, params),) = engine.requests.values()
    assert (message["reasoning"], message["content"]) == (None, "Hm</think>Yes")
    assert params.reasoning is None


def test_reasoning_of_earlier_messages_does_not_count(reasoner, engine, encode):
    engine.reply = encode("Hm</think>Yes")
    history = [*MESSAGES, {"role": "assistant", "content": "<think>A</think>B"}, *MESSAGES]
    message = reasoner.chat(messages=history).json()["choices"][0]["message"]
    assert (message["reasoning"], message["content"]) == ("Hm", "Yes")


def test_the_template_can_switch_reasoning_off(ask, rules_of):
    for fields in ({"chat_template_kwargs": {"enable_thinking": False}}, {"reasoning_effort": "none"}):
        message = ask("<think>Hm</think>Yes", **fields)["message"]
        assert (message["reasoning"], message["content"]) == (None, "<think>Hm</think>Yes")
        assert rules_of(response_format=SCHEMA, **fields) is None


def test_only_requests_that_need_it_are_followed_by_the_engine(rules_of):
    assert rules_of() is None
    assert rules_of(thinking_token_budget=-1) is None
    rules = rules_of(response_format=SCHEMA)
    assert rules.delays_grammar
    assert not rules.is_open
    assert rules.ends == (ReasoningMarker("</think>"), ReasoningMarker("<tool_call>", begins_answer=True))


def test_completions_have_a_budget_too_and_delay_their_grammars(reasoner, engine):
    text = reasoner.complete(thinking_token_budget=3, structured_outputs={"regex": "[a-z]+"}).json()["choices"][0][
        "text"
    ]
    assert text == " Paris, the city of light."
    ((_, params),) = engine.requests.values()
    assert (params.reasoning.budget, params.reasoning.delays_grammar) == (3, True)


def test_a_configured_text_ends_the_reasoning(serve, engine, encode):
    texts = {"reasoning_start_str": "<reason>", "reasoning_end_str": "Enough.</think>"}
    server = serve(reasoning_parser="qwen3", reasoning_config=texts)
    server.chat(thinking_token_budget=2**70)
    ((_, params),) = engine.requests.values()
    assert params.reasoning.forced_end == tuple(encode("Enough.</think>"))
    assert [marker.text for marker in params.reasoning.starts] == ["<think>", "<reason>"]


def test_a_budget_without_a_format_is_refused(server):
    for response in (server.chat(thinking_token_budget=5), server.complete(thinking_token_budget=5)):
        assert_rejected(response, "thinking_token_budget")


def test_without_a_format_everything_is_content(server, engine, encode):
    engine.reply = encode("<think>Hm</think>Yes")
    answer = server.chat().json()
    assert answer["choices"][0]["message"]["content"] == "<think>Hm</think>Yes"
    assert answer["usage"]["completion_tokens_details"] is None
