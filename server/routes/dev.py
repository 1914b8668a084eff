"""The routes for development, as vLLM has them with VLLM_SERVER_DEV_MODE=1."""

import platform
from collections.abc import Awaitable, Callable
from dataclasses import asdict, is_dataclass
from functools import wraps
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from envs.redaction import without_login
from envs.registry import variables
from server.engine.process_link.client import EngineClient
from server.errors import RequestError, ServerError
from server.http_body.errors import describe_failure
from server.operation.availability import Availability
from server.renderers.base import BaseRenderer
from server.routes.info import json_response, unavailable_response
from server.server_config import ServerConfig

_FORMATS: Final = ("text", "json")

Answer = Callable[["DevEndpoints", Request], Awaitable[Response]]


def _when_available(answer: Answer) -> Callable[["DevEndpoints", Request], Awaitable[Response]]:
    """Answers 503 unless an engine is ready, and errors with OpenAI's body."""

    @wraps(answer)
    async def checked(self: "DevEndpoints", request: Request) -> Response:
        if (problem := self.availability.problem) is not None:
            return unavailable_response(problem)
        try:
            return await answer(self, request)
        except ServerError as err:
            body = describe_failure(err)
            return json_response(body, status=body.error.code)

    return checked


class DevEndpoints:
    """They change the engine for all clients, so that only a server for development offers them."""

    def __init__(
        self, availability: Availability, engine: EngineClient, renderer: BaseRenderer, config: ServerConfig
    ) -> None:
        self.availability = availability
        self._engine = engine
        self._renderer = renderer
        self._config = config

    def routes(self) -> list[Route]:
        """All routes."""
        posts = {
            "/reset_prefix_cache": self.reset_prefix_cache,
            "/reset_mm_cache": self.reset_mm_cache,
            "/reset_encoder_cache": self.reset_encoder_cache,
        }
        return [
            *(Route(path, answer, methods=["POST"]) for path, answer in posts.items()),
            Route("/server_info", self.server_info, methods=["GET"]),
        ]

    @_when_available
    async def reset_prefix_cache(self, request: Request) -> Response:
        """POST /reset_prefix_cache?reset_running_requests=false; there is no external cache to reset."""
        interrupts = _read_choice(request, "reset_running_requests", _BOOLEANS, default="false") in _TRUE
        return json_response({"success": await self._engine.reset_prefix_cache(interrupts=interrupts)})

    @_when_available
    async def reset_mm_cache(self, request: Request) -> Response:
        """POST /reset_mm_cache: forgets processed images."""
        await self._renderer.clear_mm_cache_async()
        return Response()

    @_when_available
    async def reset_encoder_cache(self, request: Request) -> Response:
        """POST /reset_encoder_cache: forgets encoded images."""
        await self._engine.reset_encoder_cache()
        return Response()

    @_when_available
    async def server_info(self, request: Request) -> Response:
        """GET /server_info?config_format=text|json, without secrets."""
        config = {name: _shown(value) for name, value in _settings(self._config).items()}
        config |= {"engine": msgspec.to_builtins(self._engine.info)}
        for secret in ("api_keys", "api_key_file"):
            config.pop(secret)
        is_text = _read_choice(request, "config_format", _FORMATS, default="text") == "text"
        declared = (v for v in variables() if v.name.startswith("VLLM_") and not v.is_secret)
        return json_response(
            {
                "vllm_config": str(config) if is_text else config,
                "vllm_env": {v.name: value for v in declared if (value := _as_json(v.get())) is not None},
                "system_env": {"python_version": platform.python_version(), "os": platform.platform()},
            }
        )


_TRUE: Final = ("true", "1", "yes", "on")
_BOOLEANS: Final = (*_TRUE, "false", "0", "no", "off")


def _settings(config: ServerConfig) -> dict[str, Any]:
    """All settings by name; those of a section stand beside the others, as in vLLM."""
    settings: dict[str, Any] = {}
    for name, value in asdict(config).items():
        settings |= value if is_dataclass(getattr(config, name)) else {name: value}
    return settings


def _shown(value: Any) -> Any:
    return without_login(value) if isinstance(value, str) else value


def _as_json(value: Any) -> Any:
    return value if isinstance(value, str | int | float | None) else str(value)


def _read_choice(request: Request, name: str, choices: tuple[str, ...], *, default: str) -> str:
    value = request.query_params.get(name, default)
    if value.lower() not in choices:
        raise RequestError(f"The parameter `{name}` must be one of {', '.join(choices)}, got {value!r}.", param=name)
    return value.lower()
