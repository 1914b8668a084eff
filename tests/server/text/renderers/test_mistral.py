"""Mistral's tokenizers and conversations are as in mistral-common. `test_against_vllm.py` tests vLLM's."""

import json
import sys
from itertools import product
from typing import Any

import pytest
from mistral_common.tokens.tokenizers.base import SpecialTokenPolicy

from base.errors import RequestError
from server.terms.config import ModelFiles, RendererConfig
from server.text.model_files.tokenizer_files import TokenizerLoadError, find_mistral_file, find_tokenizer_mode
from server.text.renderers.base import build_renderer, import_renderer
from server.text.renderers.mistral import MistralRenderer
from server.text.renderers.prompts import ChatOptions, TextOptions
from server.text.renderers.tokenizers.tokenizer import Cut
from tests.server.engine.features.tiny_vlm import save_vlm
from tests.server.engine.features.vlm_reference import image_messages, image_url, render_with_images
from tests.server.text.renderers.conftest import TEXTS, encode, feed
from tests.support.tiers import thorough_but_for

DEEPSEEK = '{"model_type": "deepseek_v32"}'


def decode(renderer: MistralRenderer, token_ids: list[int], *, skip_special_tokens: bool = True) -> str:
    return renderer.tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)


def named(renderer: MistralRenderer, name: str) -> int:
    return next(token_id for token_id, token in renderer.tokenizer.added_tokens.items() if token == name)


@pytest.mark.thorough
def test_text_encodes_and_decodes_as_with_mistral_common(mistral):
    raw = mistral._mistral.loaded.instruct_tokenizer.tokenizer
    for text, bos in product(TEXTS, (True, False)):
        expected = raw.encode(text, bos=bos, eos=False)
        prompt = mistral.prompts.render(text, TextOptions(add_special_tokens=bos))
        assert (prompt.token_ids, prompt.text) == (expected, text)
        assert mistral.detokenize(expected, True) == raw.decode(expected, SpecialTokenPolicy.IGNORE) == text
        assert mistral.detokenize(expected) == "<s>" * bos + text


def test_special_tokens_in_a_text_are_encoded_as_text(mistral):
    assert not set(encode(mistral, "</s><s>[INST][TOOL_CALLS]")) & mistral.tokenizer.added_tokens.keys()


def test_tokens_have_the_bytes_of_the_text(mistral, mistral_kind):
    before = "" if "tekken" in mistral_kind else " "
    for text in TEXTS:
        assert b"".join(map(mistral.tokenizer.token_bytes, encode(mistral, text))) == (before + text).encode()


def test_more_spaces_than_tekken_can_encode_are_rejected(build_mistral):
    with pytest.raises(RequestError, match="cannot be tokenized"):
        build_mistral("tekken_v11").prompts.render("x" + " " * 1_100_000 + "x", TextOptions())


def test_special_tokens_are_skipped_except_those_that_delimit_calls_and_reasoning(mistral):
    names = ("[THINK]", "[/THINK]", "[TOOL_CALLS]", "[ARGS]", "[INST]", "</s>")
    known = [name for name in names if name in mistral.tokenizer.added_tokens.values()]
    token_ids = [part for name in known for part in (named(mistral, name), *encode(mistral, "a b"))]
    everything = "".join(f"{name}a b" for name in known)
    skipped = everything.replace("</s>", "").replace("[INST]", "")
    expected = decode(mistral, token_ids)
    assert expected.replace(" a", "a") == skipped
    assert feed(mistral.create_detokenizer(), token_ids) == expected
    written = mistral.create_detokenizer(skip_special_tokens=False)
    assert feed(written, token_ids) == mistral.detokenize(token_ids) == everything


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["tekken.json", "tekken_240911.json", "tokenizer.model.v7"], "tekken.json"),
        (["tekken_240718.json", "tekken_240911.json", "tokenizer.model.v7"], "tekken_240911.json"),
        (["tokenizer.model", "tokenizer.model.v3"], "tokenizer.model.v3"),
        (["tokenizer.model.v3", "tokenizer.model.v11", "tokenizer.model.v7m1"], "tokenizer.model.v11"),
        (
            ["mistral_instruct_tokenizer_240216.model.v2", "tokenizer.model"],
            "mistral_instruct_tokenizer_240216.model.v2",
        ),
        (["tokenizer.json", "tokenizer.model", "config.json"], "tokenizer.model"),
        (["tokenizer.json", "spiece.model", "tekken.txt", "tokenizer.model.v3.bak"], None),
        ([], None),
    ],
)
def test_the_newest_file_is_used(names, expected, tmp_path):
    for name in names:
        (tmp_path / name).touch()
    found = find_mistral_file(tmp_path)
    assert (found and found.name) == expected


