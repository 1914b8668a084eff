"""Values that the renderer, the engine and the routes exchange, as msgspec structs.

The API process sends them to the engine process as MessagePack (`server.engine.process_link.messages`).
This module imports no third-party package except msgspec.
"""

from collections.abc import Callable
from typing import Literal

import msgspec

from server.terms.config import PoolingTask

FinishReason = Literal["stop", "length", "abort", "error"]
"""Why a request ended, in vLLM's terms. `abort` and `error` never appear in an OpenAI body."""


class GuidedDecoding(msgspec.Struct, frozen=True):
    """A grammar that the generated text must follow. llguidance compiles it in the engine process."""

    kind: Literal["json_object", "json_schema", "regex", "choice", "grammar"]
    spec: str = ""
    """A JSON schema, regular expression, JSON list of choices or Lark grammar, depending on `kind`."""


Fault = Literal["engine", "request", "constraint"]
"""What has caused an error: the engine, the request, or its grammar, which does not compile."""


class ReasoningMarker(msgspec.Struct, frozen=True, array_like=True):
    """A text in the output that begins or ends the model's reasoning."""

    text: str
    token_id: int | None = None
    """The special token that is the marker. None if the marker consists of ordinary tokens."""
    begins_answer: bool = False
    """Whether a marker that ends the reasoning belongs to the answer, such as the tag of a tool call."""


