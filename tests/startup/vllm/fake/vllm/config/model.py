"""The settings of the model."""

from dataclasses import dataclass


@dataclass
class ModelConfig:
    enable_sleep_mode: bool = False
    model: str = ""
