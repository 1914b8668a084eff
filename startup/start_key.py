"""The subject of a start of the embedded engine, and the key that comparable starts share."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from envs.home import expand_home
from startup.config import StartupConfig
from startup.timeline.subject import StartSubject


def subject_of(config: StartupConfig) -> StartSubject:
    """The subject of a start of the embedded engine."""
    return StartSubject(
        model=config.server.served_model_names[0],
        start_method=config.start_method,
        packages=("torch", "transformers", "tokenizers", "vllm-cli-server"),
        key=lambda versions: start_key(config, versions),
        report_file=config.startup_report,
        trace_file=config.startup_trace,
    )


def start_key(config: StartupConfig, versions: Mapping[str, str]) -> str:
    """A hash of model, versions, start method, engine and renderer settings, which determine the duration."""
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
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]
