"""What is baked of vLLM without running a model: where the GPU that vLLM is built for is not there."""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from envs import foreign
from startup.engine.torch_environment import has_gpu
from startup.errors import StartupError
from startup.serve_words import ServeWords
from startup.vllm.command_line import CommandLine
from startup.vllm.installed import require_vllm
from startup.vllm.launch.shared_imports import learn_imports
from vllm_cli.bake.subject import Subject
from vllm_cli.errors import InputError
from vllm_cli.flags.engine_choice import choose_engine

_OTHER_PLATFORMS: Final = ("cpu", "rocm", "xpu", "tpu", "gaudi", "neuron")
"""Local parts of vLLM's version; builds for CUDA have none, or `cu` and a number."""
_LOG_LINES: Final = 20


def why_no_start(subject: Subject) -> str | None:
    """Why the server cannot start on this machine; None if it can be tried."""
    if subject.engine != "vllm":
        return None
    vllm = require_vllm()
    local = vllm.version.partition("+")[2]
    if vllm.is_for_cpu or local.startswith(_OTHER_PLATFORMS) or has_gpu():
        return None
    return f"vLLM {vllm.version} is built for CUDA, and there is no GPU here"


def bake_imports(words: Sequence[str], environment: Mapping[str, str]) -> None:
    """Raises StartupError with vLLM's own error if it cannot be imported."""
    if choose_engine(words) != "vllm":
        raise InputError("--no-start is for --engine vllm; the embedded engine also runs without a GPU.")
    line = CommandLine.of(ServeWords(words).engine_words)
    with TemporaryDirectory(prefix="vllm-cli-bake-") as folder:
        try:
            learn_imports(
                require_vllm(),
                line.words,
                line.model_folder,
                folder=Path(folder),
                environment={**foreign.snapshot(), **environment},
            )
        except subprocess.CalledProcessError as err:
            lines = "\n".join(f"  {line}" for line in err.stderr.splitlines()[-_LOG_LINES:])
            raise StartupError(f"vLLM cannot be imported\n{lines}") from err
