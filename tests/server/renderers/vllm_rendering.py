"""Renders conversations with vLLM's own code; run by vLLM's own interpreter, for test_against_vllm.

`python vllm_rendering.py CASES ANSWERS templates FOLDER`: each case holds `messages`, `tools`, `kwargs` and
`chat_template`, each answer `token_ids`, or `error` if vLLM rejects the conversation.

`python vllm_rendering.py WORK ANSWERS mistral`: WORK maps a kind of tokenizer to its folder, bodies, texts
and streams.
"""

import json
import sys
from pathlib import Path
from typing import Any


def render_templates(cases: list[dict[str, Any]], folder: str) -> list[dict[str, Any]]:
    from vllm.config import ModelConfig, VllmConfig
    from vllm.renderers.hf import HfRenderer
    from vllm.tokenizers import get_tokenizer

    renderer = HfRenderer(VllmConfig(model_config=ModelConfig(folder)), get_tokenizer(folder))
    return [_render_template(renderer, case) for case in cases]


def _render_template(renderer: Any, case: dict[str, Any]) -> dict[str, Any]:
    from vllm.renderers.params import ChatParams

    kwargs = {**case["kwargs"], "tools": case["tools"], "tokenize": True, "add_generation_prompt": True}
    params = ChatParams(chat_template=case["chat_template"], chat_template_kwargs=kwargs)
    try:
        _, prompt = renderer.render_messages(case["messages"], params)
    except Exception as err:  # noqa: BLE001 - a template may raise anything
        return {"error": f"{type(err).__name__}: {err}"}
    return {"token_ids": list(prompt["prompt_token_ids"])}


def render_mistral(work: dict[str, Any]) -> list[Any]:
    import mistral_common

    return [mistral_common.__version__, {kind: _mistral_answer(each) for kind, each in work.items()}]


def _mistral_answer(work: dict[str, Any]) -> dict[str, Any]:
    from vllm.tokenizers.mistral import MistralTokenizer

    tokenizer = MistralTokenizer.from_pretrained(work["folder"])
    return {
        "prompts": [_render_mistral(tokenizer, body) for body in work["bodies"]],
        "texts": [tokenizer.encode(text) for text in work["texts"]],
        "streams": [_stream(tokenizer, *pair) for pair in work["streams"]],
    }


def _render_mistral(tokenizer: Any, body: dict[str, Any]) -> list[int] | str:
    """As `vllm.renderers.online_renderer` does; returns the error message if vLLM rejects the body."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.renderers.mistral import safe_apply_chat_template
    from vllm.tokenizers.mistral import maybe_serialize_tool_calls, truncate_tool_call_ids

    request = ChatCompletionRequest(model="m", **body)
    maybe_serialize_tool_calls(request)
    truncate_tool_call_ids(request)
    tools = [tool.model_dump() for tool in request.tools] if request.tools else None
    names = ("add_generation_prompt", "continue_final_message", "reasoning_effort")
    options = {name: getattr(request, name) for name in names}
    try:
        return safe_apply_chat_template(tokenizer, request.messages, tools=tools, **options)
    except ValueError as err:
        return str(err)


def _stream(tokenizer: Any, prompt: list[int], output: list[int]) -> str:
    from vllm.tokenizers.detokenizer_utils import detokenize_incrementally

    ids, tokens, start, end, text = list(prompt), None, 0, 0, ""
    for token_id in output:
        ids.append(token_id)
        new, piece, start, end = detokenize_incrementally(tokenizer, ids, tokens, start, end, skip_special_tokens=True)
        tokens = new if tokens is None else tokens + new
        text += piece
    return text


if __name__ == "__main__":
    asked, answered, kind, *words = sys.argv[1:]
    render = {"templates": render_templates, "mistral": render_mistral}[kind]
    Path(answered).write_text(json.dumps(render(json.loads(Path(asked).read_text()), *words)))
