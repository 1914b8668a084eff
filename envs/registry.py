"""Declares every environment variable that configures this program.

Only the modules of `envs` read `os.environ`. Variables of other programs are read through `envs.foreign`.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from envs.foreign import expand_home
from envs.replacements import REPLACEMENTS
from envs.suggestion import did_you_mean
from envs.variable import (
    EnvError,
    EnvVar,
    boolean,
    choice,
    hub_boolean,
    hub_path,
    hub_seconds,
    integer,
    internal,
    names,
    number,
    optional_duration,
    optional_integer,
    path,
    presence,
    seconds,
    text,
)

START_METHODS: Final = ("spawn", "fork", "forkserver")
"""The start methods of the engine process."""

ENGINES: Final = ("auto", "embedded", "vllm")
"""The embedded engine and an installed vLLM. `auto` prefers vLLM."""

PREFLIGHT_MODES: Final = ("auto", "warn", "off")
"""`auto`: faults end the start. `warn`: faults are only logged. `off`: the preflight is skipped."""

STANDBY_MODES: Final = ("auto", "off", "require")
"""Whether a start is forked from the template process of a standby."""

CUDA_GRAPHS: Final = ("auto", "before-ready", "after-ready")
"""When vLLM's CUDA graphs are captured. `auto`: after readiness where this is proven."""

LOGGING_LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")

LOG_FORMATS: Final = ("text", "text-utc", "json")

OWN_PREFIX: Final = "VCLI_"
"""Prefix of this program's own variables. vLLM warns about unknown names that begin with `VLLM_`."""


