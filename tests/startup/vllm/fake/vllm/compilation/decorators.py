"""Loads compiled models; the fake vLLM compiles nothing."""

import logging
from typing import Any

logger = logging.getLogger(__name__)


def load_or_compile(path: str, vllm_config: Any) -> None:
    import torch

    try:
        loaded = torch.compiler.load_compiled_function(path)
        loaded._artifacts.compiled_fn.finalize_loading(vllm_config)
        logger.info("Directly load AOT compilation from path %s", path)
    except OSError as err:
        logger.warning("Compiling model again due to a load failure from %s, reason: %s", path, err)
        logger.info("saved AOT compiled function to %s", path)
