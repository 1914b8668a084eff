"""Runs all checks, so that all faults of a start are reported at once, before heavy imports.

This module imports only the standard library and msgspec, except for requests to the hub (`asks_hub`).
"""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

from base.machine.memory import MemoryState, read_memory
from base.wording import list_some
from envs.foreign import expand_home
from envs.registry import env, undeclared_names, unknown_variables, validate_all
from server.terms.sampling_values import FILE
from server.text.model_files import find_mistral_file, foreign_problem
from startup.files.model.checkpoint_folder import ADAPTER_CONFIG, tokenizer_problem, vocabulary_fault
from startup.files.model.file_faults import read_json_object
from startup.files.model.file_plan import FilePlan, plan_files
from startup.files.model.hub_settings import describe_variables, hub_endpoints, is_offline, unusable_certificates
from startup.files.model.model_place import FolderListing, ModelPlace
from startup.files.model.model_request import ModelRequest
from startup.session.preflight.checkpoint import (
    CONTENT_CHECKS,
    Checkpoint,
    read_checkpoint,
    sampling_findings,
    small_file_findings,
    unknown_type_problem,
)
from startup.session.preflight.memory_fit import ModelShape, check_cache_size, check_memory, read_model_shape
from startup.session.preflight.model_places import (
    check_hub,
    check_model_place,
    choice_findings,
    file_choice,
    link_findings,
    unchecked_places,
)
from startup.session.preflight.network import check_address, check_api_keys, check_tls
from startup.session.preflight.report import CheckGroup, Finding, PreflightReport, error, info, run_checks, warning
from startup.session.preflight.resources import (
    SHM,
    check_cache_folder,
    check_disk,
    check_libraries,
    check_num_files,
    check_shared_memory,
)
from startup.settings.config import StartupConfig


@dataclass(frozen=True, kw_only=True)
class PreflightOptions:
    """Facts that the checks need not find out themselves. By default, the checks examine the machine."""

    is_listening: bool = False
    """Whether the launcher listens already. If it does, the address is not checked."""
    file_plan: FilePlan | None = None
    """The plan of the model's files. If it is None, the checks make the plan themselves."""
    memory: MemoryState | None = None
    """The memory of the machine. If it is None, the checks read it from the kernel."""
    shm: Path = SHM
    asks_hub: bool = False
    """Whether the checks send requests to the hub. If not, only the download itself reports its faults."""
    flags_problem: str | None = None
    """Why vLLM's flags could not be recorded for this check. None if they are, or if vLLM checks them."""


def run_preflight(config: StartupConfig, *, options: PreflightOptions | None = None) -> PreflightReport:
    """Reports all faults at once. Never raises an exception for a fault."""
    return run_checks(_Preflight(config, options or PreflightOptions()).checks())


def download_checks(
    places: Callable[[], Iterable[ModelPlace]], token: str | None, options: PreflightOptions
) -> Iterator[CheckGroup]:
    """Yields checks that find a folder that is not writable, or a hub that refuses the files."""
    yield "disk", lambda: chain.from_iterable(map(check_disk, places()))
    yield "environment", lambda: _hub_findings(has_download=bool(list(places())))
    if options.asks_hub:
        yield "hub", lambda: chain.from_iterable(check_hub(place, token) for place in places())


def _hub_findings(*, has_download: bool) -> Iterator[Finding]:
    """Checks variables of the hub's client, which cannot even be imported if the port is no number.

    Certificates cause warnings, because the client's version decides which variables it reads.
    """
    from urllib.parse import urlsplit  # noqa: PLC0415 - slow to import

    for endpoint in hub_endpoints():
        try:
            urlsplit(endpoint).port  # noqa: B018 - raises an error
        except ValueError as err:
            yield error("environment", f"{describe_variables([env.HF_ENDPOINT.name])}: {err}. Correct it, or unset it")
    for name, reason in unusable_certificates() if has_download else ():
        yield warning("environment", f"{describe_variables([name])} {reason}. Correct it, or unset it")


def _check_environment() -> Iterator[Finding]:
    """Reports variables with wrong values, misspelt names, and variables that only vLLM reads."""
    for err in validate_all():
        yield error("environment", str(err))
    for unknown in unknown_variables():
        yield warning("environment", f"{unknown}: unset it or correct its name")
    if ignored := undeclared_names("VLLM_"):
        listed = list_some(ignored)
        yield info("environment", f"the embedded engine does not read {listed}: set for vLLM, no effect here")


