"""Values that travel between the renderer, the engine and the routes; standard library and msgspec only.

They are msgspec structs because the engine lives in a process of its own: what is declared here is
also what goes over the wire (MessagePack, see `server.engine.messages`).
"""

from typing import Literal

import msgspec

from server.pooler_config import PoolingTask

FinishReason = Literal["stop", "length", "abort", "error"]
"""Why a request ended: vLLM's words; `abort` and `error` never reach an OpenAI body as such."""


class GuidedDecoding(msgspec.Struct, frozen=True):
    """A grammar that the generated text must follow; compiled by llguidance in the engine process."""

    kind: Literal["json_object", "json_schema", "regex", "choice", "grammar"]
    spec: str = ""
    """The JSON schema, the regular expression, the JSON list of choices or the Lark grammar."""


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How one sequence is sampled. Text-level stops are not here: the engine never sees text.

    Names and meanings follow vLLM's `SamplingParams`; ranges are checked by the protocol layer
    before a request gets here.
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
    """With a seed, the sequence is drawn from a generator of its own and does not depend on its neighbours."""
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    """Token sequences that must not appear in the output."""
    allowed_token_ids: tuple[int, ...] = ()
    """If given, only these tokens may be sampled."""
    logprobs: int | None = None
    """Number of most likely tokens to report beside the sampled one; None reports nothing."""
    prompt_logprobs: int | None = None
    """The same for every prompt token but the first."""
    guided: GuidedDecoding | None = None
    cache_salt: str | None = None
    """With a salt the sequence shares nothing with any other: its prompt is neither looked up nor kept."""


class TensorData(msgspec.Struct, frozen=True, array_like=True):
    """A tensor as bytes: row-major, little endian."""

    dtype: str
    """torch's name without `torch.`, e.g. `bfloat16`."""
    shape: tuple[int, ...]
    data: memoryview
    """Of bytes; not copied on its way to the engine's socket, and nobody may change it any more. (msgspec decodes no
    union of bytes and memoryview.)"""


class PromptInputs(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, eq=False, weakref=True):
    """What stands in a prompt beside token ids; the choices of one prompt share one object, by which they are known."""

    embeds: TensorData | None = None
    """A row per prompt token in the place of its embedding, shape [num_prompt_tokens, width]."""
    mm: dict[str, TensorData] | None = None
    """The HF processor's outputs beside `input_ids`."""

    @property
    def num_bytes(self) -> int:
        """What all of it takes."""
        tensors = [*(() if self.embeds is None else (self.embeds,)), *(self.mm or {}).values()]
        return sum(len(tensor.data) for tensor in tensors)


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """Log-probabilities at one position, natural logarithm, of the model's raw distribution."""

    token_id: int
    """The token that was sampled (or that stands in the prompt)."""
    logprob: float
    rank: int
    """1 for the most likely token of the vocabulary."""
    top: list[tuple[int, float]]
    """The most likely tokens with their log-probabilities, best first."""


class LateInteraction(msgspec.Struct, frozen=True, array_like=True):
    """One half of a score by late interaction that the engine computes."""

    query_id: str
    """The query's request id, by which its documents find it."""
    role: Literal["query", "document"]
    """A query's token embeddings are kept until it is aborted; a document is answered with its score against them."""


class PoolingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is made of one prompt's hidden states; names and meanings follow vLLM's `PoolingParams`."""

    task: PoolingTask
    use_activation: bool | None = None
    """Whether embeddings are normalized, and logits become probabilities; None is the model's default."""
    dimensions: int | None = None
    """Cuts embeddings to this length."""
    late_interaction: LateInteraction | None = None
    """With `token_embed`: the embeddings stay in the engine, and scores leave it."""


class EngineOutput(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """What one engine step brought one request."""

    request_id: str
    token_ids: list[int] = []
    """New tokens, usually one. An end-of-sequence or stop token is included when it was sampled."""
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    """The `stop_token_ids` member or end-of-sequence token that ended the request (the last of `token_ids`)."""
    logprobs: list[TokenLogprob] | None = None
    """One entry per new token, if they were asked for."""
    prompt_logprobs: list[TokenLogprob | None] | None = None
    """One entry per prompt token (the first is None); sent once, with the first token."""
    num_cached_tokens: int = 0
    """Prompt tokens that were found in the prefix cache; set with the first token."""
    queue_s: float = 0.0
    """Seconds from the request's arrival in the engine until it ran; set with the first token."""
    prefill_s: float = 0.0
    """Seconds from there to the first token; set with it."""
    error: str | None = None
    """With `finish_reason == "error"`: what the client may be told."""
    data: TensorData | None = None
    """Of a pooled prompt: its embedding, its classes' logits or probabilities, its score; one row per token
    where the task's name begins with `token_`."""
    num_preemptions: int = 0
    """How often the sequence has had to go back to the queue so far."""
    is_request_fault: bool = False
    """With an error: it comes of what the request asks for."""


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
    """How often a running sequence had to go back to the queue since start-up."""


class PoolingInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a pooling model can do."""

    task: PoolingTask
    """What /pooling does if a request does not say, and what scores are made of."""
    supported_tasks: tuple[PoolingTask, ...]
    embedding_size: int
    """Length of an embedding that is not cut."""
    num_labels: int = 0
    """Classes of a classifier."""
    id2label: dict[int, str] = {}
    """Names of the classes."""
    is_matryoshka: bool = False
    """Whether embeddings may be cut."""
    matryoshka_dimensions: tuple[int, ...] = ()
    """Lengths to which they may be cut; empty for any."""
    uses_sep_token: bool = True
    """Whether a cross-encoder's pairs are tokenized as pairs; else the texts are put one behind the other."""
    does_lower_case: bool = False
    """Whether texts are tokenized in lower case."""


class EngineInfo(msgspec.Struct, frozen=True):
    """What the engine tells once, when it is ready."""

    model_type: str
    dtype: str
    device: str
    max_model_len: int
    """Most tokens of a sequence, prompt and output together."""
    vocab_size: int
    num_slots: int
    """Most sequences that run at once."""
    kv_cache_tokens: int
    """Tokens that the KV cache holds."""
    kv_cache_bytes: int
    runner: str
    """`packed` (continuous batching in one forward pass) or `sequential` (the model's own cache)."""
    eos_token_ids: tuple[int, ...]
    spans: list[tuple[str, int, int]]
    """The engine's start-up phases: name, begin and end in monotonic nanoseconds."""
    embeds_width: int | None = None
    """Width of the rows that may take the place of a prompt's tokens; None where prompts are token ids only."""
    pooling: PoolingInfo | None = None
    """Of a pooling model; None generates text."""
    pid: int | None = None
    """The engine's process."""
