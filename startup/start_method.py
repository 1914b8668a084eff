"""Chooses how the engine process is started; nobody else does."""

import logging
import multiprocessing
import sys
from contextlib import suppress
from multiprocessing.context import BaseContext

from startup.errors import StartupError

logger = logging.getLogger(__name__)


def use_start_method(wanted: str) -> BaseContext:
    """Sets the process-wide start method and returns the context that is really in force.

    A method that somebody has set before stays (multiprocessing allows it only once); this is
    reported, and the engine is still started the way the user wants.

    Raises:
        StartupError: `fork` is wanted, but CUDA is in use here already, and a forked process could not use it.
    """
    if wanted == "fork" and _uses_cuda():
        raise StartupError(
            "the start method 'fork' cannot be used once CUDA is initialised in this process: "
            "set VLLM_WORKER_MULTIPROC_METHOD to forkserver or spawn"
        )
    with suppress(RuntimeError):
        multiprocessing.set_start_method(wanted)
    in_force = multiprocessing.get_start_method()
    if in_force != wanted:
        logger.warning(
            "the multiprocessing start method was already %r; the engine is started with %r all the same",
            in_force,
            wanted,
        )
    return multiprocessing.get_context(wanted)


def _uses_cuda() -> bool:
    """Asks torch only if it is loaded: what has not been imported has not been initialised."""
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_initialized())
