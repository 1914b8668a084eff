"""Delays import statements whose modules or names few processes need, until these are used."""

import builtins
import functools
import pkgutil
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec, resolve_name
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

from startup.imports.distributions import import_later, note_package
from startup.imports.finder import before_import, cancel
from startup.imports.late_modules import delay_module, is_loaded, namespace_of


class LateImport(NamedTuple):
    """An import statement of the module `importer`, which uses the result only after its own import.

    If it imports a module, this is a late module. If it imports names of a module, these are late names. The
    importer may use such a name only in calls, annotations and instance checks.
    """

    importer: str
    module: str
    requires: str | None = None
    """A package that a statement in a `try` needs. Without it, the statement runs and raises ImportError."""


@contextmanager
def late_names(late: Iterable[LateImport]) -> Iterator[None]:
    """Inside this context, the import statements in `late` return late modules and late names."""
    statements: dict[str, dict[str, str | None]] = defaultdict(dict)
    for entry in late:
        statements[entry.importer][entry.module] = entry.requires
    actions = [(name, functools.partial(_delay_imports, modules)) for name, modules in statements.items()]
    for name, action in actions:
        before_import(name, action)
    try:
        yield
    finally:
        for name, action in actions:
            cancel(name, action)


def _delay_imports(late: Mapping[str, str | None], importer: ModuleType) -> None:
    """Gives the module `importer` an `__import__` that delays its statements while the module's code is run.

    When Python begins to run code, it takes the built-in names, such as `__import__`, from the module's
    `__builtins__`. Functions that the module's code defines get the usual built-in names.
    """
    namespace = vars(importer)

    def import_late(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
        namespace["__builtins__"] = vars(builtins)  # for functions that are defined from now on
        wanted = resolve_name("." * level + name, namespace["__package__"]) if level else name
        for module in (f"{wanted}.{each}" for each in fromlist or ()):
            if module in late:  # the statement then finds it in its package
                delay_module(module, namespace, functools.partial(LateName, module, importer=namespace))
        if wanted not in late or _is_complete(wanted, fromlist) or not is_installed(late[wanted]):
            return builtins.__import__(name, globals, locals, fromlist, level)
        if fromlist:
            if type(importer) is ModuleType:
                importer.__class__ = WithLateNames
            return SimpleNamespace(**{name: LateName(wanted, name, namespace) for name in fromlist})
        if delay_module(wanted, namespace, functools.partial(LateName, wanted, importer=namespace)) is None:
            return builtins.__import__(name, globals, locals)
        return sys.modules[wanted.partition(".")[0]]

    namespace["__builtins__"] = {**vars(builtins), "__import__": import_late}


class WithLateNames(ModuleType):
    """A module with late names, which only its own code sees. Other modules get the real objects.

    Once all of them are real, it is an ordinary module again.
    """

    def __getattribute__(self, key: str) -> Any:
        value = super().__getattribute__(key)
        return value.real() if type(value) is LateName else value


class LateName:
    """Stands for an object of a module. Using a LateName imports the module.

    Only an instance check does not, because classes of a module that is not loaded have no instances. A union
    with a LateName occurs only in a function's annotation, and is therefore `Any`.
    """

    def __init__(self, module: str, name: str, importer: dict[str, Any]) -> None:
        self.__late = (module, name, importer)
        note_package(module)

    def real(self) -> Any:
        """Returns the real object, which also replaces the LateName in the importing module."""
        module, name, importer = self.__late
        value: Any = getattr(import_later(module), name)
        for key in [key for key, current in importer.items() if current is self]:
            importer[key] = value
        owner = sys.modules.get(importer["__name__"])
        if type(owner) is WithLateNames and not any(type(each) is LateName for each in [*importer.values()]):
            owner.__class__ = ModuleType  # type: ignore[assignment]
        return value

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real(), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.real()(*args, **kwargs)

    def __instancecheck__(self, instance: object) -> bool:
        return is_loaded(self.__late[0]) and isinstance(instance, self.real())

    def __subclasscheck__(self, subclass: type) -> bool:
        return is_loaded(self.__late[0]) and issubclass(subclass, self.real())

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self.real(),)

    def __reduce__(self) -> Any:
        module, name, _ = self.__late
        return pkgutil.resolve_name, (f"{module}:{name}",)

    def __or__(self, other: Any) -> Any:
        return Any

    __ror__ = __or__


def _is_complete(module: str, names: Iterable[str] | None) -> bool:
    """Whether the module is loaded and has each of these names, none of them late."""
    if not is_loaded(module):
        return False
    values = (namespace_of(sys.modules[module]).get(name) for name in names or ())
    return not any(type(value) is LateName for value in values)


def is_installed(package: str | None) -> bool:
    """Whether the package can be imported. True for None."""
    try:
        return package is None or find_spec(package) is not None
    except ImportError:
        return False