class ReasoningRules(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the engine finds the reasoning before an answer, for a waiting grammar or a thinking budget."""

    starts: tuple[ReasoningMarker, ...] = ()
    ends: tuple[ReasoningMarker, ...] = ()
    """The reasoning ends with the first of these markers."""
    delays_grammar: bool = False
    """Whether the grammar applies only after the end of the reasoning."""
    is_optional: bool = False
    """Whether the output may begin with the answer. If it begins with a start marker, the grammar waits."""
    is_open: bool = False
    """Whether the prompt ends within reasoning, which matters only for the budget."""
    budget: int | None = None
    """The most tokens of reasoning. None means no limit."""
    num_spent_tokens: int = 0
    """The number of reasoning tokens at the end of the prompt. They count towards the budget."""
    forced_end: tuple[int, ...] = ()
    """The tokens that the engine adds to end the reasoning once the budget is used up."""

    @property
    def has_text_markers(self) -> bool:
        """Whether a marker can only be found in the text of ordinary tokens."""
        return any(marker.token_id is None for marker in self.starts + self.ends)


_SEED_MODULUS = 2**63


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How one sequence is sampled. There are no stop strings, because the engine handles no text.

    Names and meanings follow vLLM's `SamplingParams`. The APIs have checked that values are in range.
    """

    max_tokens: int
    """The most tokens to generate, at least 1."""
    min_tokens: int = 0
    """End-of-sequence and stop tokens are forbidden before this many tokens."""
    temperature: float = 1.0
    """A temperature of 0 means greedy sampling."""
    top_p: float = 1.0
    top_k: int = 0
    """The number of most likely tokens to sample from. 0 means all tokens."""
    min_p: float = 0.0
    seed: int | None = None
    """If a seed is set, the sequence has its own random generator, independent of other sequences."""
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    allowed_token_ids: tuple[int, ...] = ()
    """If not empty, only these tokens may be sampled."""
    logprobs: int | None = None
    """How many most likely tokens to report besides the sampled token. None means no log-probabilities."""
    prompt_logprobs: int | None = None
    """Like `logprobs`, but for the tokens of the prompt except the first one."""
    guided: GuidedDecoding | None = None
    reasoning: ReasoningRules | None = None
    """The rules for reasoning. None unless a grammar waits for its end, or it has a budget."""
    cache_salt: str | None = None
    """Prompts with different salts do not share the prefix cache."""

    def of_choice(self, position: int) -> "SamplingParams":
        """Returns the parameters of one choice of a prompt. Choices differ only in the seed."""
        if self.seed is None or not position:
            return self
        seed = (self.seed + position + _SEED_MODULUS) % (2 * _SEED_MODULUS) - _SEED_MODULUS
        return msgspec.structs.replace(self, seed=seed)


class TensorData(msgspec.Struct, frozen=True, array_like=True):
    """A tensor as bytes: row-major, little endian."""

    dtype: str
    """The name of torch's type without `torch.`, for example `bfloat16`."""
    shape: tuple[int, ...]
    data: memoryview
    """The tensor's bytes, which must not change, because they are sent to the engine's socket without a
    copy. The type is memoryview only, because msgspec cannot decode a union of bytes and memoryview."""


class PromptInputs(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, eq=False, weakref=True):
    """The embeddings or images of a prompt. Its choices share one object, which identifies the prompt."""

    embeds: TensorData | None = None
    """Rows that replace the embeddings of the prompt's tokens, of shape [num_prompt_tokens, width]."""
    mm: dict[str, TensorData] | None = None
    """The outputs of Hugging Face's processor, except `input_ids`."""

    def replace_tensors(self, change: Callable[[TensorData], TensorData]) -> "PromptInputs":
        """Returns a copy with `change` applied to each tensor, always in the same order."""
        return PromptInputs(
            embeds=None if self.embeds is None else change(self.embeds),
            mm=None if self.mm is None else {name: change(tensor) for name, tensor in self.mm.items()},
        )

    @property
    def num_bytes(self) -> int:
        tensors = list((self.mm or {}).values())
        if self.embeds is not None:
            tensors.append(self.embeds)
        return sum(len(tensor.data) for tensor in tensors)


class EnginePrompt(msgspec.Struct, frozen=True, eq=False):
    """One prompt of a request, in the form that the engine needs."""

    token_ids: list[int]
    params: SamplingParams
    """The sampling parameters. The prompts of a request differ only in `max_tokens` and `reasoning`."""
    inputs: PromptInputs | None = None


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """Natural log-probabilities at one position, from the model's distribution before sampling changes it."""

    token_id: int
    """The token that was sampled, or the prompt's token."""
    logprob: float
    """At least -9999, because JSON has no infinity."""
    rank: int
    """The token's rank among all tokens of the vocabulary. 1 is the most likely token."""
    top: list[tuple[int, float]]
    """The most likely tokens with their log-probabilities, best first."""


class PoolingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How one prompt's hidden states are pooled. Names and meanings follow vLLM's `PoolingParams`."""

    task: PoolingTask
    use_activation: bool | None = None
    """Whether embeddings are normalized, or logits become probabilities. None means the model's default."""
    dimensions: int | None = None
    """The length to which embeddings are truncated."""


class EngineOutput(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """The output of one engine step for one request."""

    request_id: str
    token_ids: list[int] = []
    """The new tokens, usually one. They include a sampled end-of-sequence or stop token."""
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    """The stop token or end-of-sequence token that ended the request. It is the last of `token_ids`."""
    logprobs: list[TokenLogprob] | None = None
    """One entry per new token. None if log-probabilities are not requested."""
    prompt_logprobs: list[TokenLogprob | None] | None = None
    """One entry per prompt token. The first entry is None. The list is sent once, with the first token."""
    num_cached_tokens: int = 0
    """The number of prompt tokens found in the prefix cache. It is sent with the first token."""
    queue_s: float = 0.0
    """Seconds from the arrival in the engine until the request ran. They are sent with the first token."""
    prefill_s: float = 0.0
    """Seconds from the end of `queue_s` to the first token. They are sent with the first token."""
    error: str | None = None
    """The message for the client, if `finish_reason` is "error"."""
    data: TensorData | None = None
    """The result of pooling a prompt: an embedding, logits or probabilities of classes, or a score. The
    result of a task whose name begins with `token_` has one row per token."""
    num_preemptions: int = 0
    """How often the sequence has been preempted so far."""
    fault: Fault = "engine"
    """What has caused the error."""


class EngineStats(msgspec.Struct, frozen=True, array_like=True):
    """The engine's figures after a step, from which the engine's `vllm:` metrics are computed."""

    num_running: int = 0
    num_waiting: int = 0
    kv_cache_usage: float = 0.0
    """The reserved share of the KV cache's tokens, from 0 to 1."""
    prefix_cache_queries: int = 0
    """The number of prompt tokens looked up in the prefix cache since the start."""
    prefix_cache_hits: int = 0
    num_iteration_tokens: int = 0
    """The number of tokens that the step computed, in chunks of prompts and decoded sequences."""
    num_preemptions: int = 0
    """The number of preemptions since the start."""
    num_threads: int = 0
    """The number of threads that compute a step."""
    num_deferred: int = 0
    """The number of waiting sequences whose grammar is not compiled yet."""


class PoolingInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The abilities of a pooling model."""

    task: PoolingTask
    """The default task of /pooling. Scores are computed with this task, too."""
    supported_tasks: tuple[PoolingTask, ...]
    embedding_size: int
    """The length of an embedding that is not truncated."""
    num_labels: int = 0
    """The number of a classifier's classes."""
    id2label: dict[int, str] = {}
    """Class -> its name."""
    is_matryoshka: bool = False
    """Whether embeddings may be truncated."""
    matryoshka_dimensions: tuple[int, ...] = ()
    """Lengths to which embeddings may be truncated. An empty list means that any length is allowed."""
    uses_sep_token: bool = True
    """Whether a cross-encoder's pairs are tokenized as pairs. If not, a pair's texts are concatenated."""
    does_lower_case: bool = False
    """Whether texts are turned into lower case before tokenization."""


class EngineInfo(msgspec.Struct, frozen=True):
    """Properties that the engine reports once, when it is ready."""

    model_type: str
    dtype: str
    device: str
    max_model_len: int
    """The most tokens of a sequence, prompt and output together."""
    vocab_size: int
    num_slots: int
    """The most sequences that run at once."""
    runner: str
    """`packed` (one forward pass for all sequences), `sequential` (the model's own cache) or `pooling`."""
    spans: list[tuple[str, int, int]]
    """The engine's start-up phases: name, begin and end in monotonic nanoseconds."""
    kv_cache_tokens: int = 0
    """The number of tokens that fit into the KV cache."""
    kv_cache_bytes: int = 0
    embeds_width: int | None = None
    """The width of prompt embeddings. None if prompts must be token ids."""
    has_prefix_cache: bool = False
    """Whether prompts stay in the KV cache for later prompts that begin with the same tokens."""
    pooling: PoolingInfo | None = None
    """The abilities of a pooling model. None if the model generates text."""
    pid: int | None = None
    """The process id of the engine."""
