"""Makes the copies of a tokenizer before vLLM asks for them: half of the API server's time in a warm start.

vLLM's renderer copies its cached tokenizer and makes a pool of two more copies. Here vLLM's own function
makes the pool in advance; the renderer's copy, and no other, is the prepared one.
"""

import copy
import sys
from typing import Any, Final

from startup.hooks.of_vllm import MAKE_POOL, RENDERER

_NUM_COPIES: Final = 2
"""vLLM's default: one per renderer thread and one more."""
_COPY: Final = "__copy__"


class PreparedPool:
    """The prepared copy of one tokenizer, whose class is vLLM's own for this object."""

    def __init__(self, tokenizer: Any) -> None:
        self._class = type(tokenizer)
        make_pool = MAKE_POOL.get(sys.modules[MAKE_POOL.module])
        pooled = make_pool(copy.copy(tokenizer), _NUM_COPIES)
        if self._class.__module__ == MAKE_POOL.module and not hasattr(self._class, _COPY):
            setattr(self._class, _COPY, self._copier(tokenizer, pooled))

    def drop(self) -> None:
        """From now on, the tokenizer is copied when it is asked for."""
        if _COPY in vars(self._class):
            delattr(self._class, _COPY)

    def _copier(self, tokenizer: Any, pooled: Any) -> Any:
        def copy_for_renderer(original: Any) -> Any:
            caller = sys._getframe(2).f_globals.get("__name__")  # frame 1 is `copy.copy`
            if original is tokenizer and caller == RENDERER:
                self.drop()
                return pooled
            return copy._reconstruct(original, None, *original.__reduce_ex__(4))  # type: ignore[attr-defined]

        return copy_for_renderer
