"""The only finder that this program adds to `sys.meta_path`. It changes how certain modules are imported.

A module can be replaced (`replace`), be changed right before or after its code runs (`before_import`,
`after_import`), or come from a file with the code of many modules (`serve`). A watcher is called before and
after the code of each module (`watch`). Python's own finders find all other modules. A shim is a small module
that only imports another module. The name of a shim stands for that module.
"""

import functools
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any, Protocol, TypeAlias, TypeVar

from startup.hook import Hook, Name, UnfitHookError, note_executed, place_of

logger = logging.getLogger(__name__)

_Function = TypeVar("_Function", bound=Callable[..., Any])
Action: TypeAlias = Callable[[ModuleType], None]
Replacement: TypeAlias = Callable[[str], ModuleSpec | None]
"""Returns the spec of the module that replaces the named module. None if the named module is not replaced."""


class Watch(Protocol):
    """A watcher of imports. An exception from its methods ends the import of the module `name`."""

    def begin(self, name: str) -> None:
        """Called before the module's code runs."""

    def end(self, name: str) -> None:
        """Called after the module's code has run without an exception."""


def after_import(name: str, action: Action, hook: Hook | None = None) -> None:
    """Calls `action` once the module has been imported. Calls it at once if the module is loaded already.

    An error in the action is logged, and the import still succeeds. If the module does not meet the hook's
    needs, `action` is not called. If the hook is essential, the import then raises UnfitHookError.
    """
    if hook is not None:
        action = functools.partial(_run_if_it_applies, hook, action)
    name = place_of(name)
    module = sys.modules.get(name)
    if module is not None and name not in _finder.wrapped:  # else its code has not run yet
        _run(action, module)
        return
    _finder.after.setdefault(name, []).append(action)
    _finder.come_first()


def wrap_after_import(name: Name, wrap: Callable[[Any], Callable[..., Any]], hook: Hook) -> None:
    """Replaces a function with the result of `wrap`, once the function's module has been imported."""

    def replace_function(module: ModuleType) -> None:
        function = name.get(module)
        name.replace(module, functools.wraps(function)(wrap(function)))

    after_import(name.module, replace_function, hook)


def wraps(hook: Hook, *names: Name) -> Callable[[_Function], _Function]:
    """Declares a change of the hook: the decorated function wraps each of these functions."""

    def declare(wrap: _Function) -> _Function:
        hook.changes.extend(functools.partial(wrap_after_import, name, wrap, hook) for name in names)
        return wrap

    return declare


def alters(hook: Hook, module: str) -> Callable[[_Function], _Function]:
    """Declares a change of the hook: the decorated function gets the module, and changes it."""

    def declare(action: _Function) -> _Function:
        hook.changes.append(functools.partial(after_import, module, action, hook))
        return action

    return declare


def place(hook: Hook) -> None:
    """Makes the changes of the hook if it applies, each once its module has been imported."""
    for change in hook.changes if hook.applies else ():
        change()


