"""The kinds of template processes, and which of them a command line needs.

Imported by the front process, whose start waits for it: it imports only `startup.serve_words`.
"""

from startup.serve_words import ServeWords, is_eager, is_for_information

EMBEDDED = "embedded"
VLLM_EAGER = "vllm-eager"
VLLM_COMPILED = "vllm-compiled"
KINDS = (EMBEDDED, VLLM_EAGER, VLLM_COMPILED)


def kind_of(words: list[str]) -> str | None:
    """The kind of template for the words after `serve`; None if a start does without slow imports."""
    if is_for_information(words):
        return None
    given = ServeWords(words)
    kind = kind_for(given.engine(), given)
    # With vLLM it imports nothing; what vLLM's libraries write when a process ends is not part of its output.
    return None if kind != EMBEDDED and "--preflight-only" in given.own else kind


def kind_for(engine: str, given: ServeWords) -> str:
    """The kind of template for an engine; only the compiler must not be imported needlessly."""
    if engine == "embedded":
        return EMBEDDED
    return VLLM_EAGER if is_eager(given.engine_words) else VLLM_COMPILED
