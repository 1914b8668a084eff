"""The fixtures of the command line's tests."""

from tests.vllm_cli.conftest import invoke, no_variable_is_set

__all__ = ["invoke", "no_variable_is_set"]