@contextmanager
def replaced(name: Name, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """During the block, the result of `wrap` replaces the function, once its module is imported."""
    undo: list[Callable[[], None]] = []

    def replace_function(module: ModuleType) -> None:
        function = name.get(module)
        name.replace(module, wrap(function))
        undo.append(lambda: name.replace(module, function))

    after_import(name.module, replace_function)
    try:
        yield
    finally:
        cancel(name.module, replace_function)
        for step in undo:
            step()


def _run_if_it_applies(hook: Hook, action: Action, module: ModuleType) -> None:
    note_executed(module.__name__)
    if hook.applies:
        action(module)


def place_variant(owner: ModuleType, name: str, **functions: Callable[..., Any]) -> None:
    """Replaces functions of a module, but only for one other module that uses it as `name.function`.

    Args:
        owner: the other module.
        name: the name of the changed module in `owner`.
        functions: the replacements, by the names of the replaced functions. The first argument of each
            replacement is the changed module.
    """
    module = getattr(owner, name)
    if not isinstance(module, _Variant):  # a standby's template has placed it for its forks
        replacements = {key: functools.partial(function, module) for key, function in functions.items()}
        setattr(owner, name, _Variant(module, replacements))


class _Variant(ModuleType):
    """A copy of a module in which some names have other values."""

    def __init__(self, module: ModuleType, names: Mapping[str, Any]) -> None:
        super().__init__(module.__name__)
        vars(self).update(names)
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def before_import(name: str, action: Action) -> None:
    """Calls `action` with the module before the module's code runs. An error in the action is logged."""
    _finder.before.setdefault(place_of(name), []).append(action)
    _finder.come_first()


def cancel(name: str, action: Action) -> None:
    """Cancels the calls of `action`. Does nothing if `action` was not registered."""
    name = place_of(name)
    for actions in (_finder.before, _finder.after):
        if action in actions.get(name, ()):
            actions[name].remove(action)
            if not actions[name]:
                del actions[name]


def replace(replacement: Replacement) -> None:
    """Makes the finder call `replacement` first for each imported module, until `stop_replacing`."""
    _finder.replacements.insert(0, replacement)
    _finder.come_first()


def stop_replacing(replacement: Replacement) -> None:
    """Makes the finder no longer call `replacement`. A second call does nothing."""
    if replacement in _finder.replacements:
        _finder.replacements.remove(replacement)


def wrap_loader(name: str, wrap: Callable[[Any], Any]) -> None:
    """Makes the finder give `wrap(loader)` to imports of this module, instead of the module's own loader."""
    _finder.wrapped[name] = wrap
    _finder.come_first()


def unwrap_loader(name: str) -> None:
    """Ends the effect of `wrap_loader`."""
    _finder.wrapped.pop(name, None)


def serve(file: Any) -> None:
    """Makes the finder search an `ImportFile` for each module, right before Python's path finder."""
    _finder.files.append(file)
    _finder.come_first()


def stop_serving() -> list[Any]:
    """Makes the finder search no more files. Returns the files that were used."""
    files, _finder.files = _finder.files, []
    return files


def watch(watcher: Watch | None) -> None:
    """Makes the finder call this watcher for each imported module. None ends the calls."""
    _finder.watcher = watcher
    _finder.come_first()


class _Finder:
    """The finder. It stands first in `sys.meta_path` once it has something to do."""

    def __init__(self) -> None:
        self.replacements: list[Replacement] = []
        self.before: dict[str, list[Action]] = {}
        """Actions before imports, by module. They stay until they are cancelled."""
        self.after: dict[str, list[Action]] = {}
        """Actions after imports, by module. They stay until the import, as `find_spec` may not cause it."""
        self.wrapped: dict[str, Callable[[Any], Any]] = {}
        """What makes a module's loader from its own loader."""
        self.files: list[Any] = []
        self.watcher: Watch | None = None

    def come_first(self) -> None:
        if sys.meta_path[:1] != [self]:
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            sys.meta_path.insert(0, self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        for replacement in self.replacements:
            if (spec := replacement(fullname)) is not None:
                return spec
        wrap = self.wrapped.get(fullname)
        has_actions = self.watcher is not None or fullname in self.before or fullname in self.after or wrap is not None
        if not has_actions and not any(fullname in file for file in self.files):
            return None
        spec = next(self._specs(fullname, path, target), None)
        if has_actions and spec is not None and hasattr(spec.loader, "exec_module"):
            acting = _ActingLoader(spec.loader, self)
            spec.loader = wrap(acting) if wrap is not None else acting  # type: ignore[assignment]
        return spec

    def _specs(self, name: str, path: Sequence[str] | None, target: ModuleType | None) -> Iterator[ModuleSpec]:
        """Yields the specs from the files and the other finders, in the order of `sys.meta_path`."""
        others: list[Any] = []
        if self in sys.meta_path:
            own_place = sys.meta_path.index(self)
            others = sys.meta_path[own_place + 1 :]
        for other in others:
            for file in self.files if other is PathFinder else ():
                if (spec := file.find_spec(name, path)) is not None:
                    yield spec
            if (spec := other.find_spec(name, path, target)) is not None:
                yield spec


class _ActingLoader:
    """The module's own loader, plus the finder's actions before and after the module's code."""

    def __init__(self, loader: Any, finder: _Finder) -> None:
        self._loader = loader
        self._finder = finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        for action in tuple(self._finder.before.get(module.__name__, ())):
            _run(action, module)
        if self._finder.watcher is not None:
            self._finder.watcher.begin(module.__name__)
        self._loader.exec_module(module)
        if self._finder.watcher is not None:
            self._finder.watcher.end(module.__name__)
        for action in self._finder.after.pop(module.__name__, ()):
            _run(action, module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


def _run(action: Action, module: ModuleType) -> None:
    try:
        action(module)
    except UnfitHookError:
        raise
    except Exception as err:  # noqa: BLE001 - the module of another version works without the action
        effect = "the start continues without the optimisations that need it"
        logger.warning("%s is not as expected: %s; %s", module.__name__, err, effect)


_finder = _Finder()
