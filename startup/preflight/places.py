"""Says what is wrong with where model and tokenizer are to come from."""

from collections.abc import Iterator
from pathlib import Path

from envs.suggestion import did_you_mean
from startup.config import ModelConfig
from startup.model.hub import is_offline
from startup.model.hub_cache import hub_cache_dir
from startup.preflight.model_place import ModelPlace, PlaceKind
from startup.preflight.report import Finding, error


def check_place(place: ModelPlace, config: ModelConfig) -> Iterator[Finding]:
    """A place that does not exist, or a download that is forbidden."""
    option = "--tokenizer" if place.is_tokenizer else "MODEL"
    if place.kind is PlaceKind.NOWHERE:
        yield error("model", f"{option} {place.name} {_what_it_is(Path(place.name).expanduser())}")
    elif place.kind is PlaceKind.HUB and is_offline() and not place.has_other_source:
        state = f"only in part in {place.folder}" if place.folder else f"not in {hub_cache_dir(config)}"
        yield error(
            "model", f"{option} {place.name} is {state}, and HF_HUB_OFFLINE forbids the download: unset it for once"
        )


def _what_it_is(path: Path) -> str:
    if path.exists():
        return "is a file: give the folder that holds config.json and the weights"
    return f"is neither a folder nor a name on the Hugging Face hub{did_you_mean(path.name, _siblings(path))}"


def _siblings(path: Path) -> list[str]:
    try:
        return [entry.name for entry in path.parent.iterdir() if entry.is_dir()]
    except OSError:
        return []
