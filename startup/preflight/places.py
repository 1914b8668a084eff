"""Checks that model and tokenizer exist or may be downloaded."""

from collections.abc import Iterator
from pathlib import Path

from envs.home import expand_home
from envs.suggestion import did_you_mean
from startup.config import ModelConfig
from startup.model.hub import is_offline
from startup.model.hub_cache import hub_cache_dir
from startup.preflight.model_place import ModelPlace, PlaceKind
from startup.preflight.report import Finding, error


def check_place(place: ModelPlace, config: ModelConfig) -> Iterator[Finding]:
    """Reports a name that is neither a folder nor on the hub, and a download that offline mode forbids."""
    option = "--tokenizer" if place.is_tokenizer else "MODEL"
    if place.kind is PlaceKind.NOWHERE:
        yield error("model", f"{option} {place.name} {_problem(Path(expand_home(place.name)))}")
    elif place.kind is PlaceKind.HUB and is_offline() and not place.has_other_source:
        state = f"only in part in {place.folder}" if place.folder else f"not in {hub_cache_dir(config)}"
        yield error(
            "model",
            f"{option} {place.name} is {state}, and HF_HUB_OFFLINE forbids the download: unset it for this start",
        )


def _problem(path: Path) -> str:
    if path.exists():
        return "is a file: give the folder that holds config.json and the weights"
    return f"is neither a folder nor a name on the Hugging Face hub{did_you_mean(path.name, _siblings(path))}"


def _siblings(path: Path) -> list[str]:
    try:
        return [entry.name for entry in path.parent.iterdir() if entry.is_dir()]
    except OSError:
        return []