@pytest.mark.parametrize(
    ("names", "wanted", "expected"),
    [
        (["tekken.json"], "auto", "mistral"),
        (["tekken.json", "tokenizer.json"], "auto", "hf"),
        (["tokenizer.model"], "auto", "hf"),
        (["tekken.json", "tokenizer.json"], "mistral", "mistral"),
        (["consolidated.safetensors", "tekken.json", "tokenizer.json"], "auto", "mistral"),
        (["consolidated-00001-of-00002.safetensors", "tokenizer.model.v3", "tokenizer.model"], "auto", "mistral"),
        (["consolidated.safetensors", "tokenizer.model"], "auto", "hf"),
        (["consolidated.00.pth", "tekken.json", "tokenizer.json"], "auto", "hf"),
    ],
)
def test_the_mode_follows_from_the_files_as_in_vllm(names, wanted, expected, tmp_path):
    for name in names:
        (tmp_path / name).touch()
    assert find_tokenizer_mode(tmp_path, wanted) == expected


@pytest.mark.parametrize(("name", "content"), [("tokenizer.tok.json", "{}"), ("config.json", DEEPSEEK)])
def test_tokenizers_that_only_vllm_has_name_it(name, content, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(TokenizerLoadError, match="--engine vllm"):
        build_renderer(ModelFiles(tmp_path, tmp_path), RendererConfig())


def test_a_missing_library_is_one_clear_line(monkeypatch):
    monkeypatch.delitem(sys.modules, "server.text.renderers.mistral")
    monkeypatch.setitem(sys.modules, "mistral_common.exceptions", None)
    with pytest.raises(TokenizerLoadError, match="--tokenizer-mode mistral needs the Python package mistral_common"):
        import_renderer("mistral")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (None, "", "no tekken.json, no "),
        ("tekken.json", "{", "tekken.json: "),
        ("tekken.json", "{}", "tekken.json: "),
        ("tekken.json", '{"config": {"version": "v99"}}', "v99"),
        ("tokenizer.model.v3", "no model", "tokenizer.model.v3: "),
        ("tokenizer.model.v99", "", "tokenizer.model.v99: "),
    ],
)
def test_a_missing_or_broken_file_fails_the_start(name, content, words, tmp_path):
    if name is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(TokenizerLoadError, match=words) as raised:
        build_renderer(ModelFiles(tmp_path, tmp_path), RendererConfig(tokenizer_mode="mistral"))
    assert str(tmp_path) in str(raised.value)
    assert "\n" not in str(raised.value)


USER = {"role": "user", "content": "What is the weather in Paris?"}
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "look", "arguments": '{"at": "it"}'}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "abcdefghi", "content": "sunny"}


@pytest.mark.parametrize(
    "kind", thorough_but_for(("v3", "v7", "tekken_v3", "tekken_v11", "tekken_v13"), "v3", "tekken_v11")
)
def test_a_tool_call_s_id_is_cut_to_mistral_s_length(kind, build_mistral):
    mistral = build_mistral(kind)
    long = [USER, CALLING | {"tool_calls": [CALL | {"id": "call_abcdefghi"}]}, RESULT | {"tool_call_id": "_abcdefghi"}]
    short = mistral.render_chat([USER, CALLING, RESULT], ChatOptions())
    assert mistral.render_chat(long, ChatOptions()) == short


def test_arguments_may_be_an_object_and_broken_ones_become_empty(build_mistral):
    renderer = build_mistral("tekken_v11")

    def rendered(arguments: Any) -> list[int]:
        function = {"name": "look", "arguments": arguments}
        messages = [USER, CALLING | {"tool_calls": [CALL | {"function": function}]}, RESULT]
        return renderer.render_chat(messages, ChatOptions()).token_ids

    assert rendered({"at": "it"}) == rendered('{"at":  "it"}')
    assert rendered("{") == rendered("") == rendered(None) == rendered({})


def test_a_tool_without_description_or_parameters_has_no_parameters(build_mistral):
    renderer = build_mistral("tekken_v11")

    def rendered(**fields: Any) -> list[int]:
        tools = [{"type": "function", "function": {"name": "look", **fields}}]
        return renderer.render_chat([USER], ChatOptions(tools=tools)).token_ids

    assert rendered(description=None, parameters=None, strict=True) == rendered(description="", parameters={})
    assert rendered() == rendered(description="", parameters={})


