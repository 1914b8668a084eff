"""A general plugin of vLLM that replaces names in vLLM's modules, before other modules import these names.

With this folder on PYTHONPATH, vLLM finds it as an installed package. The new functions do the same as the
old ones. `get_rope` also logs `MARK`, so a log shows whether the model was built with it.
"""

import logging
from functools import wraps
from typing import Any

MARK = "the plugin's get_rope was called"


def register() -> None:
    """The plugin's entry point. vLLM may call it several times in a process."""
    from vllm.model_executor.layers import layernorm, rotary_embedding

    if layernorm.RMSNorm.__module__ == __name__:
        return
    original = rotary_embedding.get_rope

    @wraps(original)
    def get_rope(*arguments: Any, **options: Any) -> Any:
        logging.getLogger("vllm.plugin_of_figures").info(MARK)
        return original(*arguments, **options)

    rotary_embedding.get_rope = get_rope
    layernorm.RMSNorm = type("RMSNorm", (layernorm.RMSNorm,), {"__module__": __name__})
