"""Makes the configuration of engine and workers from arguments. May change this process's state."""

import argparse
import json
import os
import resource
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

from vllm import platforms
from vllm.config.model import ModelConfig
from vllm.config.parallel import ParallelConfig
from vllm.crash import crash_at
from vllm.tracing import instrument


@dataclass
class EngineConfig:
    args: argparse.Namespace
    shutdown_timeout: int
    architecture: str | None
    model_config: ModelConfig
    parallel_config: ParallelConfig = field(default_factory=ParallelConfig)
    device_config: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(device_type="cpu"))


@instrument(span_name="Create config")
def create_engine_config(args: argparse.Namespace) -> EngineConfig:
    crash_at("config")
    platforms.prepare_environment()
    if args.change_state:
        _change_state(Path(args.change_state))
    model_config = ModelConfig(args.enable_sleep_mode, args.model or "fake")
    return EngineConfig(args, args.shutdown_timeout, _architecture(args.model), model_config)


def _architecture(model: str | None) -> str | None:
    if model is None or not (path := Path(model, "config.json")).is_file():
        return None
    return json.loads(path.read_bytes())["architectures"][0]


def _change_state(stdout: Path) -> None:
    """Changes all state that a child inherits through `exec` but not from a forkserver."""
    os.dup2(os.open(stdout, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
    os.umask(0o027)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 777), hard))
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["FAKE_VLLM_CHANGED"] = "since the start"
    os.environ.pop("FAKE_VLLM_REMOVED", None)
