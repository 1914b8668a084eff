"""The version of this program."""

from importlib.metadata import PackageNotFoundError, version


def program_version() -> str:
    """The version of the installed package. `0+unknown` in a checkout that is not installed."""
    try:
        return version("vllm-cli-server")
    except PackageNotFoundError:
        return "0+unknown"
