"""Compiles a model, which takes a short time."""

import time
from types import SimpleNamespace
from typing import Any


class TorchCompileWithNoGuardsWrapper:
    vllm_config: Any

    def aot_compile(self) -> Any:
        time.sleep(0.05)
        return SimpleNamespace(content=b"compiled")
