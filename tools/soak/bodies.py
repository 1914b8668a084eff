"""Random request bodies of the soak test, of many kinds, valid and invalid."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from types import MappingProxyType
from typing import Any, Final

from vllm_cli.bench.request_format import build_prompt

Body = dict[str, Any]

_COMPLETIONS: Final = "/v1/completions"
_CHAT: Final = "/v1/chat/completions"
_NUM_PREFIXES: Final = 6
_SCHEMA: Final[Body] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 3},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
_TOOLS: Final = [
    {"type": "function", "function": {"name": name, "parameters": _SCHEMA}} for name in ("look_up", "write_down")
]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The maximum lengths."""

    prompt_tokens: int
    max_tokens: int


@dataclass(frozen=True)
class Writer:
    """Writes one kind of body."""

    path: str
    weight: float
    """How often it is sent, relative to the others."""
    write: Callable[[Random, Sizes], Body]


def _write_prompt(random: Random, sizes: Sizes) -> str:
    """A prompt of 1 to 100 % of the maximum length; most are short."""
    share = random.choice((0.01, 0.02, 0.05, 0.1, 0.2, 1.0))
    return build_prompt(max(8, int(sizes.prompt_tokens * share)), seed=str(random.random()))


def _sampling(random: Random, sizes: Sizes) -> Body:
    """Random output length and sampling parameters."""
    body: Body = {"max_tokens": random.randint(1, sizes.max_tokens), "stream": random.random() < 0.5}
    body |= random.choice(
        (
            {"temperature": 0},
            {"temperature": 1.2, "top_p": 0.9},
            {"temperature": 0.7, "top_k": 40, "seed": random.randrange(1 << 31)},
            {"temperature": 1.0, "min_p": 0.05, "presence_penalty": 0.5, "frequency_penalty": 0.5},
            {"temperature": 1.0, "repetition_penalty": 1.2, "stop": ["\n\n", "The end"]},
        )
    )
    if body["stream"] and random.random() < 0.5:
        body["stream_options"] = {"include_usage": True}
    return body


def _write_completion(random: Random, sizes: Sizes) -> Body:
    return _sampling(random, sizes) | {"prompt": _write_prompt(random, sizes)}


def _write_conversation(random: Random, sizes: Sizes) -> Body:
    num_questions = random.choice((1, 1, 2, 4))
    texts = [build_prompt(max(8, sizes.prompt_tokens // 20), seed=str(random.random())) for _ in range(num_questions)]
    messages = [{"role": "system", "content": "You are brief."}] if random.random() < 0.5 else []
    for text in texts:
        messages += [{"role": "user", "content": text}, {"role": "assistant", "content": "I see."}]
    return _sampling(random, sizes) | {"messages": messages[:-1]}


def _write_shared_prefix(random: Random, sizes: Sizes) -> Body:
    prefix = build_prompt(sizes.prompt_tokens // 2, seed=f"prefix {random.randrange(_NUM_PREFIXES)}")
    return _sampling(random, sizes) | {"prompt": f"{prefix} {random.randrange(10**6)}"}


def _write_several(random: Random, sizes: Sizes) -> Body:
    if random.random() < 0.5:
        prompts = [build_prompt(8, seed=str(random.random())) for _ in range(3)]
        return _sampling(random, sizes) | {"prompt": prompts}
    return _write_completion(random, sizes) | {"n": random.randint(2, 4), "temperature": 1.0}


def _write_logprobs(random: Random, sizes: Sizes) -> Body:
    body: Body = {"prompt": build_prompt(16, seed=str(random.random())), "max_tokens": sizes.max_tokens // 2 + 1}
    return body | {"logprobs": random.randint(0, 5), "prompt_logprobs": 1, "echo": random.random() < 0.5}


def _write_chat_logprobs(random: Random, sizes: Sizes) -> Body:
    return _write_conversation(random, sizes) | {"logprobs": True, "top_logprobs": random.randint(0, 5)}


def _write_schema(random: Random, sizes: Sizes) -> Body:
    schema = _SCHEMA | {"title": f"person {random.randrange(1000)}"}
    named = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}
    return _write_conversation(random, sizes) | {"response_format": random.choice((named, {"type": "json_object"}))}


def _write_structure(random: Random, sizes: Sizes) -> Body:
    number = random.randint(1, 9)
    wanted = random.choice(
        (
            {"regex": f"[a-z]{{{number}}} [0-9]{{{number}}}"},
            {"choice": ["yes", "no", f"maybe {number}"]},
            {"grammar": f'root ::= "{number} " ("a" | "b")+ "."'},
            {"json": _SCHEMA},
        )
    )
    return _write_completion(random, sizes) | {"structured_outputs": wanted}


def _write_tools(random: Random, sizes: Sizes) -> Body:
    choice = random.choice(("required", "none", {"type": "function", "function": {"name": "look_up"}}))
    return _write_conversation(random, sizes) | {"tools": _TOOLS, "tool_choice": choice}


def _tokenize(random: Random, sizes: Sizes) -> Body:
    return {"prompt": _write_prompt(random, sizes)}


def _tokenize_chat(random: Random, sizes: Sizes) -> Body:
    return {"messages": _write_conversation(random, sizes)["messages"]}


def _detokenize(random: Random, sizes: Sizes) -> Body:
    return {"tokens": [random.randrange(200) for _ in range(random.randint(1, sizes.prompt_tokens))]}


def _write_invalid(random: Random, sizes: Sizes) -> Body:
    return _write_completion(random, sizes) | random.choice(
        (
            {"temperature": -1},
            {"n": 10**6},
            {"max_tokens": -5},
            {"max_tokens": 10**9},
            {"prompt": []},
            {"prompt": {"a": 1}},
            {"logprobs": 10**4},
            {"model": "no-such-model"},
            {"stop": ["x"] * 1000},
            {"no_such_field": True},
            {"structured_outputs": {"regex": "(((("}},
            {"structured_outputs": {"json": "{"}},
            {"structured_outputs": {"grammar": "root ::= nothing"}},
            {"prompt": build_prompt(20_000, seed=str(random.random()))},
            {"logit_bias": {"99999999": 5}},
        )
    )


GOOD: Final[Mapping[str, Writer]] = MappingProxyType(
    {
        "completion": Writer(_COMPLETIONS, 20, _write_completion),
        "chat": Writer(_CHAT, 15, _write_conversation),
        "shared prefix": Writer(_COMPLETIONS, 8, _write_shared_prefix),
        "several": Writer(_COMPLETIONS, 5, _write_several),
        "logprobs": Writer(_COMPLETIONS, 4, _write_logprobs),
        "chat logprobs": Writer(_CHAT, 4, _write_chat_logprobs),
        "schema": Writer(_CHAT, 5, _write_schema),
        "structure": Writer(_COMPLETIONS, 5, _write_structure),
        "tools": Writer(_CHAT, 5, _write_tools),
        "tokenize": Writer("/tokenize", 5, _tokenize),
        "tokenize chat": Writer("/tokenize", 3, _tokenize_chat),
        "detokenize": Writer("/detokenize", 3, _detokenize),
    }
)
"""Requests that a server answers; kinds that it rejects at the start are left out of the load."""

BAD: Final = Writer(_COMPLETIONS, 8, _write_invalid)
"""Requests of which the server rejects almost all, without harm."""
