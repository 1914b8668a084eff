"""What the API process and the engine process say to each other, as MessagePack (msgspec tagged structs)."""

import msgspec

from server.types import EngineInfo, EngineOutput, EngineStats, SamplingParams


class Generate(msgspec.Struct, frozen=True, array_like=True, tag="generate"):
    """To the engine: a new request."""

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams


class Abort(msgspec.Struct, frozen=True, array_like=True, tag="abort"):
    """To the engine: forget these requests; they get no further output."""

    request_ids: list[str]


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


ToEngine = Generate | Abort
FromEngine = Ready | Failed | Step
