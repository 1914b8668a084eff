"""Makes an async function from a blocking one, which then runs in a pool's thread."""

import asyncio
import functools
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def make_async(func: Callable[P, T], executor: Executor) -> Callable[P, Coroutine[Any, Any, T]]:
    """Returns a coroutine function with `func`'s signature that runs `func` in `executor`."""

    @functools.wraps(func)
    async def run_in_pool(*args: P.args, **kwargs: P.kwargs) -> T:
        call = functools.partial(func, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(executor, call)

    return run_in_pool
