"""The operator's own middleware (`--middleware`), in both forms that vLLM accepts."""

import inspect
from collections.abc import Sequence
from importlib import import_module
from typing import Any, cast

from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware

from server.errors import ConfigError


def load_middleware(names: Sequence[str]) -> list[Middleware]:
    """The middleware, outermost first: as in vLLM that is the last name.

    Args:
        names: import paths of ASGI classes, which are called with the app, or of coroutine functions with the
            parameters `request` and `call_next`.

    Raises:
        ConfigError: one cannot be imported, or is of another kind.
    """
    return [_load(name) for name in reversed(names)]


def _load(name: str) -> Middleware:
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as err:
        raise ConfigError("--middleware", name, f"the import path of a class or function ({err})") from err
    if inspect.isclass(found):
        return Middleware(cast("Any", found))
    if inspect.iscoroutinefunction(found):
        return Middleware(BaseHTTPMiddleware, dispatch=found)
    raise ConfigError("--middleware", name, "the import path of an ASGI class or a coroutine function")
