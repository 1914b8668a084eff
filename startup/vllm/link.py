"""A link named `vllm` to the console script behaves as vLLM's command: images and scripts need no edit.

`vllm serve` starts through the launcher; every other subcommand is the installed vLLM's own
(`startup.vllm.command_line.run_other_command`).
"""

import os
import sys


def is_called_as_vllm() -> bool:
    """Whether this program was started under the name `vllm`."""
    return os.path.basename(sys.argv[0]) == "vllm"  # noqa: PTH119 - pathlib would delay every start


def use_vllm_engine() -> None:
    """Makes vLLM the engine of `serve`; `--engine` and VCLI_ENGINE still take precedence."""
    os.environ.setdefault("VCLI_ENGINE", "vllm")
