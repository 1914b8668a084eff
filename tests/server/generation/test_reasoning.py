"""Markers that are tokens: the state of reasoning after a prompt, counted tokens, the engine's rules."""

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from tokenizers import AddedToken, Tokenizer

from server.generation.chat import ChoiceReader, OutputParsing
from server.generation.generation import SequenceDelta
from server.generation.generation_request import ChatRequest
from server.generation.reasoning import PromptReasoning, ReasoningCounter, load_reasoning
from server.terms.config import ModelFiles, RendererConfig
from server.terms.server_config import GenerationConfig
from server.text.parsers.formats import REASONING_FORMATS
from server.text.parsers.output_parser import PromptEnd
from server.text.renderers.prompts import RenderedPrompt
from server.text.renderers.renderer import Renderer
from tests.server.text.renderers.conftest import encode
from tests.support.llamas import save_tiny_llama

MESSAGES = [{"role": "user", "content": "?"}]
PLAIN = ("<think>", "</think>", "<|im_start|>", "<tool_call>", "<|message|>", "<|start|>", "<|end|>")
SPECIAL = ("[THINK]", "[/THINK]", "<|channel|>")


@pytest.fixture(scope="module")
def renderer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Renderer]:
    folder = save_tiny_llama(tmp_path_factory.mktemp("model"))
    file = str(folder / "tokenizer.json")
    tokenizer = Tokenizer.from_file(file)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in PLAIN])
    tokenizer.add_special_tokens([AddedToken(text) for text in SPECIAL])
    tokenizer.save(file)
    with Renderer(ModelFiles(folder, folder), RendererConfig()) as renderer:
        yield renderer


@pytest.fixture
def look(renderer: Renderer) -> Any:
    """A function that returns the reasoning state of the outputs of a prompt."""

    def look(name: str, prompt: str, *, has_grammar: bool = False, **fields: Any) -> PromptReasoning | None:
        request = msgspec.convert({"messages": MESSAGES} | fields, ChatRequest)
        rendered = RenderedPrompt(encode(renderer, prompt), text=None)
        return load_reasoning(config(name), renderer).of_prompt(request, rendered, has_grammar=has_grammar)

    return look


def config(name: str) -> GenerationConfig:
    return GenerationConfig(reasoning_parser=name)


@pytest.mark.parametrize(
    ("name", "prompt", "end", "num_spent"),
    [
        ("qwen3", "<|im_start|>user hi", PromptEnd.SILENT, 0),
        ("qwen3", "<|im_start|><think>\nHm", PromptEnd.OPEN, 3),
        ("qwen3", "<|im_start|><think>\n\n</think>\n\n", PromptEnd.ENDED, 0),
        ("qwen3", "<|im_start|>A</think>B<|im_start|>", PromptEnd.SILENT, 0),
        ("olmo3", "<|im_start|><think>", PromptEnd.OPEN, 0),
        ("mistral", "[THINK]A[/THINK]B", PromptEnd.ENDED, 0),
        ("seed_oss", "<seed:think>Hm", PromptEnd.OPEN, 2),
        ("seed_oss", "<seed:think>Hm</seed:think>", PromptEnd.ENDED, 0),
        ("seed_oss", "Hm", PromptEnd.SILENT, 0),
        ("openai_gptoss", "<|start|>assistant", PromptEnd.SILENT, 0),
    ],
)
def test_the_prompts_last_marker_tells_whether_reasoning_is_open(look, name, prompt, end, num_spent):
    found = look(name, prompt, thinking_token_budget=None if name == "openai_gptoss" else 5)
    assert (found.prompt_end, found.num_spent_tokens) == (end, num_spent)


