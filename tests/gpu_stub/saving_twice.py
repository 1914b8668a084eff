"""A plugin of vLLM that also saves each compiled model in the process itself, at the moment of the fork."""

from collections.abc import Callable
from typing import Any, Final

from startup.vllm.patches import saved_models

OWN: Final = ".own"
"""The end of the name of this process's file."""


def install() -> None:
    begin = saved_models._begin

    def begin_and_save(model: Any, save: Callable[[Any], None]) -> None:
        begin(model, save)
        path = model._aot_compilation_path
        model._aot_compilation_path = f"{path}{OWN}"
        save(model)
        model._aot_compilation_path = path

    if begin.__module__ == saved_models.__name__:  # vLLM may load its plugins twice
        saved_models._begin = begin_and_save