def test_text_parts_of_other_apis_are_accepted(mistral):
    def rendered(*parts: Any) -> list[int]:
        return mistral.render_chat([{"role": "user", "content": list(parts)}], ChatOptions()).token_ids

    expected = rendered({"type": "text", "text": "a"}, {"type": "text", "text": "b"})
    assert rendered({"type": "input_text", "text": "a"}, "b") == expected
    assert rendered({"type": "refusal", "refusal": "a"}, {"type": "output_text", "text": "b"}) == expected


def test_a_continued_message_has_no_end_marker(mistral):
    answer = {"role": "assistant", "content": "The capital of"}
    prompt = mistral.render_chat(
        [USER, answer], ChatOptions(add_generation_prompt=False, continue_final_message=True)
    ).token_ids
    again = mistral.render_chat([USER, answer, USER], ChatOptions()).token_ids
    assert again[: len(prompt) + 1] == [*prompt, mistral.tokenizer.eos_token_id]


def test_reasoning_is_written_if_the_tokenizer_supports_it(mistral, mistral_kind):
    answer = {"role": "assistant", "content": "sunny", "reasoning": "It rains never."}
    messages = [USER, answer, USER]
    if mistral_kind in ("tekken_v13", "tekken_v15"):
        text = mistral.detokenize(mistral.render_chat(messages, ChatOptions()).token_ids)
        assert "[THINK]It rains never.[/THINK]sunny</s>" in text
        return
    with pytest.raises(RequestError, match="no tokens for reasoning") as raised:
        mistral.render_chat(messages, ChatOptions())
    assert raised.value.param == "messages"


def test_reasoning_in_two_places_is_rejected(build_mistral):
    answer = {"role": "assistant", "content": [{"type": "thinking", "thinking": "a"}], "reasoning": "b"}
    with pytest.raises(RequestError, match="both"):
        build_mistral("tekken_v13").render_chat([USER, answer, USER], ChatOptions())


def test_reasoning_may_be_left_unclosed(build_mistral):
    renderer = build_mistral("tekken_v13")
    thought = {"type": "thinking", "thinking": "a", "closed": False}
    options = ChatOptions(add_generation_prompt=False, continue_final_message=True)
    prompt = renderer.render_chat([USER, {"role": "assistant", "content": [thought]}], options)
    assert renderer.detokenize(prompt.token_ids).endswith("[/INST][THINK]a")


def test_reasoning_effort_is_written_if_the_tokenizer_supports_it(mistral, mistral_kind):
    options = ChatOptions(chat_template_kwargs={"reasoning_effort": "high", "enable_thinking": True})
    text = mistral.detokenize(mistral.render_chat([USER], options).token_ids)
    plain = mistral.detokenize(mistral.render_chat([USER], ChatOptions()).token_ids)
    assert (text != plain) == (mistral_kind == "tekken_v15")


def test_the_operator_s_reasoning_effort_is_the_default(mistral_folders, inline_executor):
    if "tekken_v15" not in mistral_folders:
        pytest.skip("this mistral-common does not know version 15")
    path = mistral_folders["tekken_v15"]
    config = RendererConfig(default_chat_template_kwargs={"reasoning_effort": "high"})
    renderer = MistralRenderer(ModelFiles(path, path), config, executor=inline_executor)
    none = ChatOptions(chat_template_kwargs={"reasoning_effort": "none"})
    assert '"high"' in renderer.detokenize(renderer.render_chat([USER], ChatOptions()).token_ids)
    assert '"none"' in renderer.detokenize(renderer.render_chat([USER], none).token_ids)


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "at least one"),
        ([{"role": "narrator", "content": "x"}], "role: narrator"),
        ([{"role": "user"}], "role 'user' needs content"),
        ([{"role": "system", "content": None}, USER], "role 'system' must not be null"),
        ([USER, CALLING, RESULT | {"content": None}], "role 'tool' must not be null"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}], "not supported"),
        ([USER, {"role": "assistant", "content": "Paris."}], "set continue_final_message"),
        ([USER, {"role": "assistant", "content": ""}, USER], "content|Invalid assistant message"),
        ([USER, CALLING | {"tool_calls": [CALL | {"function": {"name": "a b", "arguments": ""}}]}, RESULT], "a b"),
        ([USER, CALLING | {"tool_calls": [CALL | {"function": {"arguments": ""}}]}, RESULT], "name: .*string"),
        ([USER, CALLING, RESULT | {"tool_call_id": None}], "[Tt]ool call id (has|None)"),
        ([{"role": "user", "content": "a\ud800b"}], "lone surrogate"),
    ],
)
def test_invalid_conversations_are_bad_requests(messages, words, build_mistral):
    with pytest.raises(RequestError, match=words) as raised:
        build_mistral("tekken_v11").render_chat(messages, ChatOptions())
    assert (raised.value.status, raised.value.param) == (400, "messages")