@pytest.mark.parametrize(
    ("name", "output", "number"),
    [
        ("qwen3", "<think>Hm</think>Yes", 2),
        ("qwen3", "Hm<tool_call>{}", 2),
        ("qwen3", "Hm</think>Yes<think>No</think>", 2),
        ("mistral", "Yes", 0),
        ("mistral", "[THINK]Hm", 2),
        ("seed_oss", "<seed:think>Hm</seed:think>Yes", 2),
        ("openai_gptoss", "<|channel|>analysis<|message|>Hm<|end|><|start|>assistant<|channel|>final<|message|>Y", 2),
    ],
)
@pytest.mark.parametrize("is_whole", [True, False])
def test_only_tokens_of_the_reasoning_are_counted(renderer, look, name, output, number, is_whole):
    counter = ReasoningCounter(look(name, "<|im_start|>"))
    token_ids = encode(renderer, output)
    for piece in [token_ids] if is_whole else [[token_id] for token_id in token_ids]:
        counter.add(piece)
    assert counter.num_tokens == number


@pytest.mark.parametrize(("name", "keeps"), [("mistral", True), ("openai_gptoss", True), ("qwen3", False)])
def test_special_tokens_are_kept_if_a_marker_is_one(renderer, name, keeps):
    assert load_reasoning(config(name), renderer).keeps_special_tokens is keeps


def test_a_grammar_applies_at_once_to_models_that_may_leave_the_reasoning_out(renderer, look):
    request = look("mistral", "Hi", has_grammar=True)
    rules = request.rules(ChatRequest(messages=[]), has_grammar=True)
    assert (rules.is_optional, rules.delays_grammar) == (True, False)
    assert [marker.token_id for marker in rules.starts] == encode(renderer, "[THINK]")
    opened = look("mistral", "[THINK]", has_grammar=True).rules(ChatRequest(messages=[]), has_grammar=True)
    assert (opened.is_optional, opened.delays_grammar) == (False, True)


def test_gpt_oss_is_constrained_in_its_final_channel_and_has_no_budget(renderer, look):
    rules = look("openai_gptoss", "<|start|>", has_grammar=True).rules(ChatRequest(messages=[]), has_grammar=True)
    assert rules.delays_grammar
    assert "<|channel|>final<|message|>" in [marker.text for marker in rules.ends]
    assert not load_reasoning(config("openai_gptoss"), renderer).has_end


@pytest.mark.parametrize("choice", ["auto", "required", "none"])
def test_gpt_oss_reasoning_and_calls_are_read_by_one_parser(renderer, look, choice):
    settings = {"enable_auto_tool_choice": True, "tool_call_parser": "openai", "reasoning_parser": "openai_gptoss"}
    server = GenerationConfig(**settings)  # type: ignore[arg-type]
    parsing = OutputParsing(server, renderer, load_reasoning(server, renderer))
    tools = [{"type": "function", "function": {"name": "f"}}]
    request = msgspec.convert({"messages": MESSAGES, "tools": tools, "tool_choice": choice}, ChatRequest)
    parser = parsing.create_parser(request, look("openai_gptoss", "<|start|>"))
    reader = ChoiceReader(request, parser)
    answer = '[{"name": "f", "parameters": {}}]' if choice == "required" else "Yes"
    text = f"<|channel|>analysis<|message|>Hm<|end|><|start|>assistant<|channel|>final<|message|>{answer}<|return|>"
    deltas = [reader.read(SequenceDelta(0, character, [])) for character in text]
    deltas.append(reader.read(SequenceDelta(0, "", [], finish_reason="stop")))
    assert "".join(delta.reasoning for delta in deltas) == "Hm"
    assert "".join(delta.content for delta in deltas) == ("" if choice == "required" else "Yes")
    calls = [call for delta in deltas for call in delta.tool_calls]
    assert [call.name for call in calls if call.name] == (["f"] if choice == "required" else [])
    assert "".join(call.arguments for call in calls) == ("{}" if choice == "required" else "")


def test_auto_tells_the_format_from_the_models_files(look):
    assert look("auto", "Hi").format is REASONING_FORMATS["mistral"], "the vocabulary has [THINK]"
