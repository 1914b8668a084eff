"""Builds the settings of a server without naming the sections. Also what an engine says of its model."""

from dataclasses import fields, is_dataclass
from typing import Any, Final

from server.terms.server_config import ServerConfig
from server.terms.types import EngineInfo

INFO: Final = EngineInfo(
    model_type="llama",
    dtype="bfloat16",
    device="cpu",
    max_model_len=512,
    vocab_size=49152,
    num_slots=8,
    kv_cache_tokens=4096,
    kv_cache_bytes=1 << 20,
    runner="packed",
    spans=[],
)


def server_config(**given: Any) -> ServerConfig:
    """A configuration in which each setting is in the section that has a field with its name."""
    given = {"served_model_names": ("m",), **given}
    for section in fields(ServerConfig):
        if is_dataclass(section.type) and section.name not in given:
            names = [field.name for field in fields(section.type) if field.name in given]
            given[section.name] = section.type(**{name: given.pop(name) for name in names})  # type: ignore[operator]
    return ServerConfig(**given)
