"""The code of dataclasses' methods, kept in import files: `dataclasses` compiles it from text in each start.

That is a tenth of the imports; vLLM's API server has 800 dataclasses with 3,000 methods.
"""

import builtins
import dataclasses
from collections.abc import Iterable, Mapping
from types import CodeType
from typing import Any, Final

_missed: Final[dict[str, None]] = {}


def use_code(known: Mapping[str, CodeType]) -> None:
    """From now on, until `end_use`, methods with a known text are not compiled; the others are noted."""

    def execute(text: Any, *namespaces: Any) -> None:
        code = known.get(text) if isinstance(text, str) else text
        if code is None:
            _missed[text] = None
            code = compile_text(text)
        builtins.exec(code, *namespaces)

    vars(dataclasses)["exec"] = execute


def end_use() -> list[str]:
    """From now on, methods are compiled; returns the texts that were not known."""
    vars(dataclasses).pop("exec", None)
    missed = [*_missed]
    _missed.clear()
    return missed


def compile_text(text: str) -> CodeType:
    """The code as `exec` makes it from this text in a module without `__future__`.

    Raises:
        SyntaxError, ValueError: it is not Python.
    """
    return compile(text, "<string>", "exec", dont_inherit=True)


def compile_texts(texts: Iterable[str], known: Mapping[str, CodeType]) -> dict[str, CodeType]:
    """The known code and that of further texts; without those that are not Python."""
    codes = dict(known)
    for text in texts:
        if text not in codes:
            try:
                codes[text] = compile_text(text)
            except (SyntaxError, ValueError):
                continue
    return codes
