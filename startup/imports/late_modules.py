"""Modules whose code runs when they are first used. They are real modules, and `sys.modules` has them.

The first use of any attribute, also of `__dict__`, runs the code in the same module object. So all importers
have one module, and it can be inspected, patched and reloaded.

An `import` statement that is not in the list of late imports is such a use, because Python reads `__spec__`
there, at no cost for other imports. So a module that does not expect a late import gets a complete module at
its statement. A wrapper of `__import__` would be called for each import statement in each function. If the
code fails, the statement raises its error since Python 3.13. Older interpreters ignore errors of `__spec__`,
so there the first use raises it. Plain vLLM would not have started with such a module.

importlib's LazyLoader is not safe with threads before Python 3.12. It also keeps spec and loader of the time
of the statement, and runs the code without the locks of imports, which notice when two threads would wait
for each other.
"""

import copyreg
import importlib
import os
import sys
import threading
from collections.abc import Callable, Mapping
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Final

from startup.imports.distributions import check_version, note_package
from startup.imports.finder import unwrap_loader, wrap_loader

_KNOWN_BEFORE: Final = frozenset(("__class__", "__file__", "__name__"))
"""Attributes that do not run the code. Programs that look through all loaded modules read them."""

StandIn = Callable[[str], Any]


class LateModule(ModuleType):
    """A module whose code has not run yet. After its code has run, it is an ordinary module."""

    def __getattribute__(self, key: str) -> Any:
        late = None if key in _KNOWN_BEFORE else _late.get(ModuleType.__getattribute__(self, "__name__"))
        if late is not None:
            if (stand_in := late.stand_in(sys._getframe(1).f_globals, key)) is not None:
                return stand_in(key)
            if key != "__spec__" or late.thread is None:  # else an import statement, which waits for the thread
                late.load()
        return ModuleType.__getattribute__(self, key) if type(self) is LateModule else getattr(self, key)

    def __setattr__(self, key: str, value: Any) -> None:
        _load(self).__setattr__(self, key, value)

    def __delattr__(self, key: str) -> None:
        _load(self).__delattr__(self, key)


def _load(module: ModuleType) -> type[ModuleType]:
    """Runs the module's code if it is late. Returns the class that the module has then."""
    if (late := _late.get(module.__name__)) is not None:
        late.load()
    return ModuleType if type(module) is LateModule else type(module)


def _reduce(module: LateModule) -> tuple[Any, ...]:
    """Makes pickle write the module's name, as cloudpickle does for other modules."""
    return importlib.import_module, (module.__name__,)


copyreg.pickle(LateModule, _reduce)


def delay_module(name: str, importer: Mapping[str, Any], stand_in: StandIn) -> ModuleType | None:
    """Adds a late module to `sys.modules` and to its package.

    Args:
        name: the module.
        importer: the namespace of the module that imports it.
        stand_in: returns what the importer gets for an attribute until its own import is finished. This is an
            annotation. All other modules get the real attribute.

    Returns:
        The late module. None if the module is loaded, does not exist, or is not written in Python.
    """
    if name not in sys.modules:
        _create(name)
    late = _late.get(name)
    if late is None or sys.modules.get(name) is not late.module:
        return None
    late.importers.append((importer, stand_in))
    parent, _, child = name.rpartition(".")
    if parent:  # also if an import of the package has failed and is repeated
        setattr(sys.modules[parent], child, late.module)
    return late.module


def is_loaded(name: str) -> bool:
    """Whether the module's code has run, or runs now."""
    return name in sys.modules and not is_late(name)


def is_late(name: str) -> bool:
    """Whether the module's code has not begun to run."""
    late = _late.get(name)
    return late is not None and late.thread is None


def _create(name: str) -> None:
    try:
        spec = find_spec(name)
    except (ImportError, ValueError):
        return
    if spec is None or not str(spec.origin).endswith(".py") or name in sys.modules:
        return
    note_package(name)
    module = LateModule(name)
    namespace_of(module)["__file__"] = spec.origin
    _late[name] = late = _Late(module)
    wrap_loader(name, lambda loader: _Loader(loader, late))
    sys.modules[name] = module


class _Late:
    """The state of a late module."""

    def __init__(self, module: LateModule) -> None:
        self.module = module
        self.importers: list[tuple[Mapping[str, Any], StandIn]] = []
        """The namespaces of modules with a late import statement, and what gives them their stand-ins."""
        self.thread: int | None = None
        """The thread that runs the module's code, or will do so next. None if none does."""
        self._initial = dict(namespace_of(module))

    def stand_in(self, namespace: Mapping[str, Any], key: str) -> StandIn | None:
        """Returns what gives this namespace the attribute while the namespace's module is imported."""
        if key.startswith("__"):
            return None
        for importer, stand_in in self.importers:
            if importer is namespace and getattr(namespace["__spec__"], "_initializing", False):
                return stand_in
        return None

    def load(self) -> None:
        """Runs the module's code by an ordinary import, or waits for the thread that does.

        Returns at once in that thread. If two threads wait for each other's modules, returns early, as
        Python's import does.
        """
        name = self.module.__name__
        while _late.get(name) is self and self.thread != threading.get_ident():
            check_version(name)
            with _lock:
                if _late.get(name) is not self:  # another thread has run the code meanwhile
                    return
                thread = self.thread
                if thread is None:
                    self.thread = threading.get_ident()
                    sys.modules.pop(name, None)
            try:
                __import__(name)
            finally:
                if thread is None:
                    self.release()
            if (imported := sys.modules.get(name)) not in (None, self.module):
                # The module's code has replaced it, or the finder of another program has made it.
                namespace_of(self.module).update(vars(imported))
                self.finish()
            elif thread is not None and self.thread == thread:
                return

    def finish(self) -> None:
        """Makes the module an ordinary one."""
        name = self.module.__name__
        unwrap_loader(name)
        _late.pop(name, None)
        if type(self.module) is LateModule:  # the code has not set another class
            self.module.__class__ = ModuleType  # type: ignore[assignment]

    def reset(self) -> None:
        """Forgets what the module's code has done before it failed."""
        namespace = namespace_of(self.module)
        namespace.clear()
        namespace.update(self._initial)
        self.release()

    def release(self) -> None:
        """Ends the claim of this thread, if its import has not run the module's code."""
        if self.thread == threading.get_ident():
            self.thread = None


class _Loader:
    """The module's own loader, but it runs the code in the late module."""

    def __init__(self, loader: Any, late: _Late) -> None:
        self._loader = loader
        self._late = late

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        self._late.thread = threading.get_ident()
        return self._late.module

    def exec_module(self, module: ModuleType) -> None:
        try:
            self._loader.exec_module(module)
        except BaseException:
            self._late.reset()
            raise
        self._late.finish()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


_late: Final[dict[str, _Late]] = {}
"""The late modules whose code has not run to its end."""
_lock = threading.Lock()
"""Held for an instant, never during an import."""


def _renew_lock() -> None:
    """A fork must not inherit a lock that another thread holds."""
    global _lock
    _lock = threading.Lock()


def namespace_of(module: ModuleType) -> dict[str, Any]:
    """The module's `__dict__`, which runs no code of a late module, and imports no late names."""
    namespace: dict[str, Any] = ModuleType.__getattribute__(module, "__dict__")
    return namespace


os.register_at_fork(after_in_child=_renew_lock)
