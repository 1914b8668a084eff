"""Flags of vLLM that switch torch's compiler off. The client of a standby imports this: no other imports."""

TYPE_CHECKING = False  # the import of `typing` would delay the start
if TYPE_CHECKING:
    from collections.abc import Sequence

_EAGER = ("--enforce-eager", "-O0", "-O.mode=0")


def is_eager(words: "Sequence[str]") -> bool:
    """Whether vLLM's words switch its compiler off."""
    return any(word.replace("_", "-") in _EAGER for word in words)
