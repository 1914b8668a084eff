"""Reads adapter_config.json of a PEFT folder and rejects what the engine cannot compute."""

import math
import re
from pathlib import Path
from typing import Any, Final

import msgspec

from server.lora_config import LoraConfig

CONFIG_FILE: Final = "adapter_config.json"
_PLAIN_INITS: Final = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
"""Methods that only choose the first weights of the training; others change the base model's weights."""


class AdapterError(Exception):
    """The adapter cannot be used; the message is for the user."""


class AdapterMissingError(AdapterError):
    """There is no adapter at the path."""


class AdapterConfig(msgspec.Struct, frozen=True):
    """The fields of a PEFT folder's adapter_config.json that matter for inference."""

    r: int
    lora_alpha: float
    target_modules: list[str] | str
    peft_type: str = "LORA"
    bias: str = "none"
    use_rslora: bool = False
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None
    modules_to_save: list[str] | None = None
    use_dora: bool = False
    lora_bias: bool = False
    init_lora_weights: Any = True
    alora_invocation_tokens: Any = None
    layer_replication: Any = None
    use_bdlora: Any = None
    use_qalora: bool = False

    @classmethod
    def read(cls, folder: Path, limits: LoraConfig) -> "AdapterConfig":
        """Raises AdapterError if the file is missing or broken, or exceeds plain LoRA within `limits`."""
        try:
            config = msgspec.json.decode((folder / CONFIG_FILE).read_bytes(), type=cls)
        except (FileNotFoundError, NotADirectoryError) as err:
            raise AdapterMissingError(f"there is no {CONFIG_FILE} in {folder}") from err
        except OSError as err:
            raise AdapterError(f"{folder / CONFIG_FILE} cannot be read: {err.strerror}") from err
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as err:
            raise AdapterError(f"{folder / CONFIG_FILE} is not an adapter's configuration: {err}") from err
        faults = [*config._unsupported_features(), *config._wrong_ranks(limits.max_lora_rank)]
        if faults:
            raise AdapterError(f"{folder / CONFIG_FILE}: {'; '.join(faults)}")
        return config

    def rank_of(self, module: str) -> int:
        """The rank of a module's update."""
        rank = _find_by_pattern(self.rank_pattern, module)
        return self.r if rank is None else int(rank)

    def scaling_of(self, module: str) -> float:
        """The factor of a module's update."""
        alpha = _find_by_pattern(self.alpha_pattern, module)
        rank = self.rank_of(module)
        return (self.lora_alpha if alpha is None else alpha) / (math.sqrt(rank) if self.use_rslora else rank)

    def _wrong_ranks(self, max_rank: int) -> list[str]:
        ranks = [self.r, *(self.rank_pattern or {}).values()]
        if min(ranks) < 1:
            return [f"the LoRA rank {min(ranks)} is not positive"]
        if max(ranks) > max_rank:
            return [f"LoRA rank {max(ranks)} is greater than max_lora_rank {max_rank} (--max-lora-rank)"]
        return []

    def _unsupported_features(self) -> list[str]:
        init = self.init_lora_weights
        changes_base = isinstance(init, str) and init.lower() not in _PLAIN_INITS
        features = {
            f"peft_type is {self.peft_type!r}, only LORA is supported": self.peft_type != "LORA",
            "vllm-cli does not yet support DoRA (use_dora)": self.use_dora,
            f"bias is {self.bias!r}, only 'none' is supported": self.bias != "none",
            "a bias of the update is not supported (lora_bias)": self.lora_bias,
            f"Unsupported modules_to_save: {self.modules_to_save}": self.modules_to_save,
            f"init_lora_weights={init!r} changes the base model's weights; convert the adapter with PEFT's "
            "path_initial_model_for_weight_conversion": changes_base,
            "Activated LoRA is not supported (alora_invocation_tokens)": self.alora_invocation_tokens,
            "layer_replication is not supported": self.layer_replication,
            "block-diagonal LoRA is not supported (use_bdlora)": self.use_bdlora,
            "QALoRA is not supported (use_qalora)": self.use_qalora,
        }
        return [message for message, is_used in features.items() if is_used]


def _find_by_pattern(patterns: dict[str, Any] | None, module: str) -> float | None:
    """The first pattern that matches the end of the module's name from a dot on, as in PEFT."""
    for pattern, value in (patterns or {}).items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return float(value)
        except re.error as err:
            raise AdapterError(f"{CONFIG_FILE}: {pattern!r} is not a regular expression: {err}") from err
    return None
