"""The kinds of template processes, and which of them a command line needs.

Imported by the client, whose start waits for it: no imports beyond those of the interpreter's own start.
"""

import sys

from envs import foreign
from startup.eager_flags import is_eager

EMBEDDED = "embedded"
VLLM_EAGER = "vllm-eager"
VLLM_COMPILED = "vllm-compiled"
KINDS = (EMBEDDED, VLLM_EAGER, VLLM_COMPILED)

_HELP = ("-h", "--help", "-v", "--version")
_PREFLIGHT = "--preflight-only"
"""With vLLM it imports nothing; what vLLM's libraries write when a process ends is not part of its output."""
_ENGINES = ("embedded", "vllm")


def kind_of(words: list[str]) -> str | None:
    """The kind of template for the words after `serve`; None if a start does without slow imports."""
    if any(word.partition("=")[0] in _HELP for word in words):
        return None
    if find_engine(words) == "embedded":
        return EMBEDDED
    if _PREFLIGHT in [word.replace("_", "-") for word in words]:
        return None
    return VLLM_EAGER if is_eager(words) else VLLM_COMPILED  # only the compiler must not be imported needlessly


def find_engine(words: list[str]) -> str:
    """`embedded` or `vllm`; any other value of --engine or VCLI_ENGINE counts as `auto`."""
    wanted = option(words, "--engine") or foreign.text_of("VCLI_ENGINE")
    if wanted in _ENGINES:
        return wanted
    return "vllm" if "--renderer-inline" not in words and is_vllm_installed() else "embedded"


def is_vllm_installed() -> bool:
    """Checks only whether the package exists."""
    finders = (finder.find_spec("vllm", None) for finder in sys.meta_path if hasattr(finder, "find_spec"))
    return any(spec is not None for spec in finders)


def option(words: list[str], name: str) -> str | None:
    """The last value of an option, `--name VALUE` or `--name=VALUE`; None if it is not given."""
    value = None
    for index, word in enumerate(words):
        if word == "--":
            break
        flag, is_attached, attached = word.partition("=")
        if flag.replace("_", "-") == name:
            value = attached if is_attached else next(iter(words[index + 1 : index + 2]), None)
    return value
