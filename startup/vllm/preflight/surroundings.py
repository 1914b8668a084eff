"""Checks what a start needs beside model and devices: packages, compiler, memory, caches, variables."""

import shutil
import sysconfig
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from base.machine.files import write_problem
from base.wording import format_bytes
from envs import foreign
from envs.home import expand_home
from envs.redaction import is_secret_name
from envs.suggestion import did_you_mean
from startup.preflight.report import Finding, error, warning
from startup.preflight.resources import SHM, check_num_files, check_shared_memory, free_bytes, nearest_existing
from startup.serve_words import is_eager
from startup.vllm.facts.vllm_facts import VariableFact, VllmFacts
from startup.vllm.preflight.arguments import CheckedStart
from startup.vllm.preflight.devices import built_for

_PACKAGES: Final = (
    ("--load-format", "runai_streamer", "runai_model_streamer", "runai-model-streamer"),
    ("--load-format", "runai_streamer_sharded", "runai_model_streamer", "runai-model-streamer"),
    ("--load-format", "tensorizer", "tensorizer", "tensorizer"),
    ("--load-format", "fastsafetensors", "fastsafetensors", "fastsafetensors"),
    ("--distributed-executor-backend", "ray", "ray", "ray"),
    ("--data-parallel-backend", "ray", "ray", "ray"),
)
"""Values of flags, the module that vLLM imports for them, and how it is installed."""
_CACHES: Final = {"TRITON_CACHE_DIR": "~/.triton", "TORCHINDUCTOR_CACHE_DIR": ""}
"""Folders that libraries of a GPU's vLLM write to; without a default only if the variable is set."""
_SHM_PER_RANK: Final = 1 << 30
_PREFIX: Final = "VLLM_"
_SERVICE: Final = ("_SERVICE_HOST", "_SERVICE_PORT", "_PORT_", "_SERVICE_PORT_")
"""Parts of names that Kubernetes sets for a service called vllm, or vllm-something."""
_PROXIES: Final = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy")


def surroundings_findings(start: CheckedStart, words: tuple[str, ...]) -> Iterator[Finding]:
    """Errors for missing packages; the rest depends on more than is known here."""
    yield from _check_packages(start)
    yield from _check_compiler(start, words)
    yield from _check_shm(start)
    yield from _check_caches(start)
    for finding in check_num_files():  # vLLM raises the number itself, as far as it may
        yield finding._replace(severity="warning")


def _check_packages(start: CheckedStart) -> Iterator[Finding]:
    for flag, value, module, package in _PACKAGES:
        if start.value(flag) == value and not start.facts.plugins and find_spec(module) is None:
            yield error("package", f"{flag} {value} needs the package {package}: pip install {package}")


def _check_compiler(start: CheckedStart, words: tuple[str, ...]) -> Iterator[Finding]:
    """torch.compile needs a C++ compiler on a CPU; Triton, a C compiler and Python's headers on a GPU."""
    device = built_for(start)
    if device == "cpu" and not is_eager(words) and not start.has("--enforce-eager"):
        if not any(map(shutil.which, ("g++", "clang++", "c++"))) and not foreign.text_of("CXX"):
            yield warning(
                "compiler", "there is no C++ compiler, which torch.compile needs: install g++, or give --enforce-eager"
            )
    elif device == "cuda" and not start.has("--enforce-eager"):
        if not any(map(shutil.which, ("gcc", "clang", "cc"))) and not foreign.text_of("CC"):
            yield warning("compiler", "there is no C compiler, which Triton needs: install gcc")
        elif not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
            yield warning("compiler", "Python.h is missing, which Triton compiles with: install python3-dev")


def _check_shm(start: CheckedStart) -> Iterator[Finding]:
    """Ranks exchange data in /dev/shm."""
    for finding in check_shared_memory():
        yield finding._replace(severity="warning")
    ranks = start.number("--tensor-parallel-size", 1) * start.number("--pipeline-parallel-size", 1)
    if ranks > 1 and SHM.is_dir() and (free := free_bytes(SHM)) < ranks * _SHM_PER_RANK and free >= 16 << 20:
        yield warning(
            "shm",
            f"{SHM} has {format_bytes(free)} free, {ranks} ranks may need {format_bytes(ranks * _SHM_PER_RANK)}: give "
            "the container --ipc=host or a larger --shm-size",
        )


def _check_caches(start: CheckedStart) -> Iterator[Finding]:
    """Folders below a home that a random user of a container cannot write to."""
    if built_for(start) != "cuda":
        return
    for name, default in _CACHES.items():
        if given := foreign.text_of(name) or default:
            folder = nearest_existing(Path(expand_home(given)))
            if problem := write_problem(str(folder)):
                yield warning("cache", f"{folder} cannot be written to ({problem}): set {name} to another folder")


def variable_findings(facts: VllmFacts) -> Iterator[Finding]:
    """Values that vLLM cannot parse, and names that it does not know."""
    if not facts.variables:
        return
    variables = foreign.snapshot()
    for fact in facts.variables:
        if fact.name in variables and (problem := value_problem(fact, variables[fact.name])):
            report = error if facts.has_rule("variables are all parsed") else warning
            yield report("environment", problem)
    known = {fact.name for fact in facts.variables}
    for name in sorted(variables):
        if name.startswith(_PREFIX) and name not in known and not _is_of_service(name):
            yield warning("environment", f"vLLM does not read {name}{did_you_mean(name, known)}: unset it")
    for name in _PROXIES:
        if variables.get(name) and not urlsplit(variables[name]).hostname:
            yield warning("environment", f"{name} is no address such as http://proxy:3128")


def value_problem(fact: VariableFact, text: str) -> str | None:
    """Why vLLM cannot read the value; None if it can, or if that is not known."""
    shown = "" if is_secret_name(fact.name) else f", got {text!r}"
    if fact.kind in ("int", "float"):
        try:
            (int if fact.kind == "int" else float)(text)
        except ValueError:
            return (
                f"{fact.name} must be a {'whole ' if fact.kind == 'int' else ''}number{shown}{_cause(fact.name, text)}"
            )
    elif fact.kind == "choice" and (text.lower() if fact.is_case_free else text) not in fact.choices:
        return f"{fact.name} must be one of {', '.join(fact.choices)}{shown}: correct it or unset it"
    return None


def _cause(name: str, text: str) -> str:
    if "://" in text:
        service = name.removesuffix("_PORT").lower().replace("_", "-")
        return (
            f": Kubernetes sets it for a service called {service}; rename the service, or give the pod "
            "enableServiceLinks: false"
        )
    return ": correct it or unset it"


def _is_of_service(name: str) -> bool:
    """Whether Kubernetes has set it for a service whose name begins with `vllm`; vLLM ignores it."""
    return any(part in name for part in _SERVICE) or name.endswith("_PORT")
