"""Keeps requests for text away from a model that makes none."""

from typing import TypeVar

from server.routes.endpoint import Answer, Handler
from server.serving.pooling.base import unsupported
from server.serving.request_context import RequestContext
from server.serving.services import Services

T = TypeVar("T")


def generative(services: Services, api_name: str, handle: Handler[T]) -> Handler[T]:
    """The handler, behind a 404 for a pooling model; which it is, is known once the engine has loaded it."""

    async def handle_generative(request: T, context: RequestContext) -> Answer:
        if services.engine.info.pooling is not None:
            raise unsupported(api_name)
        return await handle(request, context)

    return handle_generative
