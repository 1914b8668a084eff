"""Completion requests: reproducible prompts, and the fields that one server accepts."""

import random
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from vllm_cli.bench.config import CompletionConfig
from vllm_cli.bench.request import EncodedRequest

TokenSource = Literal["usage", "chunks"]

_TASKS = (
    "Write a short story about",
    "Explain to a child the meaning of",
    "List the most important facts about",
    "Give a friend some good advice about",
    "Describe in plain words the history of",
    "Compare the past and the future of",
    "Write a letter to the city about",
    "Tell me what people think about",
)
_NOUNS = (
    "river house morning market winter garden music teacher window ocean road letter kitchen mountain paper engine "
    "light family doctor science village history summer animal bridge water school book colour story table night "
    "language forest number island picture train money weather question office friend ship farmer country king star"
)
_VERBS = "finds keeps loves shows builds takes sees opens follows leaves brings meets"
_NUM_DIGITS = 6


@dataclass(frozen=True, kw_only=True)
class Destination:
    """The server and model that requests are sent to."""

    base_url: str
    model: str
    api_key: str | None

    @property
    def headers(self) -> dict[str, str]:
        return request_headers(self.api_key)


@dataclass(frozen=True, kw_only=True)
class RequestFormat:
    """How completion requests to one server are written."""

    destination: Destination
    config: CompletionConfig
    optional: dict[str, Any] = field(default_factory=dict)
    """Optional fields that the server accepts."""
    token_source: TokenSource = "usage"
    """Where the numbers of generated tokens come from."""

    @property
    def url(self) -> str:
        return self.destination.base_url + self.config.path

    def encode(self, prompt: str, *, max_tokens: int) -> EncodedRequest:
        """One greedy streamed request."""
        body = self.body(prompt, max_tokens=max_tokens, is_stream=True) | self.optional
        return EncodedRequest(self.url, self.destination.headers, msgspec.json.encode(body), is_stream=True)

    def body(self, prompt: str, *, max_tokens: int, is_stream: bool) -> dict[str, Any]:
        """The fields that every server accepts."""
        is_chat = self.config.endpoint == "chat"
        content = {"messages": [{"role": "user", "content": prompt}]} if is_chat else {"prompt": prompt}
        common = {"model": self.destination.model, "max_tokens": max_tokens, "temperature": 0, "stream": is_stream}
        return common | content


def request_headers(api_key: str | None) -> dict[str, str]:
    """Headers of every request."""
    headers = {"Content-Type": "application/json"}
    return headers | {"Authorization": f"Bearer {api_key}"} if api_key else headers


def list_optional_fields(config: CompletionConfig) -> list[dict[str, Any]]:
    """Sets of optional fields to try, best first; the last one is empty."""
    usage = {"stream_options": {"include_usage": True}}
    ignore_eos = {"ignore_eos": True}
    return [ignore_eos | usage, usage, ignore_eos, {}] if config.ignore_eos else [usage, {}]


def build_prompt(num_tokens: int, *, seed: str) -> str:
    """A prompt of about `num_tokens` tokens, determined by the seed; it differs from its first word on.

    Uses no tokenizer: most vocabularies hold the words as one token each, and the digits of the number at the
    front count one token each.
    """
    source = random.Random(seed)
    nouns, verbs = _NOUNS.split(), _VERBS.split()
    number = f"{source.randrange(10**_NUM_DIGITS):0{_NUM_DIGITS}}:"
    words = [*source.choice(_TASKS).split(), source.choice(nouns), "."]
    num_words = max(1, num_tokens - _NUM_DIGITS - 1)
    while len(words) < num_words:
        words += ["The", source.choice(nouns), source.choice(verbs), "the", source.choice(nouns), "."]
    return " ".join([number, *words[:num_words]]).replace(" .", ".")
