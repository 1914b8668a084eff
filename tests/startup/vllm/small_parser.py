"""A parser like vLLM's with few flags, one for each way in which vLLM converts a value."""

import argparse
import json
import re
from collections.abc import Callable
from enum import Enum, IntEnum
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, field_validator, model_validator
from pydantic.dataclasses import dataclass


class Mode(IntEnum):
    """Choices with names and numbers."""

    NONE = 0
    FULL_GRAPH = 2


class Backend(Enum):
    """Choices with names only."""

    FLASH_ATTN = "a.b.FlashAttention"
    SDPA = (2, 0)


@dataclass(config=ConfigDict(extra="forbid"))
class PassConfig:
    fuse: bool = True
    sizes: list[int | Literal["auto"]] | None = None


@dataclass(config=ConfigDict(extra="forbid"))
class SmallConfig:
    """One of vLLM's configurations."""

    mode: int | None = Field(default=None, ge=0, le=3)
    backend: Literal["inductor", "eager"] | None = None
    level: Literal["a", "b"] = "a"
    max_num_seqs: int = Field(default=128, ge=1)
    changed: int = Field(default=1, ge=1)
    named: Mode | None = None
    numbered: Mode = Mode.NONE
    attention: Backend | None = None
    kernel: Literal["auto", "deep_gemm"] = "auto"
    names: list[str] = Field(default_factory=list)
    passes: PassConfig = Field(default_factory=PassConfig)
    made: PassConfig = Field(default_factory=PassConfig)
    per_kind: dict[str, float] = Field(default_factory=dict)
    path: Path | None = None
    own: str = Field(default="", init=False)

    @field_validator("named", "attention", mode="before")
    @classmethod
    def _find(cls, value: Any) -> Any:
        if isinstance(value, str):
            return None if value == "auto" else (Mode.__members__ | Backend.__members__)[value.upper()]
        return value

    @field_validator("kernel", mode="before")
    @classmethod
    def _fold(cls, value: Any) -> Any:
        return value.lower().replace("-", "_") if isinstance(value, str) else value

    @field_validator("names", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return value.split(",") if isinstance(value, str) else value

    @field_validator("made", mode="before")
    @classmethod
    def _make(cls, value: Any) -> Any:
        return PassConfig(**value) if isinstance(value, dict) else value

    @model_validator(mode="before")
    @classmethod
    def _keep(cls, value: Any) -> Any:
        return value

    @field_validator("mode", mode="wrap")
    @classmethod
    def _skip_none_validation(cls, value: Any, handler: Any) -> Any:
        return value if value is None else handler(value)

    @field_validator("changed", "level", mode="before")
    @classmethod
    def _change(cls, value: Any) -> Any:
        return value


@dataclass
class OtherConfig:
    """Another configuration with the same number as `SmallConfig`, but without its range."""

    max_num_seqs: int = 128


def human_readable_int(value: str) -> int:
    return int(value)


def human_readable_int_or_auto(value: str) -> int:
    return -1 if value == "auto" else int(value)


def union_dict_and_str(value: str) -> Any:
    return json.loads(value) if re.match(r"\s*{.*}\s*$", value) else value


def parse_dataclass(value: str, cls: Any = SmallConfig) -> Any:
    return TypeAdapter(cls).validate_json(value)


def parse_type(return_type: Callable[[str], Any]) -> Callable[[str], Any]:
    def _parse_type(val: str) -> Any:
        return return_type(val)

    return _parse_type


def optional_type(return_type: Callable[[str], Any]) -> Callable[[str], Any]:
    def _optional_type(val: str) -> Any:
        return None if val in ("", "None") else return_type(val)

    return _optional_type


class AdapterAction(argparse.Action):
    """An action that converts its values, like vLLM's own actions."""


class EnableDisableAction(argparse.BooleanOptionalAction):
    """Pairs `--enable-x` with `--disable-x`, like vLLM since 0.33. Help does not show `--no-enable-x`."""

    def __init__(self, option_strings: list[str], dest: str, **kwargs: Any) -> None:
        super().__init__(option_strings, dest, **kwargs)
        inverse = [option.replace("--enable-", "--disable-") for option in option_strings]
        self.option_strings = [*self.option_strings, *inverse]
        self.off = {option for option in self.option_strings if option not in option_strings}

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        setattr(namespace, self.dest, option_string not in self.off)


def build() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    add = parser.add_argument
    add("model_tag", nargs="?")
    for name in ("headless", "grpc"):
        add(f"--{name}", action="store_true")
    switches = (
        "enable-log-requests",
        "enable-log-outputs",
        "enable-sleep-mode",
        "enable-eplb",
        "enable-cumem-allocator",
        "enable-mamba-cache-stochastic-rounding",
        "enforce-eager",
        "enable-prefix-caching",
        "skip-tokenizer-init",
        "trust-remote-code",
        "enable-auto-tool-choice",
    )
    for name in switches:
        add(f"--{name}", action=argparse.BooleanOptionalAction)
    paired = add("--enable-lora", action=EnableDisableAction)
    paired.option_strings = ["--enable-lora", "--disable-lora"]
    texts = (
        "chat-template",
        "config",
        "config-format",
        "data-parallel-backend",
        "device-ids",
        "download-dir",
        "hf-config-path",
        "io-processor-plugin",
        "load-format",
        "log-config-file",
        "model-impl",
        "offload-backend",
        "reasoning-parser",
        "reasoning-parser-plugin",
        "ssl-ca-certs",
        "ssl-certfile",
        "ssl-keyfile",
        "tokenizer",
        "tokenizer-mode",
        "tool-parser-plugin",
        "uds",
        "master-addr",
        "kda-prefill-backend",
    )
    for name in texts:
        add(f"--{name}")
    for name in ("host", "attention-backend", "distributed-executor-backend", "tool-call-parser", "model"):
        add(f"--{name}", type=optional_type(str))
    add("--quantization", "-q", type=optional_type(str))
    for name in ("ignore-patterns", "logits-processors", "served-model-name", "api-key"):
        add(f"--{name}", nargs="+", type=optional_type(str))
    add("--hf-token", nargs="?", const=True, type=optional_type(str))
    add("--lora-modules", nargs="+", action=AdapterAction)
    add("--middleware", action="append", default=[])
    add("--tensor-parallel-size", "-tp", type=int)
    add("--data-parallel-size", "-dp", type=int)
    numbers = (
        "port",
        "pipeline-parallel-size",
        "data-parallel-size-local",
        "max-num-seqs",
        "nnodes",
        "optimization-level",
        "prefill-context-parallel-size",
        "node-rank",
        "cpu-offload-gb",
        "api-server-count",
    )
    for name in numbers:
        add(f"--{name}", type=int)
    add("--gpu-memory-utilization", "--device-memory-utilization", type=float)
    add("--max-model-len", type=optional_type(human_readable_int_or_auto))
    add("--max-num-batched-tokens", type=optional_type(human_readable_int))
    add("--kv-cache-memory-bytes", type=optional_type(human_readable_int))
    add("--allowed-origins", type=json.loads)
    add("--default-chat-template-kwargs", type=parse_type(json.loads))
    add("--hf-overrides", type=union_dict_and_str)
    add("--compilation-config", "-cc", type=parse_dataclass)
    add("--kv-transfer-config", type=optional_type(json.loads))
    add("--speculative-config", "-sc", type=optional_type(json.loads))
    add("--dtype", choices=["auto", "float16", "half"])
    add("--uvicorn-log-level", choices=["critical", "error", "info"])
    add("--moe-backend", type=lambda s: s.lower().replace("-", "_"), choices=["auto", "deep_gemm"])
    add("--max-lora-rank", type=int, choices=[8, 16, 64])
    add("--kv-role", type=optional_type(str), choices=["producer", None])
    add("--mm-processor-device", choices=["auto", "cpu"])
    add("--shape", type=lambda text: text.split("x"), choices=[["1"]])
    return parser
