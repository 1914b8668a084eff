"""What the launcher says, beside vLLM's own log and without touching how that is set up."""

import logging
import sys

from envs.registry import env
from startup.logs import TextFormatter


def log_as(role: str) -> None:
    """Sends what `startup` logs to standard error; the root logger and vLLM's stay as they are."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(TextFormatter(role))
    ours = logging.getLogger("startup")
    ours.handlers[:] = [handler]
    ours.propagate = False
    ours.setLevel(env.VLLM_LOGGING_LEVEL.get())
