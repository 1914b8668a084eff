"""Every environment variable that the project reads, declared once; nothing else reads `os.environ`."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from envs.errors import EnvError
from envs.kinds import boolean, choice, choice_in_capitals, integer, optional_integer, path, presence, text
from envs.suggestion import closest
from envs.variable import EnvVar

START_METHODS: Final = ("spawn", "fork", "forkserver")
"""How the engine process may be started; the one list that every branch uses."""

LOGGING_LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")

OWN_PREFIX: Final = "VCLI_"
"""Variables of our own begin with this, since vLLM warns about unknown `VLLM_*` names."""


class Environment:
    """The variables; the attribute's name is the variable's name."""

    VCLI_LEAN_IMPORTS = boolean(True, "Leave out of torch and transformers what serving never uses.")
    VCLI_PRELOAD_MODULE = text("Module of the model's class, for the forkserver; set by the launcher.")
    XDG_CACHE_HOME = path(lambda: Path("~/.cache").expanduser(), "The user's cache folder.")

    VLLM_WORKER_MULTIPROC_METHOD = choice("forkserver", START_METHODS, "How the engine process is started.")
    VLLM_ENGINE_READY_TIMEOUT_S = integer(600, "Seconds that the engine may take to become ready.", minimum=1)
    VLLM_API_KEY = text("Key that requests must carry where --api-key is not given.", is_secret=True)
    VLLM_HTTP_TIMEOUT_KEEP_ALIVE = integer(5, "Seconds that an idle HTTP connection is kept open.", minimum=0)
    VLLM_LOGGING_LEVEL = choice_in_capitals("INFO", LOGGING_LEVELS, "Least severe level that is logged.")
    VLLM_IMAGE_FETCH_TIMEOUT = integer(5, "Seconds that fetching a picture may take, redirects included.", minimum=1)
    VLLM_MEDIA_URL_ALLOW_REDIRECTS = boolean(True, "Follow redirects of a picture's URL to other allowed hosts.")
    VLLM_MAX_MEDIA_DOWNLOAD_SIZE_MB = integer(64, "Largest picture as it comes, in MiB.", minimum=1)
    VLLM_MAX_IMAGE_PIXELS = integer(89_478_485, "Most pixels of a picture.", minimum=1)
    VLLM_CACHE_ROOT = path(lambda: env.XDG_CACHE_HOME.get() / "vllm", "Folder for what is kept between starts.")

    HF_HUB_OFFLINE = boolean(False, "Never ask the Hugging Face hub; take models from the cache alone.")
    TRANSFORMERS_OFFLINE = boolean(False, "The same as HF_HUB_OFFLINE.")
    HF_HOME = path(lambda: env.XDG_CACHE_HOME.get() / "huggingface", "Folder of Hugging Face's caches.")
    HF_HUB_CACHE = path(lambda: env.HF_HOME.get() / "hub", "Folder of models downloaded from the hub.")
    HF_TOKEN = text("Token for gated and private models where --hf-token is not given.", is_secret=True)
    HF_ENDPOINT = text("Address of a mirror of the Hugging Face hub; unset takes the hub itself.")

    OPENAI_API_KEY = text("Key that `chat` and `complete` send where --api-key is not given.", is_secret=True)
    OMP_NUM_THREADS = optional_integer("Threads of the forward pass on a CPU; unset takes what is free.", minimum=1)
    OMP_WAIT_POLICY = text("Whether OpenMP's waiting threads spin (active) or sleep (passive).")
    GOMP_SPINCOUNT = text("How long OpenMP's waiting threads spin before they sleep; unset takes 3000.")
    NO_COLOR = presence("No colours in the output, whatever the value.")


env: Final[Environment] = Environment()


class UnknownVariable(NamedTuple):
    """A variable with our prefix that nothing reads."""

    name: str
    suggestion: str | None

    def __str__(self) -> str:
        guess = f" (did you mean {self.suggestion}?)" if self.suggestion else ""
        return f"{self.name} is not a variable of vllm-cli{guess}"


def variables() -> Iterator[EnvVar[Any]]:
    """Every declared variable, in the order of declaration."""
    return (value for value in vars(Environment).values() if isinstance(value, EnvVar))


def validate_all() -> list[EnvError]:
    """Everything that is wrong with the declared variables, at once."""
    return [error for variable in variables() if (error := _error_of(variable))]


def unknown_variables() -> list[UnknownVariable]:
    """Variables with our prefix that are not declared: most likely misspelt."""
    declared = {variable.name for variable in variables()}
    strangers = sorted(name for name in os.environ if name.startswith(OWN_PREFIX) and name not in declared)
    return [UnknownVariable(name, closest(name, declared)) for name in strangers]


def _error_of(variable: EnvVar[Any]) -> EnvError | None:
    try:
        variable.get()
    except EnvError as err:
        return err
    return None
