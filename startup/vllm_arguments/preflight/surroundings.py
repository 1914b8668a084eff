"""Checks the variables, packages, compilers, shared memory and cache folders that a start needs."""

import logging
import os
import shutil
import sysconfig
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from logging.config import BaseConfigurator
from os.path import isfile
from pathlib import Path
from typing import Final

from base.machine.files import nearest_existing, write_problem
from base.wording import format_bytes
from envs import foreign
from envs.foreign import expand_home
from envs.registry import env
from envs.variable import EnvError
from startup.files.model.file_faults import JsonFile, read_json_object
from startup.session.preflight.report import Finding, error, warning
from startup.session.preflight.resources import (
    SHM,
    check_libraries,
    check_num_files,
    check_shared_memory,
)
from startup.settings.flag import Flag
from startup.storage.temp_folder import MAX_BYTES
from startup.vllm_arguments.preflight.arguments import FlagValueError, GivenStart, parse_value
from startup.vllm_arguments.vllm_record import VllmRecord

_PACKAGES: Final = (
    ("--load-format", "runai_streamer", "runai_model_streamer", "runai-model-streamer"),
    ("--load-format", "runai_streamer_sharded", "runai_model_streamer", "runai-model-streamer"),
    ("--load-format", "tensorizer", "tensorizer", "tensorizer"),
    ("--load-format", "fastsafetensors", "fastsafetensors", "fastsafetensors"),
    ("--distributed-executor-backend", "ray", "ray", "ray"),
    ("--data-parallel-backend", "ray", "ray", "ray"),
)
"""A flag, its value, the module that vLLM imports for the value, and the package with this module."""
_CACHES: Final = ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")
"""Variables for folders to which vLLM's libraries for GPUs write."""
_OF_TRITON: Final = "~/.triton"
"""The default folder of Triton. A start needs it only if it cannot write to VLLM_CACHE_ROOT."""
_PORT: Final = "VLLM_PORT"
_LEVEL: Final = "VLLM_LOGGING_LEVEL"
_STREAM: Final = "VLLM_LOGGING_STREAM"
_LOG_FILE: Final = "VLLM_LOGGING_CONFIG_PATH"
_HAS_LOG: Final = "VLLM_CONFIGURE_LOGGING"
_LOG_FLAGS: Final = ("--log-level", "--logging-config", "--log-config-file")
"""If one of these flags is given, vLLM since 0.32 may ignore the variables of its log."""
_FOLDER_OF_SOCKETS: Final = "VLLM_RPC_BASE_PATH"
_LAYERS: Final = Flag(("VLLM_PP_LAYER_PARTITION",), "int", "+")
"""Numbers that vLLM converts when it builds the model."""
_SHM_PER_RANK: Final = 1 << 30
_SHM_OF_ONE_RANK: Final = {"cpu": 160 << 20}
"""The queue to the worker. On a GPU, a single rank runs in the engine's process."""


def surroundings_findings(start: GivenStart) -> Iterator[Finding]:
    """Reports missing packages and invalid variables as errors, and most other faults as warnings."""
    yield from _check_packages(start)
    yield from _check_variables(start)
    for finding in check_libraries():  # not every vLLM for GPUs compiles kernels for the processor
        is_error = finding.check == "environment" or start.vllm.device == "cpu"
        yield finding if is_error else finding._replace(severity="warning")
    yield from _check_compiler(start)
    yield from _check_shm(start)
    yield from _check_caches(start)
    for finding in check_num_files():  # vLLM raises the number itself, as far as it may
        yield finding._replace(severity="warning")


def _check_packages(start: GivenStart) -> Iterator[Finding]:
    for flag, value, module, package in _PACKAGES:
        if start.value(flag) == value and not start.record.plugins and find_spec(module) is None:
            yield error("package", f"{flag} {value} needs the package {package}: pip install {package}")


def _check_variables(start: GivenStart) -> Iterator[Finding]:
    """Checks the environment variables of vLLM and of the hub's client."""
    if "://" in (port := foreign.text_of(_PORT)):
        yield error(
            "port_variable",
            f"{_PORT}={port} is no port for vLLM's processes, but what Kubernetes sets for a Service named vllm. Set "
            "`enableServiceLinks: false` in the pod, or rename the Service",
        )
    for problem in _log_problems():
        yield (warning if any(map(start.line.last, _LOG_FLAGS)) else error)("environment", problem)
    for variable in (env.HF_HUB_ETAG_TIMEOUT, env.HF_HUB_DOWNLOAD_TIMEOUT):
        try:
            variable.get()
        except EnvError as err:
            yield error("environment", f"{err}: correct it or unset it")
    folder = foreign.text_of(_FOLDER_OF_SOCKETS)
    if len(os.fsencode(folder)) > MAX_BYTES:  # `ensure_temp_folder` takes care of TMPDIR
        text = f"{_FOLDER_OF_SOCKETS}={folder} is too long for a socket in it: set it to at most {MAX_BYTES} bytes"
        yield error("environment", text)
    for name, problem in _rejected_variables(start.record):
        is_certain = start.is_known and name not in start.record.set_by_vllm
        yield (error if is_certain else warning)("environment", f"{problem}: correct it or unset it")