def is_importable(module: str) -> bool:
    """Whether the module can be found. Imports the packages that contain it, but not the module itself."""
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False


class _Preflight:
    """One run of the preflight. Keeps the facts that several checks need."""

    def __init__(self, config: StartupConfig, options: PreflightOptions) -> None:
        self._config = config
        self._options = options

    def checks(self) -> Iterator[CheckGroup]:
        server = self._config.server
        yield "environment", _check_environment
        yield "libraries", check_libraries
        yield "model", lambda: chain.from_iterable(map(check_model_place, self._plan.main_places))
        yield "files", lambda: unchecked_places(self._plan.places)
        yield "links", lambda: link_findings(self._plan.places)
        if not self._options.is_listening:
            yield "address", lambda: check_address(server.network)
        yield "tls", lambda: check_tls(server.tls)
        yield "api_keys", lambda: check_api_keys(server.network)
        yield "checkpoint", self._check_checkpoint
        yield "tokenizer", self._check_tokenizer
        yield "generation_config", self._check_generation_config
        yield "memory", self._check_memory
        yield "limits", check_num_files
        yield "shm", lambda: check_shared_memory(self._options.shm)
        yield "cache", check_cache_folder
        yield from download_checks(self._downloads, self._config.model.hf_token, self._options)

    @cached_property
    def _plan(self) -> FilePlan:
        return self._options.file_plan or plan_files(ModelRequest.of_start(self._config))

    @cached_property
    def _checkpoint(self) -> Checkpoint | None:
        model = self._plan.model
        return read_checkpoint(model.folder) if model.folder and not any(model.lost_files.values()) else None

    @cached_property
    def _shape(self) -> ModelShape | None:
        if self._checkpoint is None or not self._plan.model.is_local:
            return None
        return read_model_shape(self._checkpoint, self._config.engine)

    def _downloads(self) -> list[ModelPlace]:
        return [] if is_offline() else [place for place in self._plan.main_places if place.kind == "hub"]

    def _check_checkpoint(self) -> Iterator[Finding]:
        model = self._plan.model
        if self._checkpoint is None:
            return
        config = {**self._checkpoint.config, **self._config.engine.hf_overrides}
        if not self._config.engine.trust_remote_code and (problem := unknown_type_problem(config)):
            yield error("config", f"{model.folder}/config.json: {problem}")
        yield from choice_findings(model, has_template=self._config.renderer.chat_template is not None)
        if model.is_local:
            yield from self._checkpoint.findings
        else:  # a download replaces missing files, but not a broken one
            yield from (finding for finding in self._checkpoint.findings if finding.check in CONTENT_CHECKS)
        if model in self._downloads() and (lost := FolderListing(folder := self._checkpoint.folder).lost):
            yield info("download", f"{folder} lacks the content of {list_some(lost)}: they are downloaded now")

    def _check_tokenizer(self) -> Iterator[Finding]:
        place, folder = self._plan.tokenizer, self._plan.tokenizer.folder
        if folder is None or not place.is_local or any(place.lost_files.values()):
            return
        if folder == self._plan.model.folder and (folder / ADAPTER_CONFIG).exists():
            return  # an adapter has no tokenizer of its own
        if problem := tokenizer_problem(folder) or foreign_problem(folder, self._config.renderer.tokenizer_mode):
            yield error("tokenizer", problem)
        elif fault := vocabulary_fault(folder):
            yield (error if fault.is_fatal else warning)("tokenizer", fault.text)
        if (mistral := find_mistral_file(folder)) is not None:
            yield from file_choice(folder, "the tokenizer is", ("tokenizer.json", mistral.name))
        for path in dict.fromkeys((self._plan.model.folder, folder)):
            yield from small_file_findings(path) if path else ()

    def _check_generation_config(self) -> Iterator[Finding]:
        generation, folder = self._config.server.generation, self._plan.model.folder
        source = generation.generation_config
        file = Path(expand_home(source), FILE)
        if source not in ("auto", "vllm") and (problem := read_json_object(file).problem):
            yield error("generation_config", f"--generation-config {source}: {problem}")
        if source in ("auto", "vllm"):
            file = Path(folder or "", FILE) if source == "auto" and folder else Path(os.devnull)
        yield from sampling_findings(file, generation.override_generation_config)

    def _check_memory(self) -> Iterator[Finding]:
        memory = self._options.memory or read_memory()
        yield from check_cache_size(self._config.engine, memory)
        if self._shape is not None:
            yield from check_memory(self._shape, self._config.engine, memory)
