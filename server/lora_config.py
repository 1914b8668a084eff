"""Settings of LoRA adapters; standard library only."""

import json
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal

from base.errors import ConfigError
from base.setting import Group, check_ranges, setting

LoraDtype = Literal["auto", "float16", "bfloat16"]

_MAX_RANKS: Final = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM allows."""
_MODULE_FIELDS: Final = {"name", "path", "base_model_name", "is_3d_lora_weight"}


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """How many adapters the engine holds, and of which size."""

    help_group: ClassVar[Group] = "LoRA adapters"

    enable_lora: bool = setting(
        False, "--enable-lora", "Serve LoRA adapters: a request selects one by its name in `model`."
    )
    max_loras: int = setting(1, "--max-loras", "Most different adapters in one batch.", minimum=1)
    max_lora_rank: int = setting(
        16, "--max-lora-rank", "Highest rank of an adapter: 1, 8, 16, 32, 64, 128, 256, 320 or 512."
    )
    max_cpu_loras: int | None = setting(
        None,
        "--max-cpu-loras",
        "Most adapters in memory: a further one is refused. Without a limit if not given.",
        minimum=1,
    )
    lora_dtype: LoraDtype = setting("auto", "--lora-dtype", "Type of adapters' weights; auto is the model's.")

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.max_lora_rank not in _MAX_RANKS:
            raise ConfigError("--max-lora-rank", self.max_lora_rank, f"one of {', '.join(map(str, _MAX_RANKS))}")
        if self.max_cpu_loras is not None and self.max_cpu_loras < self.max_loras:
            raise ConfigError("--max-cpu-loras", self.max_cpu_loras, f"--max-loras ({self.max_loras}) or more")


@dataclass(frozen=True, kw_only=True)
class LoraModule:
    """An adapter that is loaded at the start."""

    name: str
    path: str
    base_model_name: str | None = None
    """Its `parent` in /v1/models; the first served name if None or not served."""

    @classmethod
    def parse(cls, text: str) -> "LoraModule":
        """Reads `NAME=PATH`, or the JSON object that vLLM takes; raises ConfigError."""
        if "=" in text and "," not in text:
            name, _, path = text.partition("=")
            fields: Any = {"name": name, "path": path}
        else:
            try:
                fields = json.loads(text)
            except json.JSONDecodeError:
                fields = None
        if (
            not isinstance(fields, dict)
            or not {"name", "path"} <= fields.keys() <= _MODULE_FIELDS
            or not all(isinstance(fields[key], str) and fields[key] for key in ("name", "path"))
            or not isinstance(fields.get("base_model_name"), str | None)
        ):
            expected = 'NAME=PATH or {"name": "…", "path": "…", "base_model_name": "…"}'
            raise ConfigError("--lora-modules", text, expected)
        return cls(name=fields["name"], path=fields["path"], base_model_name=fields.get("base_model_name"))
