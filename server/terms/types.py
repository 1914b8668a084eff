"""Values exchanged between the renderer, the engine and the routes; standard library and msgspec only.

They are msgspec structs because the engine runs in a separate process: these types are also the wire format
(MessagePack, see `server.engine.process_link.messages`).
"""

from collections.abc import Callable
from typing import Literal

import msgspec

from server.terms.config import PoolingTask

FinishReason = Literal["stop", "length", "abort", "error"]
"""Why a request ended, in vLLM's terms; `abort` and `error` never appear in an OpenAI body."""


class GuidedDecoding(msgspec.Struct, frozen=True):
    """A grammar that the generated text must follow; compiled by llguidance in the engine process."""

    kind: Literal["json_object", "json_schema", "regex", "choice", "grammar"]
    spec: str = ""
    """The JSON schema, the regular expression, the JSON list of choices or the Lark grammar."""


UNUSABLE_GRAMMAR = "the grammar cannot be used: "
"""Begins the error of a sequence whose grammar does not compile."""


class ReasoningMarker(msgspec.Struct, frozen=True, array_like=True):
    """A text in the output that begins or ends the model's reasoning."""

    text: str
    token_id: int | None = None
    """The token that stands for it; None if it consists of ordinary tokens."""
    begins_answer: bool = False
    """Whether a marker that ends the reasoning belongs to the answer, as the tag of a tool call does."""