def _rejected_variables(record: VllmRecord) -> Iterator[tuple[str, str]]:
    """The variables with a value that vLLM rejects, and why. An empty value is not an unset one."""
    for flag in (*record.variables, _LAYERS):
        if foreign.is_set(flag.name):
            text = foreign.text_of(flag.name)
            values = [part.strip() for part in text.split(",")] if flag.nargs != 1 else [text]
            try:
                for value in filter(None, values) if flag.nargs == "*" else values:
                    parse_value(flag, value)
            except FlagValueError as err:
                yield flag.name, str(err)


def _log_problems() -> Iterator[str]:
    """Yields faults of the variables of vLLM's log. If they name a file, level and stream are not used."""
    file, level, has_log = foreign.text_of(_LOG_FILE), foreign.text_of(_LEVEL).upper(), True
    with suppress(ValueError):  # which vLLM raises, too
        has_log = bool(int(foreign.text_of(_HAS_LOG)))
    if file:
        settings = read_json_object(Path(file)) if isfile(file) else JsonFile({}, f"{file} is no file")  # noqa: PTH113 - takes any text
        if settings.problem or not has_log:
            yield f"{_LOG_FILE}: {settings.problem or f'{_HAS_LOG} is 0'}: correct it or unset it"
        elif settings.content and settings.content.get("version") != 1:
            yield f'{_LOG_FILE}: {file} lacks "version": 1'
    elif has_log:
        if foreign.is_set(_LEVEL) and level not in logging.getLevelNamesMapping():
            yield f"{_LEVEL}={level} is no level of logs: set it to INFO or DEBUG"
        try:
            BaseConfigurator({}).convert(foreign.text_of(_STREAM))
        except Exception as err:  # noqa: BLE001 - imports the module that the value names, as vLLM does
            yield f"{_STREAM}={foreign.text_of(_STREAM)} is no stream: set it to ext://sys.stdout ({err})"


def _check_compiler(start: GivenStart) -> Iterator[Finding]:
    """Checks compilers. torch.compile on a CPU needs a C++ compiler. Triton on a GPU needs C and Python.h."""
    device = start.vllm.device
    if device == "cpu" and not start.line.is_eager:
        if not any(map(shutil.which, ("g++", "clang++", "c++"))) and not foreign.text_of("CXX"):
            yield warning(
                "compiler", "there is no C++ compiler, which torch.compile needs: install g++, or give --enforce-eager"
            )
    elif device == "cuda" and not start.has("--enforce-eager"):
        if not any(map(shutil.which, ("gcc", "clang", "cc"))) and not foreign.text_of("CC"):
            yield warning("compiler", "there is no C compiler, which Triton needs: install gcc")
        elif not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
            yield warning("compiler", "Python.h is missing, which Triton compiles with: install python3-dev")


def _check_shm(start: GivenStart) -> Iterator[Finding]:
    """Checks /dev/shm, through which the processes of the model's parts exchange data."""
    for finding in check_shared_memory():
        yield finding._replace(severity="warning")
    ranks = start.number("--tensor-parallel-size", 1) * start.number("--pipeline-parallel-size", 1)
    needed = ranks * _SHM_PER_RANK if ranks > 1 else _SHM_OF_ONE_RANK.get(start.vllm.device, 0)
    if SHM.is_dir() and 16 << 20 <= (free := shutil.disk_usage(SHM).free) < needed:
        yield warning(
            "shm",
            f"{SHM} has {format_bytes(free)} free, this start may need {format_bytes(needed)}: give the container "
            "--ipc=host or a larger --shm-size",
        )


def _check_caches(start: GivenStart) -> Iterator[Finding]:
    """Checks that cache folders can be written to. A container's random user may lack the permission."""
    if start.vllm.device != "cuda":
        return
    folders = {name: foreign.text_of(name) for name in _CACHES}
    if write_problem(str(nearest_existing(env.VLLM_CACHE_ROOT.get()))) is not None:
        folders[_CACHES[0]] = folders[_CACHES[0]] or _OF_TRITON
    for name, given in folders.items():
        folder = nearest_existing(Path(expand_home(given)))
        if given and (problem := write_problem(str(folder))):
            yield warning("cache", f"{folder} cannot be written to ({problem}): set {name} to another folder")
