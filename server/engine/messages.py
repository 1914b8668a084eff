"""What the API process and the engine process say to each other, as MessagePack (msgspec tagged structs)."""

import msgspec

from server.types import EngineInfo, EngineOutput, EngineStats, PoolingParams, PromptInputs, SamplingParams


class Generate(msgspec.Struct, frozen=True, array_like=True, tag="generate"):
    """To the engine: a new request."""

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    upload_id: int | None = None
    """Of what stands in the prompt beside token ids."""
    inputs: PromptInputs | None = None
    """The same, put in its place by the thread that receives; never sent."""


class Pool(msgspec.Struct, frozen=True, array_like=True, tag="pool"):
    """To the engine: a prompt whose hidden states are wanted, not what follows it."""

    request_id: str
    prompt_token_ids: list[int]
    token_type_ids: list[int] | None
    """Which text of a pair each token is of; None of a single text."""
    params: PoolingParams


class Abort(msgspec.Struct, frozen=True, array_like=True, tag="abort"):
    """To the engine: forget these requests; they get no further output."""

    request_ids: list[str]


class TensorLayout(msgspec.Struct, frozen=True, array_like=True):
    """One tensor of an upload."""

    name: str | None
    """Among the processor's outputs; None is the prompt's embeddings."""
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int


class Upload(msgspec.Struct, frozen=True, array_like=True, tag="upload"):
    """To the engine: tensors that a prompt holds; their bytes follow in pieces, one behind the other."""

    upload_id: int
    layout: list[TensorLayout]


class Piece(msgspec.Struct, frozen=True, array_like=True, tag="piece"):
    """To the engine: the upload's next bytes."""

    upload_id: int
    data: memoryview


class Forget(msgspec.Struct, frozen=True, array_like=True, tag="forget"):
    """To the engine: no further request will name this upload."""

    upload_id: int


class Ready(msgspec.Struct, frozen=True, array_like=True, tag="ready"):
    """From the engine, once: the model is loaded and requests are taken."""

    info: EngineInfo


class Failed(msgspec.Struct, frozen=True, array_like=True, tag="failed"):
    """From the engine, last: it cannot start or go on; the message is fit for a user."""

    message: str


class Step(msgspec.Struct, frozen=True, array_like=True, tag="step"):
    """From the engine after every step."""

    outputs: list[EngineOutput]
    stats: EngineStats


class Ping(msgspec.Struct, frozen=True, array_like=True, tag="ping"):
    """To the engine: answer when the loop comes by."""


class Pong(msgspec.Struct, frozen=True, array_like=True, tag="pong"):
    """From the engine: the answer to a ping."""


Request = Generate | Pool | Abort | Ping
ToEngine = Request | Upload | Piece | Forget
FromEngine = Ready | Failed | Step | Pong