class Environment:
    """The variables. An attribute's name is the variable's name."""

    VCLI_LEAVE_OUT = names("Hooks and parts that a start leaves out. docs/vllm-engine.md lists them.")
    VCLI_LOG_FORMAT = choice("text", LOG_FORMATS, "Format of log lines if --log-format is not given.")
    VCLI_PRELOAD_MODULE = internal(text("Module of the model's class, for the forkserver."))
    VCLI_ENGINE = choice("auto", ENGINES, "Engine of `serve` if --engine is not given.")
    VCLI_STANDBY = choice("auto", STANDBY_MODES, "Whether a running standby is used if --standby is not given.")
    VCLI_IDLE_STOP = optional_duration("After how long without a request `serve` stops the model (--idle-stop).")
    VCLI_IDLE_SLEEP = optional_duration("After how long without a request the model sleeps (--idle-sleep).")
    VCLI_RESTART = text("When `serve` starts a failed model again, `on-failure[:N]`, if --restart is not given.")
    VCLI_LISTEN_WHEN_READY = boolean(
        False, "Refuse connections until the server is ready if --listen-when-ready is not given."
    )
    VCLI_ROUTER = internal(text("Socket of a router's model."))
    VCLI_STANDBY_FOLDER = internal(text("Folder of the sockets of a router's own standby."))
    VCLI_PREFLIGHT = choice("auto", PREFLIGHT_MODES, "Mode of the preflight if --preflight is not given.")
    VCLI_PLAIN_VLLM = boolean(False, "Start vLLM as `vllm serve` does, without preloading.")
    VCLI_ENGINE_WATCHDOG_TIMEOUT = seconds(
        300.0, "Seconds after which a silent engine is ended, without --engine-watchdog-timeout. 0 never ends it."
    )
    VCLI_CUDA_GRAPHS = choice("auto", CUDA_GRAPHS, "When CUDA graphs are captured if --cuda-graphs is not given.")
    VCLI_PROBE_PROCESS = boolean(True, "While vLLM serves, answer `/health` in a separate process.")
    VCLI_PRELOAD_PLAN = internal(text("File with the modules that vLLM's forkserver imports."))
    VCLI_START_FOLDER = internal(text("Folder of one start. Programs of vLLM that have it end with the start."))
    VCLI_GIVEN_VARIABLES = internal(text("A template process's variables before it changed them, as JSON."))
    VCLI_HUB_ENDPOINTS = internal(text("All mirrors of HF_ENDPOINT, which keeps only the first one."))
    VCLI_BAKED = text("Folder that `vllm-cli bake` has written, by default /opt/vllm-cli/baked. `off` uses none.")
    VCLI_COMPILE_CACHE = text("Where vLLM's compiled models are shared if --compile-cache is not given.")
    VCLI_TERMINATION_LOG = path(
        lambda: Path("/dev/termination-log"),
        "File that gets the reason of a failed start or crash, if the file exists.",
    )
    XDG_RUNTIME_DIR = text("Folder for sockets, by default vLLM's cache folder.")
    XDG_CACHE_HOME = path(lambda: Path(expand_home("~/.cache")), "The user's cache folder.")

    VLLM_WORKER_MULTIPROC_METHOD = choice("forkserver", START_METHODS, "How the engine process is started.")
    VLLM_ENGINE_READY_TIMEOUT_S = integer(600, "Seconds that the engine may take to become ready.", minimum=1)
    VLLM_API_KEY = text("Key that requests must contain if --api-key is not given.")
    VLLM_HTTP_TIMEOUT_KEEP_ALIVE = integer(
        5, "Seconds that an idle HTTP connection stays open. A router's default is 75.", minimum=0
    )
    VLLM_LOGGING_LEVEL = choice(
        "INFO", LOGGING_LEVELS, "Least severe level that is logged if --log-level is not given."
    )
    VLLM_LOGGING_CONFIG_PATH = text(
        "JSON file with a configuration of Python's logging if --log-config-file is not given."
    )
    VLLM_LOG_STATS_INTERVAL = number(10.0, "Seconds between two log lines with statistics.", above=0)
    VLLM_MAX_N_SEQUENCES = integer(16384, "Largest `n`, and largest product of prompts and `n`.", minimum=1)
    VLLM_MAX_COMPLETION_PROMPTS = integer(2048, "Most prompts, inputs or documents of a request.", minimum=1)
    VLLM_MAX_STOP_STRINGS = integer(64, "Most stop strings of a request.", minimum=1)
    VLLM_IMAGE_FETCH_TIMEOUT = integer(5, "Most seconds to fetch an image, including redirects.", minimum=1)
    VLLM_MEDIA_URL_ALLOW_REDIRECTS = boolean(True, "Follow redirects of an image's URL to other allowed hosts.")
    VLLM_MAX_MEDIA_DOWNLOAD_SIZE_MB = integer(64, "Largest image as downloaded, in MiB.", minimum=1)
    VLLM_MAX_IMAGE_PIXELS = integer(89_478_485, "Most pixels of an image.", minimum=1)
    VLLM_SERVER_DEV_MODE = boolean(False, "Offer /reset_mm_cache and /reset_prefix_cache, for development.")
    VLLM_ALLOW_LONG_MAX_MODEL_LEN = boolean(
        False, "Accept a --max-model-len above the limit of a model with RoPE. The model's answers may get worse."
    )
    VLLM_FORCE_AOT_LOAD = boolean(False, "A start that would compile fails, as with --compile-cache require.")
    VLLM_CACHE_ROOT = path(lambda: env.XDG_CACHE_HOME.get() / "vllm", "Folder for files kept between starts.")

    HF_HUB_OFFLINE = hub_boolean("Take models from the cache only.")
    TRANSFORMERS_OFFLINE = hub_boolean("Used in place of HF_HUB_OFFLINE if HF_HUB_OFFLINE is not set.")
    HF_HOME = hub_path(lambda: f"{env.XDG_CACHE_HOME.get()}/huggingface", "Folder of Hugging Face's caches.")
    HUGGINGFACE_HUB_CACHE = hub_path(lambda: env.HF_HOME.get() / "hub", "Former name of HF_HUB_CACHE.")
    HF_HUB_CACHE = hub_path(lambda: env.HUGGINGFACE_HUB_CACHE.get(), "Folder of models downloaded from the hub.")
    HF_TOKEN = text("Token for gated and private models if --hf-token is not given.")
    HUGGING_FACE_HUB_TOKEN = text("Former name of HF_TOKEN.")
    HF_TOKEN_PATH = hub_path(lambda: env.HF_HOME.get() / "token", "File with the token that `hf auth login` stored.")
    HF_HUB_DISABLE_IMPLICIT_TOKEN = hub_boolean("Send only the token of --hf-token to the hub.")
    HF_HUB_ETAG_TIMEOUT = hub_seconds(10, "Most seconds that the hub may take to list a repository's files.")
    HF_HUB_DOWNLOAD_TIMEOUT = hub_seconds(10, "Seconds without data after which a download opens a new connection.")
    HF_ENDPOINT = text(
        "Address of a mirror of the Hugging Face hub, or several addresses separated by commas. Mirrors are tried in "
        "this order, and each gets the token."
    )

    OPENAI_API_KEY = text("Key that clients such as `chat` and `bench` send if --api-key is not given.")
    OMP_NUM_THREADS = optional_integer(
        "Number of threads that compute on a CPU, by default the number of processors that other processes leave free.",
        minimum=1,
    )
    OMP_WAIT_POLICY = text("Whether OpenMP's waiting threads spin (active) or sleep (passive).")
    GOMP_SPINCOUNT = text("How often OpenMP's waiting threads spin before they sleep, by default 10000.")
    ONEDNN_PRIMITIVE_CACHE_CAPACITY = text("Number of kernels that oneDNN keeps on a CPU, by default 128.")
    DNNL_PRIMITIVE_CACHE_CAPACITY = text("Former name of ONEDNN_PRIMITIVE_CACHE_CAPACITY.")
    LRU_CACHE_CAPACITY = text("Number of kernels that ideep (torch's layer above oneDNN) keeps, by default 128.")
    CUDA_VISIBLE_DEVICES = text("GPUs that may be used, by number or id. An empty value or -1 means no GPU.")
    PYTORCH_NVML_BASED_CUDA_CHECK = text("With 1 (default), torch detects a GPU without initializing CUDA.")
    TMPDIR = text("Folder for temporary files.")
    TEMP = text("Folder for temporary files if TMPDIR is not set.")
    TMP = text("Folder for temporary files if TMPDIR and TEMP are not set.")
    NOTIFY_SOCKET = text("Socket of the service manager, set by systemd.")
    WATCHDOG_USEC = optional_integer("Longest pause between watchdog notifications in µs, set by systemd.", minimum=1)
    WATCHDOG_PID = optional_integer("Process that sends the watchdog notifications, set by systemd.", minimum=1)
    LISTEN_FDS = optional_integer("Number of sockets passed from descriptor 3 on, set by systemd.", minimum=0)
    LISTEN_PID = optional_integer("Process that gets the sockets of LISTEN_FDS, set by systemd.", minimum=1)
    LISTEN_FDNAMES = text("Names of the sockets of LISTEN_FDS, set by systemd.")
    NO_COLOR = presence("If this variable is set, the output has no colours.")


env: Final[Environment] = Environment()


def variables() -> Iterator[EnvVar[Any]]:
    """Every declared variable, in the order of declaration."""
    return (value for value in vars(Environment).values() if isinstance(value, EnvVar))


def validate_all() -> list[EnvError]:
    """An error for each declared variable with a wrong value."""
    errors: list[EnvError] = []
    for variable in variables():
        try:
            variable.get()
        except EnvError as err:
            errors.append(err)
    return errors


def unknown_variables() -> list[str]:
    """A line for each unknown variable with our prefix, and for each former variable of vLLM."""
    declared = [variable.name for variable in variables()]
    unknown = undeclared_names(OWN_PREFIX)
    lines = [f"{name} is not a variable of vllm-cli{did_you_mean(name, declared)}" for name in unknown]
    former = [name for name in undeclared_names("VLLM_") if name in REPLACEMENTS]
    return lines + [f"{name} is not a variable of vLLM{did_you_mean(name, ())}" for name in former]


def undeclared_names(prefix: str) -> list[str]:
    """Names with this prefix that are set, but not declared here. For `VLLM_`, these are vLLM's own."""
    declared = {variable.name for variable in variables()}
    return sorted(name for name in os.environ if name.startswith(prefix) and name not in declared)
