"""Builds the typed configuration of a start from what flags, file and variables gave."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Final

from envs.registry import env
from envs.variable import EnvVar
from server.config import EngineConfig, RendererConfig, ServerConfig
from server.limits import LimitsConfig
from startup.config import ModelConfig, StartupConfig
from startup.prefetch.options import PrefetchOptions
from vllm_cli.flags.flag import Flag, Shape
from vllm_cli.flags.honoured import HONOURED

VARIABLES: Final[dict[str, EnvVar[Any]]] = {
    "start_method": env.VLLM_WORKER_MULTIPROC_METHOD,
    "engine_ready_timeout_s": env.VLLM_ENGINE_READY_TIMEOUT_S,
    "logging_level": env.VLLM_LOGGING_LEVEL,
    "engine.num_threads": env.OMP_NUM_THREADS,
    "server.log_stats_interval_s": env.VLLM_LOG_STATS_INTERVAL,
    "server.otlp_traces_protocol": env.OTEL_EXPORTER_OTLP_TRACES_PROTOCOL,
    "server.timeout_keep_alive_s": env.VLLM_HTTP_TIMEOUT_KEEP_ALIVE,
    "limits.max_choices": env.VLLM_MAX_N_SEQUENCES,
    "limits.max_prompts": env.VLLM_MAX_COMPLETION_PROMPTS,
    "limits.max_stop_strings": env.VLLM_MAX_STOP_STRINGS,
    "renderer.image_fetch_timeout_s": env.VLLM_IMAGE_FETCH_TIMEOUT,
    "renderer.media_url_allow_redirects": env.VLLM_MEDIA_URL_ALLOW_REDIRECTS,
    "renderer.max_media_mb": env.VLLM_MAX_MEDIA_DOWNLOAD_SIZE_MB,
    "renderer.max_image_pixels": env.VLLM_MAX_IMAGE_PIXELS,
}
"""Fields that a variable fills where no flag does."""


def build_startup_config(settings: Mapping[str, Any]) -> StartupConfig:
    """Settings are named as flags are, `max_model_len`; what is not given keeps its default."""
    sections = _sections(settings)
    sections["server"].setdefault("served_model_names", (sections["model"].get("model") or _default_model_id(),))
    return StartupConfig(
        **sections[""],
        model=ModelConfig(**sections["model"]),
        engine=EngineConfig(**sections["engine"]),
        renderer=RendererConfig(**sections["renderer"]),
        server=ServerConfig(**sections["server"]),
        limits=LimitsConfig(**sections["limits"]),
        prefetch=PrefetchOptions(**sections["prefetch"]),
    )


def _sections(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    sections: dict[str, dict[str, Any]] = defaultdict(dict)
    for path, variable in VARIABLES.items():
        _put(sections, path, variable.get())
    for flag in HONOURED:
        for path in flag.fields:
            _put(sections, path, _given_value(flag, settings))
    return sections


def _given_value(flag: Flag, settings: Mapping[str, Any]) -> Any:
    value = settings.get(flag.parameter)
    if flag.shape is Shape.LIST:
        value = tuple(filter(None, value or ()))
        return value or None
    return None if value == "" else value


def _put(sections: dict[str, dict[str, Any]], path: str, value: Any) -> None:
    section, _, name = path.rpartition(".")
    if value is not None:
        sections[section][name] = value


def _default_model_id() -> str:
    from startup.model.default_model import DEFAULT_MODEL_ID

    return DEFAULT_MODEL_ID
