"""As vLLM's build writes it."""

__version__ = version = "0.32.0+cpu"
