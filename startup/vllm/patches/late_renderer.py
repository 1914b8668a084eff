"""Makes vLLM's API server load the tokenizer while its engine starts.

vLLM creates its renderer, which loads the tokenizer and copies it, and then starts the engine. The engine's
start does not need the renderer. With the hook, `AsyncLLM` first gets objects that stand for the renderer
and for the two processors that use it. The objects themselves are created during the wait for the engine.
"""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Final

from startup.hook import Name
from startup.imports.finder import replaced, wrap_after_import
from startup.vllm.patches.engine_wait import ENGINE_WAIT, EngineWait

_MODULE: Final = "vllm.v1.engine.async_llm"
_CREATE: Final = Name(_MODULE, "AsyncLLM.__init__")
_LATE: Final = (
    Name(_MODULE, "renderer_from_config", ("config",)),
    Name(_MODULE, "InputProcessor", ("vllm_config", "renderer")),
    Name(_MODULE, "OutputProcessor"),
)
"""The functions and classes whose results `AsyncLLM` keeps until the engine has started."""
LATE_RENDERER: Final = ENGINE_WAIT.part(_CREATE, *_LATE)


def create_renderer_in(wait: EngineWait, span: Callable[[], AbstractContextManager[Any]]) -> None:
    """From now on, `AsyncLLM` creates its renderer during the wait for its engine, inside a `span()`."""

    def complete(client: Any) -> None:
        with span():
            _complete(client)

    def with_late_renderer(create: Callable[..., None]) -> Callable[..., None]:
        def create_with_late_renderer(client: Any, *args: Any, **options: Any) -> None:
            wait.add(functools.partial(complete, client))
            with ExitStack() as stack:
                for name in _LATE:
                    stack.enter_context(replaced(name, _LateObject.creator))
                create(client, *args, **options)
            _complete(client)  # if vLLM did not wait

        return create_with_late_renderer

    if LATE_RENDERER.applies:
        wrap_after_import(_CREATE, with_late_renderer, LATE_RENDERER)


def _complete(client: Any) -> None:
    """Creates all late objects of the client, and replaces them by what they stand for."""
    attributes = vars(client)
    for name, value in attributes.items():
        if isinstance(value, _LateObject):
            attributes[name] = value.create()


class _LateObject:
    """An object that is created when it is needed. Until then, it takes two calls of `AsyncLLM`."""

    def __init__(self, create: Callable[[], Any]) -> None:
        self._create = create
        self._value: Any = None
        self._is_created = False
        self._has_warmup = False

    @classmethod
    def creator(cls, function: Callable[..., Any]) -> Callable[..., "_LateObject"]:
        def create_late(*args: Any, **options: Any) -> "_LateObject":
            def create() -> Any:
                values = {name: _value_of(value) for name, value in options.items()}
                return function(*map(_value_of, args), **values)

            return cls(create)

        return create_late

    def create(self) -> Any:
        """Returns the object. Creates it in the first call."""
        if not self._is_created:
            self._value, self._is_created = self._create(), True
            if self._has_warmup:
                self._value.start_mm_warmup_in_background()
        return self._value

    @property
    def tokenizer(self) -> Any:
        """The renderer's tokenizer, which is an argument of `OutputProcessor`."""
        return _LateObject(lambda: self.create().tokenizer)

    def start_mm_warmup_in_background(self) -> None:
        """vLLM calls this method of the renderer right after it has started the engine's process."""
        self._has_warmup = True
        if self._is_created:
            self._value.start_mm_warmup_in_background()

    def shutdown(self) -> None:
        """vLLM calls this method of the renderer after a failed start, too."""
        if self._is_created:
            self._value.shutdown()

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # so that `isinstance` answers as for the object itself
        return type(self.create())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.create(), name)


def _value_of(argument: Any) -> Any:
    return argument.create() if isinstance(argument, _LateObject) else argument