@pytest.mark.parametrize("function", [{"name": "a b"}, {"name": "a", "parameters": {"type": 3}}])
def test_an_invalid_tool_is_a_bad_request(function, build_mistral):
    with pytest.raises(RequestError, match="a b|[Ii]nvalid tool schema") as raised:
        build_mistral("tekken_v11").render_chat([USER], ChatOptions(tools=[{"type": "function", "function": function}]))
    assert raised.value.param == "tools"


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        ({"chat_template_kwargs": {"a": 1}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"enable_thinking": True}}, "chat_template_kwargs"),
        ({"continue_final_message": True, "add_generation_prompt": False}, "continue_final_message"),
    ],
)
def test_options_without_effect_are_rejected(settings, param, build_mistral):
    with pytest.raises(RequestError) as raised:
        build_mistral("tekken_v11").render_chat([USER], ChatOptions(**settings))
    assert (raised.value.status, raised.value.param) == (400, param)


def test_a_template_of_the_operator_fails_the_start(mistral_folders):
    path = mistral_folders["v3"]
    with pytest.raises(TokenizerLoadError, match="--tokenizer-mode hf"):
        MistralRenderer(ModelFiles(path, path), RendererConfig(chat_template="{{ 1 }}"))


def test_a_conversation_that_cannot_fit_is_rejected_before_tokenization(mistral_folders, inline_executor):
    path = mistral_folders["v3"]
    renderer = MistralRenderer(ModelFiles(path, path), RendererConfig(), executor=inline_executor)
    renderer.prompts.max_model_len = 10
    messages = [{"role": "user", "content": "x" * (10 * renderer.tokenizer.max_token_chars + 1)}]
    with pytest.raises(RequestError, match="maximum context length is 10 tokens"):
        renderer.render_chat(messages, ChatOptions())
    assert len(renderer.render_chat(messages, ChatOptions(truncate_prompt_tokens=-1)).token_ids) == 9


def test_a_text_of_a_pooling_model_is_cut_on_either_side(build_mistral):
    tokenizer = build_mistral("tekken_v11").tokenizer
    whole = tokenizer.encode("one two three four", add_special_tokens=True)
    for side, kept in (("right", whole[:3]), ("left", [whole[0], *whole[-2:]])):
        cut = Cut(3, side)
        assert tokenizer.encode("one two three four", add_special_tokens=True, cut=cut) == kept
    assert tokenizer.cut_text("one two three four", 2) == "one two"
    with pytest.raises(RequestError, match="pairs of texts"):
        tokenizer.encode_pair("a", "b")


async def test_images_are_processed_by_the_vision_part_and_written_by_mistral_common(mistral_folders, tmp_path):
    """Uses LLaVA's processor, because Mistral's own processor needs torchvision."""
    save_vlm(tmp_path, "llava")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / name).unlink()
    (tmp_path / "tekken.json").symlink_to(mistral_folders["tekken_v11"] / "tekken.json")
    settings = json.loads((tmp_path / "processor_config.json").read_text())
    (tmp_path / "processor_config.json").write_text(json.dumps(settings | {"image_token": "[IMG]"}))
    with build_renderer(ModelFiles(tmp_path, tmp_path), RendererConfig()) as renderer:
        renderer.warm_up()
        messages = image_messages(image_url(1), image_url(2))
        prompt = await render_with_images(renderer, messages, ChatOptions())
        assert prompt.inputs is not None
        tensors = prompt.inputs.mm or {}
        assert {name: tensor.shape for name, tensor in tensors.items()} == {"pixel_values": (2, 3, 56, 56)}
        image = named(renderer, "[IMG]")
        assert prompt.token_ids.count(image) == 2 * 16
        plain = renderer.render_chat([USER | {"content": "Look: "}], ChatOptions())
        assert [i for i in prompt.token_ids if i != image] == plain.token_ids
        with pytest.raises(RequestError, match="images"):
            await render_with_images(renderer, messages, ChatOptions(truncate_prompt_tokens=3))
        assert image not in renderer.render_chat([USER | {"content": "[IMG]"}], ChatOptions()).token_ids
