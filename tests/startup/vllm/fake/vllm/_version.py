"""The file that vLLM's build writes."""

__version__ = version = "0.32.0+cpu"
