"""Fills a location of `--compile-cache`: starts a server, and stops it once the location has what it adds."""

import time
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

from base.json_depth import read_json
from envs import foreign
from envs.registry import env
from startup.arguments.errors import InputError
from startup.arguments.screening import secrets_as_variables, without_flags
from startup.compiled_models.location import Location, LocationError, open_location
from startup.errors import StartupError
from startup.settings.serve_arguments import join
from startup.storage.caches import OFF
from vllm_cli.bake.kernels import compile_kernels, parse_architectures
from vllm_cli.bake.start import ask, subject_of, wait_saved, why_no_start, without_addresses
from vllm_cli.client.server import ServerClient
from vllm_cli.errors import ConnectionFailedError
from vllm_cli.private_server import PrivateServer, start_private_server
from vllm_cli.terminal import Reporter

_STATUS: Final = "/status.json"
_ADDING: Final = "adding"


class FillResult(NamedTuple):
    """What a location has after `fill_location`."""

    archives: tuple[str, ...]
    num_bytes: int
    duration_s: float


def fill_location(
    given: Sequence[str], address: str, *, timeout_s: float, gpu_arch: str | None, reporter: Reporter
) -> FillResult:
    """Starts the server with empty caches, and stops it once the location has all that it could add.

    Without the GPU that vLLM needs, only compiles kernels for `gpu_arch`.

    Args:
        given: MODEL and flags, as after `serve`.
        address: the location.
        timeout_s: the longest time of the start and, again, of the adding, in seconds.
        gpu_arch: a list of compute capabilities (`parse_architectures`). None: no kernels without a GPU.
        reporter: shows the progress.

    Raises:
        InputError: the location cannot be used, or the command line is wrong.
        StartupError: the start has failed, or the location lacks something. The message has the reason.
    """
    begin_s = time.monotonic()
    location = _open(address)
    subject = subject_of(given)  # rejects arguments that `serve` rejects
    if subject.engine != "vllm":
        raise InputError("--compile-cache is for --engine vllm. The embedded engine compiles nothing.")
    architectures = parse_architectures(gpu_arch) if gpu_arch is not None else ()
    if (reason := why_no_start(subject)) is not None:
        if not architectures:
            raise StartupError(f"nothing can be added to {address}: {reason}. Kernels can: give --gpu-arch")
        reporter.note(f"{reason}: only kernels are compiled")
        archives = [name for each in compile_kernels(given, architectures, address) for name in each.archives]
        return _verified(location, {"state": "complete", "archives": archives}, begin_s)
    single = without_flags(without_addresses(given), {"--api-server-count"})  # several do not tell what they add
    parts, secrets = secrets_as_variables(single)
    with (
        TemporaryDirectory(prefix="vllm-cli-fill-") as folder,
        start_private_server(join(parts), _environment(Path(folder), address) | secrets) as server,
    ):
        server.wait_ready(timeout_s, reporter)
        reporter.note(f"{ask(server)} answers, adding to {address}")
        reported = _wait_added(server, timeout_s)
    return _verified(location, reported, begin_s)


def _open(address: str) -> Location:
    try:
        location = open_location(address)
        location.list()
    except LocationError as err:
        raise InputError(f"--compile-cache: {err}.") from err
    if (problem := location.write_problem()) is not None:
        raise InputError(f"--compile-cache: {address} cannot be written to: {problem}.")
    return location


def _environment(folder: Path, address: str) -> dict[str, str]:
    """Variables that make the start find no cache but the location, so that it adds all that it needs."""
    kernels = {} if foreign.text_of("TRITON_CACHE_DIR") else {"TRITON_HOME": str(folder)}
    return {
        env.VLLM_CACHE_ROOT.name: str(folder / "cache"),
        env.VCLI_BAKED.name: OFF,
        env.VCLI_COMPILE_CACHE.name: address,
        env.VCLI_STANDBY.name: "off",
        env.VCLI_PLAIN_VLLM.name: "",
        **kernels,
    }


def _wait_added(server: PrivateServer, timeout_s: float) -> Mapping[str, Any]:
    """Waits until the server has added everything, or has given up. Returns what it says about this."""
    reported: dict[str, Any] = {}

    def is_added() -> bool:
        reported.clear()
        reported.update(_read_sharing(server))
        return bool(reported["state"] != _ADDING)

    wait_saved(server, is_added, timeout_s)
    return reported


def _read_sharing(server: PrivateServer) -> Mapping[str, Any]:
    try:
        answer = ServerClient(server.address).request("GET", _STATUS)
        sharing = read_json(answer.content)["start"]["sharing"] if answer.status == 200 else None
    except (OSError, HTTPException, ConnectionFailedError, ValueError, LookupError) as err:
        raise StartupError(f"the server does not say what it adds ({err})\n{server.command.log_tail}") from err
    if sharing is None:
        raise StartupError(f"nothing was added, because vLLM starts without preloading\n{server.command.log_tail}")
    return dict(sharing)


def _verified(location: Location, reported: Mapping[str, Any], begin_s: float) -> FillResult:
    """Looks whether the location has the archives. Raises StartupError if it lacks one."""
    if reported["state"] != "complete":
        problems = "\n".join(f"  {problem}" for problem in reported["problems"]) or "  it was not finished in time"
        raise StartupError(f"{location.address} does not have everything:\n{problems}")
    sizes: dict[str, int] = {}
    try:
        for family in {name.partition("/")[0] for name in reported["archives"]}:
            sizes.update((archive.name, archive.size) for archive in location.list(family))
    except LocationError as err:
        raise StartupError(str(err)) from err
    if missing := sorted(set(reported["archives"]) - set(sizes)):
        raise StartupError(f"{location.address} lacks {', '.join(missing)}, which was added")
    archives = tuple(reported["archives"])
    num_bytes = sum(sizes[name] for name in archives)
    return FillResult(archives, num_bytes, time.monotonic() - begin_s)
