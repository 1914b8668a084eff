"""`python -m vllm_cli`: the console script, safe from modules of the same names in the working folder."""

import os
import sys

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120


def _forget_working_folder() -> None:
    """`python -m` puts it first on the path, where a user's `server.py` would hide ours."""
    if not sys.flags.safe_path and sys.path[0] == os.getcwd() != _ROOT:  # noqa: PTH109
        del sys.path[0]


if __name__ == "__main__":
    _forget_working_folder()
    from vllm_cli.main import main

    sys.exit(main())
