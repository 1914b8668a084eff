"""Messages between the API process and the engine process: MessagePack in frames over a stream socket.

A frame is four bytes of length (little endian), then a msgspec tagged struct.
"""

import io
import socket
import struct
from array import array
from collections.abc import Iterator

import msgspec

from server.types import (
    EngineInfo,
    EngineOutput,
    EngineStats,
    PoolingParams,
    PromptInputs,
    ReasoningRules,
    SamplingParams,
    TensorData,
)


class Prompt(msgspec.Struct, frozen=True, array_like=True):
    """One prompt of a request, and the parameters that it does not share with the others."""

    token_ids: list[int]
    max_tokens: int
    reasoning: ReasoningRules | None = None
    inputs: PromptInputs | None = None

    def detach(self) -> tuple["Prompt", list[memoryview]]:
        """What is sent in the message, and what follows it: as it stands in memory, and not copied."""
        parts = [memoryview(array("q", self.token_ids)).cast("B")]

        def take(tensor: TensorData) -> TensorData:
            parts.append(tensor.data)
            return msgspec.structs.replace(tensor, data=memoryview(b""))

        inputs = None if self.inputs is None else self.inputs.replace_tensors(take)
        return msgspec.structs.replace(self, token_ids=[], inputs=inputs), parts

    def attach(self, parts: Iterator[memoryview]) -> "Prompt":
        """The prompt as it was before `detach`."""
        token_ids = next(parts).cast("q").tolist()
        inputs = self.inputs
        if inputs is not None:
            inputs = inputs.replace_tensors(lambda tensor: msgspec.structs.replace(tensor, data=next(parts)))
        return msgspec.structs.replace(self, token_ids=token_ids, inputs=inputs)


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
    """Sizes in bytes of what follows the message."""


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


class Done(msgspec.Struct, frozen=True, array_like=True, tag="done"):
    """From the engine: the result of a command."""

    command_id: int
    is_done: bool = True
    error: str | None = None
    """`LoadAdapter`: why the adapter was not loaded."""
    is_missing: bool = False
    """`LoadAdapter`: whether the error is that there is no adapter at the path."""


class Ping(msgspec.Struct, frozen=True, array_like=True, tag="ping"):
    """To the engine: answered by a `Pong` from its loop."""


class Pong(msgspec.Struct, frozen=True, array_like=True, tag="pong"):
    """From the engine: the answer to a ping."""


Command = LoadAdapter | UnloadAdapter
"""Each is answered by a `Done` with its `command_id`."""
ToEngine = Generate | Pool | Abort | Command | Ping
FromEngine = Ready | Failed | Step | Done | Pong


_LENGTH = struct.Struct("<I")


class ChannelClosedError(ConnectionError):
    """The other process closed the connection or exited."""


def frame(payload: bytes) -> bytes:
    """A message with its header."""
    return _LENGTH.pack(len(payload)) + payload


def read_length(header: bytes | memoryview) -> int:
    """The message's length from the first `HEADER_BYTES` of its frame."""
    return int(_LENGTH.unpack(header)[0])


HEADER_BYTES = _LENGTH.size


class BlockingChannel:
    """The engine's end of the connection. One thread may send while another receives."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._connection.setblocking(True)
        self._reader = io.BufferedReader(connection.makefile("rb", buffering=0), 1 << 16)

    def send(self, payload: bytes) -> None:
        """Sends one message; raises ChannelClosedError once the API process has closed the connection."""
        try:
            self._connection.sendall(frame(payload))
        except OSError as err:
            raise ChannelClosedError("the API process closed the connection") from err

    def receive(self) -> memoryview:
        """The next message; raises ChannelClosedError at the end of the stream."""
        return self.receive_bytes(read_length(self.receive_bytes(HEADER_BYTES)))

    def receive_bytes(self, num_bytes: int) -> memoryview:
        """What follows a message, in memory of its own: aligned for tensors, and writable, or torch warns."""
        data = memoryview(bytearray(num_bytes))
        try:
            is_complete = self._reader.readinto(data) == num_bytes
        except OSError as err:
            raise ChannelClosedError("the connection to the API process broke") from err
        if not is_complete:
            raise ChannelClosedError("the API process closed the connection")
        return data

    def close(self) -> None:
        """Closes both directions, which also unblocks a receiving thread."""
        self._connection.close()
