"""vLLM's module that loads plugins. The fake vLLM has none."""


def load_general_plugins() -> None:
    """Does nothing."""
