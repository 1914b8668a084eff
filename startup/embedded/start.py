"""Starts the embedded engine and its HTTP server as a tuple of parts.

First, this process opens the port, on which the responder process answers. Then it starts the forkserver,
which imports torch and transformers on its main thread. Meanwhile this process checks the settings
(preflight), finds the model, requests the engine process, imports the HTTP server and loads the tokenizer.
Only main threads import heavy modules.

In a warm start, this process was forked from a template process, and has all of these modules already. The
forkserver then forks at once, so the engine loads the weights during all further parts.
"""

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from base.errors import EngineError, ServerError
from base.exit_codes import ENGINE_DIED, START_FAILED
from envs import environment
from envs.foreign import expand_home
from startup import start_origin
from startup.embedded.parts import (
    EmbeddedStart,
    Engine,
    Files,
    Learning,
    Listening,
    Preflight,
    Processes,
    Progress,
    Server,
    Tokenizer,
    WarmEngine,
)
from startup.files.model.hub_settings import use_first_endpoint
from startup.logs.setup import configure_logging
from startup.processes.new_program import fork_dormant
from startup.reports.timeline.history import StartSubject
from startup.reports.timeline.timeline import PhaseTimeline
from startup.session.parts import Part, Parts
from startup.session.session import StartSession
from startup.session.task_room import check_task_room
from startup.settings.config import StartupConfig
from startup.storage.bytecode import keep_bytecode
from startup.storage.caches import digest, use_baked_bytecode

logger = logging.getLogger(__name__)

PARTS: Final[tuple[type[Part[EmbeddedStart]], ...]] = (
    Listening,  # forks the responder, so it comes before all threads
    Progress,
    Files,  # downloads beside all parts below
    Processes,  # the forkserver imports beside all parts below
    WarmEngine,
    Preflight,  # before the download's end, and while the engine waits for the forkserver's imports
    Engine,
    Tokenizer,  # beside the engine, which loads the weights
    Server,
    Learning,
)
"""The parts in the order of `begin`."""


def start_embedded(config: StartupConfig) -> int:
    """Starts the server and runs it until it stops. Returns the exit code.

    Raises:
        StartupError: the server cannot start. No process, socket or file of this start is left.
    """
    check_task_room("embedded")
    use_first_endpoint()
    timeline = PhaseTimeline.from_process_start()
    use_baked_bytecode()
    torch = find_spec("torch")
    notice = keep_bytecode(Path(torch.origin).parent) if torch and torch.origin else None
    if start_origin.warm is None:
        with suppress(OSError):  # then the forkserver is a new program, which takes a third of a second more
            fork_dormant(lambda: None, environment.snapshot())
    network = config.server.network
    session = StartSession(
        _subject_of(config), timeline, is_private=network.api_key_everywhere, has_page=network.web_page
    )
    configure_logging(config.logs, role="api", phase=session.phase)
    if notice is not None:
        logger.warning("%s", notice)
    with session:
        start = EmbeddedStart(config, session)
        start.parts = Parts(start, PARTS, session.stack)
        try:
            start.parts.prepare()
            exit_code = start.server.run()
        except ServerError as err:
            start.raise_crash(err, START_FAILED)
        if exit_code == ENGINE_DIED:
            start.raise_crash(EngineError(start.lifecycle.reason or "the engine is gone"), exit_code)
        return exit_code


def _subject_of(config: StartupConfig) -> StartSubject:
    """The facts about this start that its history and its report need."""
    return StartSubject(
        model=config.server.served_model_names[0],
        start_method=config.start_method,
        packages=("torch", "transformers", "tokenizers", "vllm-cli-server"),
        history_key=lambda versions: history_key(config, versions),
        report_file=config.startup_report,
    )


def history_key(config: StartupConfig, versions: Mapping[str, str]) -> str:
    """A hash of model, versions, start method and settings, on which the duration of a start depends.

    Starts of vLLM use the kind of start (`StartKind`) instead.
    """
    model = asdict(config.model)
    for name in ("model", "tokenizer"):
        folder = Path(expand_home(model[name])) if model[name] else None
        if folder and folder.exists():
            model[name] = str(folder.resolve())
    facts = {
        "model": {name: value for name, value in model.items() if name != "hf_token"},
        "engine": asdict(config.engine),
        "renderer_workers": config.renderer.num_workers,
        "start_method": config.start_method,
        "versions": dict(versions),
    }
    return digest(facts)
