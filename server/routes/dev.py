"""The routes for development, as vLLM has them with VLLM_SERVER_DEV_MODE=1."""

import platform
from dataclasses import asdict, is_dataclass
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from envs.redaction import without_login
from envs.registry import variables
from server.routes.info import invalid_parameter, json_response, read_boolean
from server.routes.parts import AppParts
from server.server_config import ServerConfig


class DevEndpoints:
    """They change the engine for all clients, so that only a server for development offers them."""

    def __init__(self, parts: AppParts) -> None:
        self._parts = parts

    def routes(self) -> list[Route]:
        """All routes."""
        posts = {
            "/reset_prefix_cache": self.reset_prefix_cache,
            "/reset_mm_cache": self.reset_mm_cache,
            "/reset_encoder_cache": self.reset_encoder_cache,
        }
        return [
            *(Route(path, answer, methods=["POST"]) for path, answer in posts.items()),
            Route("/server_info", self.server_info),
        ]

    async def reset_prefix_cache(self, request: Request) -> Response:
        """POST /reset_prefix_cache?reset_running_requests=false; there is no external cache to reset."""
        self._parts.availability.check()
        interrupts = read_boolean(request, "reset_running_requests")
        return json_response({"success": await self._parts.engine.reset_prefix_cache(interrupts=interrupts)})

    async def reset_mm_cache(self, request: Request) -> Response:
        """POST /reset_mm_cache: forgets processed images."""
        self._parts.availability.check()
        await self._parts.renderer.clear_mm_cache_async()
        return Response()

    async def reset_encoder_cache(self, request: Request) -> Response:
        """POST /reset_encoder_cache: forgets encoded images."""
        self._parts.availability.check()
        await self._parts.engine.reset_encoder_cache()
        return Response()

    async def server_info(self, request: Request) -> Response:
        """GET /server_info?config_format=text|json, without secrets."""
        self._parts.availability.check()
        form = request.query_params.get("config_format", "text")
        if form not in ("text", "json"):
            raise invalid_parameter("config_format", "text or json", form)
        config = {name: _shown(value) for name, value in _settings(self._parts.config).items()}
        config |= {"engine": msgspec.to_builtins(self._parts.engine.info)}
        for secret in ("api_keys", "api_key_file"):
            config.pop(secret)
        declared = (v for v in variables() if v.name.startswith("VLLM_") and not v.is_secret)
        return json_response(
            {
                "vllm_config": config if form == "json" else str(config),
                "vllm_env": {v.name: value for v in declared if (value := _as_json(v.get())) is not None},
                "system_env": {"python_version": platform.python_version(), "os": platform.platform()},
            }
        )


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