class ReasoningRules(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the engine follows the reasoning before an answer, for a grammar that waits or a budget."""

    starts: tuple[ReasoningMarker, ...] = ()
    ends: tuple[ReasoningMarker, ...] = ()
    """Any of them ends the reasoning."""
    delays_grammar: bool = False
    """Whether the grammar begins only after the reasoning's end."""
    is_optional: bool = False
    """Whether the output may begin with a start marker, which then delays the grammar, or with the answer."""
    is_open: bool = False
    """Whether the prompt ends within reasoning, as far as the budget is concerned."""
    budget: int | None = None
    """Most tokens of reasoning."""
    num_spent_tokens: int = 0
    """Tokens of reasoning at the prompt's end, which count as well."""
    forced_end: tuple[int, ...] = ()
    """The tokens that end the reasoning once the budget is used up."""

    @property
    def has_text_markers(self) -> bool:
        """Whether a marker has to be found by the text of ordinary tokens."""
        return any(marker.token_id is None for marker in self.starts + self.ends)


_SEED_MODULUS = 2**63


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How one sequence is sampled. Stop strings are not included: the engine handles no text.

    Names and meanings follow vLLM's `SamplingParams`. The protocol layer has checked the ranges.
    """

    max_tokens: int
    """Most tokens to generate, at least 1."""
    min_tokens: int = 0
    """No end-of-sequence or stop token before this many tokens."""
    temperature: float = 1.0
    """0 means greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 means all tokens."""
    min_p: float = 0.0
    seed: int | None = None
    """With a seed, the sequence has its own random generator and does not depend on other sequences."""
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    allowed_token_ids: tuple[int, ...] = ()
    """If not empty, only these tokens may be sampled."""
    logprobs: int | None = None
    """Number of most likely tokens to report in addition to the sampled one; None reports nothing."""
    prompt_logprobs: int | None = None
    """The number for every prompt token but the first."""
    guided: GuidedDecoding | None = None
    reasoning: ReasoningRules | None = None
    """Only if a grammar waits for the end of the reasoning, or the reasoning is limited."""
    adapter_id: int = 0
    """The LoRA adapter; 0 is the base model."""
    cache_salt: str | None = None
    """Prompts share the prefix cache only with prompts of the same salt."""

    def of_choice(self, position: int) -> "SamplingParams":
        """The parameters of one choice of a prompt; choices differ in the seed only."""
        if self.seed is None or not position:
            return self
        seed = (self.seed + position + _SEED_MODULUS) % (2 * _SEED_MODULUS) - _SEED_MODULUS
        return msgspec.structs.replace(self, seed=seed)


class TensorData(msgspec.Struct, frozen=True, array_like=True):
    """A tensor as bytes: row-major, little endian."""

    dtype: str
    """torch's name without `torch.`, e.g. `bfloat16`."""
    shape: tuple[int, ...]
    data: memoryview
    """The bytes; sent to the engine's socket without a copy, so they must not change.

    (msgspec cannot decode a union of bytes and memoryview.)
    """


class PromptInputs(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, eq=False, weakref=True):
    """The embeddings or images of a prompt.

    The choices of one prompt share one object, which identifies the prompt.
    """

    embeds: TensorData | None = None
    """Rows that replace the prompt tokens' embeddings, shape [num_prompt_tokens, width].

    A row that begins with NaN replaces nothing: its token has its own embedding.
    """
    mm: dict[str, TensorData] | None = None
    """The HF processor's outputs except `input_ids`."""

    def replace_tensors(self, change: Callable[[TensorData], TensorData]) -> "PromptInputs":
        """Other inputs with what `change` returns for each tensor, in a fixed order."""
        return PromptInputs(
            embeds=None if self.embeds is None else change(self.embeds),
            mm=None if self.mm is None else {name: change(tensor) for name, tensor in self.mm.items()},
        )

    @property
    def num_bytes(self) -> int:
        tensors = [*(() if self.embeds is None else (self.embeds,)), *(self.mm or {}).values()]
        return sum(len(tensor.data) for tensor in tensors)


class EnginePrompt(msgspec.Struct, frozen=True, eq=False):
    """One prompt of a request, as the engine continues it."""

    token_ids: list[int]
    params: SamplingParams
    """The prompts of a request differ only in `max_tokens` and `reasoning`."""
    inputs: PromptInputs | None = None


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """Log-probabilities at one position, natural logarithm, of the model's raw distribution."""

    token_id: int
    """The token that was sampled, or the prompt's token."""
    logprob: float
    rank: int
    """1 for the most likely token of the vocabulary."""
    top: list[tuple[int, float]]
    """The most likely tokens with their log-probabilities, best first."""


class PoolingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How one prompt's hidden states are pooled; names and meanings follow vLLM's `PoolingParams`."""

    task: PoolingTask
    use_activation: bool | None = None
    """Whether embeddings are normalized and logits become probabilities; None is the model's default."""
    dimensions: int | None = None
    """Truncates embeddings to this length."""


class EngineOutput(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """The output of one engine step for one request."""

    request_id: str
    token_ids: list[int] = []
    """New tokens, usually one. An end-of-sequence or stop token is included when it was sampled."""
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    """The `stop_token_ids` member or end-of-sequence token that ended the request, last in `token_ids`."""
    logprobs: list[TokenLogprob] | None = None
    """One entry per new token, if they were asked for."""
    prompt_logprobs: list[TokenLogprob | None] | None = None
    """One entry per prompt token (the first is None); sent once, with the first token."""
    num_cached_tokens: int = 0
    """Prompt tokens found in the prefix cache; set with the first token."""
    queue_s: float = 0.0
    """Seconds from the request's arrival in the engine until it started to run; set with the first token."""
    prefill_s: float = 0.0
    """Seconds from the end of `queue_s` to the first token; set with the first token."""
    error: str | None = None
    """With `finish_reason == "error"`: the message for the client."""
    data: TensorData | None = None
    """The result for a pooled prompt: its embedding, its classes' logits or probabilities, or its score. If
    the task's name begins with `token_`, it has one row per token."""
    num_preemptions: int = 0
    """How often the sequence has been preempted so far."""
    is_request_fault: bool = False
    """Whether the request caused the error."""


class EngineStats(msgspec.Struct, frozen=True, array_like=True):
    """The scheduler's state after a step; the source of the `vllm:` engine gauges and counters."""

    num_running: int = 0
    num_waiting: int = 0
    kv_cache_usage: float = 0.0
    """Share of the KV cache's tokens that are reserved, 0 to 1."""
    prefix_cache_queries: int = 0
    """Prompt tokens looked up in the prefix cache since start-up."""
    prefix_cache_hits: int = 0
    num_iteration_tokens: int = 0
    """Tokens the step computed (prompt chunks and decoded tokens)."""
    num_preemptions: int = 0
    """Preemptions since start-up."""
    running_adapters: tuple[str, ...] = ()
    """Names of the LoRA adapters of running requests."""
    waiting_adapters: tuple[str, ...] = ()
    num_threads: int = 0
    """Threads that compute a step."""


class PoolingInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The capabilities of a pooling model."""

    task: PoolingTask
    """The default task of /pooling, and the task that scores are computed from."""
    supported_tasks: tuple[PoolingTask, ...]
    embedding_size: int
    """Length of an embedding that is not truncated."""
    num_labels: int = 0
    """Number of classes of a classifier."""
    id2label: dict[int, str] = {}
    """Names of the classes."""
    is_matryoshka: bool = False
    """Whether embeddings may be truncated."""
    matryoshka_dimensions: tuple[int, ...] = ()
    """Lengths to which embeddings may be truncated; empty allows any."""
    uses_sep_token: bool = True
    """Whether a cross-encoder's pairs are tokenized as pairs. If not, the two texts are concatenated."""
    does_lower_case: bool = False
    """Whether texts are lower-cased before tokenization."""


class EngineInfo(msgspec.Struct, frozen=True):
    """The properties that the engine reports once, when it is ready."""

    model_type: str
    dtype: str
    device: str
    max_model_len: int
    """Most tokens of a sequence, prompt and output together."""
    vocab_size: int
    num_slots: int
    """Most sequences that run at once."""
    kv_cache_tokens: int
    """Number of tokens that fit into the KV cache."""
    kv_cache_bytes: int
    runner: str
    """`packed` (continuous batching in one forward pass) or `sequential` (the model's own cache)."""
    eos_token_ids: tuple[int, ...]
    spans: list[tuple[str, int, int]]
    """The engine's start-up phases: name, begin and end in monotonic nanoseconds."""
    embeds_width: int | None = None
    """Width of prompt embeds; None if prompts must be token ids."""
    has_prefix_cache: bool = False
    """Whether prompts remain in the KV cache for others that begin alike."""
    pooling: PoolingInfo | None = None
    """The capabilities of a pooling model; None if the model generates text."""
    max_loras: int | None = None
    """Most LoRA adapters in one batch; None without `--enable-lora`."""
    quantized: str | None = None
    """Which layers were quantized at the start, and their size; None if none was."""
    pid: int | None = None
    """Process id of the engine."""
