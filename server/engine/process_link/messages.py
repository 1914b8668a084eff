"""Messages between the API process and the engine process: MessagePack in frames over a stream socket.

A frame is four bytes of length (little endian), then a msgspec tagged struct.
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
    """One prompt of a request, and the parameters that it does not share with the others."""

    token_ids: list[int]
    max_tokens: int
    reasoning: ReasoningRules | None = None
    inputs: PromptInputs | None = None


class Generate(msgspec.Struct, frozen=True, array_like=True, tag="generate"):
    """To the engine: a new request. Token ids and tensors follow the message, and are empty in it.

    Its sequences are named `{request_id}-0` and so on; those of the first prompt come first.
    """

    request_id: str
    prompts: list[Prompt]
    params: SamplingParams
    num_choices: int = 1
    """Sequences per prompt."""
    part_sizes: list[int] = []
    """Sizes in bytes of the parts that follow the message."""


class Pool(msgspec.Struct, frozen=True, array_like=True, tag="pool"):
    """To the engine: a prompt to be pooled."""

    request_id: str
    prompt_token_ids: list[int]
    token_type_ids: list[int] | None
    """The text of a pair that each token belongs to; None for a single text."""
    params: PoolingParams


class Abort(msgspec.Struct, frozen=True, array_like=True, tag="abort"):
    """To the engine: end these requests without further output."""

    request_ids: list[str]


class Ready(msgspec.Struct, frozen=True, array_like=True, tag="ready"):
    """From the engine, once: the model is loaded and requests are accepted."""

    info: EngineInfo


class Failed(msgspec.Struct, frozen=True, array_like=True, tag="failed"):
    """From the engine, as its last message: it cannot start or continue. `message` is for users."""

    message: str


class Step(msgspec.Struct, frozen=True, array_like=True, tag="step"):
    """From the engine after every step."""

    outputs: list[EngineOutput]
    stats: EngineStats


class LoadAdapter(msgspec.Struct, frozen=True, array_like=True, tag="load_adapter"):
    """To the engine: read a LoRA adapter."""

    command_id: int
    adapter_id: int
    name: str
    path: str
    """The absolute path of a PEFT folder."""


class UnloadAdapter(msgspec.Struct, frozen=True, array_like=True, tag="unload_adapter"):
    """To the engine: accept no further requests for the adapter, and free it after the last one."""

    command_id: int
    adapter_id: int


class ResetPrefixCache(msgspec.Struct, frozen=True, array_like=True, tag="reset_prefix_cache"):
    """To the engine: forget all prefixes, unless requests are running that must not be interrupted."""

    command_id: int
    interrupts: bool
    """Whether running requests are computed again."""


class Done(msgspec.Struct, frozen=True, array_like=True, tag="done"):
    """From the engine: the result of a command."""

    command_id: int
    is_done: bool = True
    """`ResetPrefixCache`: whether it was reset."""
    error: str | None = None
    """`LoadAdapter`: why the adapter was not loaded."""
    is_missing: bool = False
    """`LoadAdapter`: whether the error is that there is no adapter at the path."""


class Ping(msgspec.Struct, frozen=True, array_like=True, tag="ping"):
    """To the engine: answered by a `Pong` from its loop."""


class Pong(msgspec.Struct, frozen=True, array_like=True, tag="pong"):
    """From the engine: the answer to a ping."""


Command = LoadAdapter | UnloadAdapter | ResetPrefixCache
"""Each is answered by a `Done` with its `command_id`."""
ToEngine = Generate | Pool | Abort | Command | Ping
FromEngine = Ready | Failed | Step | Done | Pong

LENGTH = struct.Struct("<I")
"""The length of a message, which precedes it."""
