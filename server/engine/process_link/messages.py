"""Messages between API process and engine process. They are MessagePack, in frames on a stream socket.

A frame has the message's length in four bytes (little endian), then a tagged struct of msgspec.
"""

import struct

import msgspec

from server.terms.types import (
    EngineInfo,
    EngineOutput,
    EngineStats,
    PoolingParams,
    PromptInputs,
    ReasoningRules,
    SamplingParams,
)


class Prompt(msgspec.Struct, frozen=True, array_like=True):
    """One prompt of a request, with the parameters that differ between the request's prompts."""

    token_ids: list[int]
    max_tokens: int
    reasoning: ReasoningRules | None = None
    inputs: PromptInputs | None = None


class Generate(msgspec.Struct, frozen=True, array_like=True, tag="generate"):
    """To the engine: a new request. Token ids and tensors are empty in the message, and follow after it.

    The sequences are named `{request_id}-0` and so on. The sequences of the first prompt come first.
    """

    request_id: str
    prompts: list[Prompt]
    params: SamplingParams
    num_choices: int = 1
    """The number of sequences for each prompt."""
    part_sizes: list[int] = []
    """The bytes of each part that follows the message."""


class Pool(msgspec.Struct, frozen=True, array_like=True, tag="pool"):
    """To the engine: a prompt to be pooled."""

    request_id: str
    prompt_token_ids: list[int]
    token_type_ids: list[int] | None
    """For each token of a pair of texts, the number of its text. None for a single text."""
    params: PoolingParams


class Abort(msgspec.Struct, frozen=True, array_like=True, tag="abort"):
    """To the engine: end these requests without further output."""

    request_ids: list[str]


class Ready(msgspec.Struct, frozen=True, array_like=True, tag="ready"):
    """From the engine, once: the model is loaded and requests are accepted."""

    info: EngineInfo


class Failed(msgspec.Struct, frozen=True, array_like=True, tag="failed"):
    """From the engine, as its last message: the engine cannot start or continue. `message` is for users."""

    message: str


class Step(msgspec.Struct, frozen=True, array_like=True, tag="step"):
    """From the engine, after every step: the step's outputs, and the engine's figures."""

    outputs: list[EngineOutput]
    stats: EngineStats


class ResetPrefixCache(msgspec.Struct, frozen=True, array_like=True, tag="reset_prefix_cache"):
    """To the engine: empty the prefix cache. Without `interrupts`, running requests prevent this."""

    interrupts: bool
    """Whether running requests may be interrupted and computed again."""


class PrefixCacheReset(msgspec.Struct, frozen=True, array_like=True, tag="prefix_cache_reset"):
    """From the engine: the answers to `ResetPrefixCache`, in the order of these messages."""

    is_done: bool


class Ping(msgspec.Struct, frozen=True, array_like=True, tag="ping"):
    """To the engine. Its loop answers with a `Pong`."""


class Pong(msgspec.Struct, frozen=True, array_like=True, tag="pong"):
    """From the engine: the answer to a ping."""


ToEngine = Generate | Pool | Abort | ResetPrefixCache | Ping
FromEngine = Ready | Failed | Step | PrefixCacheReset | Pong

LENGTH = struct.Struct("<I")
"""The format of a message's length, which precedes the message."""
