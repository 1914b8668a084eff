"""Checks from sources whether hooks fit the installed or unpacked version of each package."""

import ast
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple, TypeAlias

from startup.hooks.hook import Hook, Name, Need, Reads, Release, Text
from startup.hooks.sources import Sources, attributes_read, has_pattern

HookState: TypeAlias = Literal["applies", "does not apply", "does not fit", "not needed", "not checked"]
"""`does not apply`: this is known of the release of vLLM. `not checked`: packages are missing."""


class Finding(NamedTuple):
    """The result for one hook."""

    hook: str
    state: HookState
    reasons: tuple[str, ...] = ()
    """What is missing or changed, or which packages are missing."""


def check_hooks(hooks: Iterable[Hook], sources: Sources, release: Release) -> list[Finding]:
    """One finding per hook, in order."""
    return [_check(hook, sources, release) for hook in hooks]


def _check(hook: Hook, sources: Sources, release: Release) -> Finding:
    if not hook.is_for(release):
        return Finding(hook.name, "not needed")
    if release in hook.not_in:
        return Finding(hook.name, "does not apply", (hook.not_in[release],))
    absent = {root for need in hook.needs if sources.find_package(root := _root(need)) is None}
    present = [need for need in hook.needs if _root(need) not in absent]
    reasons = tuple(reason for need in present for reason in _reasons(need, sources))
    if reasons:
        return Finding(hook.name, "does not fit", reasons)
    if absent:
        return Finding(hook.name, "not checked", tuple(f"{root} is not installed here" for root in sorted(absent)))
    return Finding(hook.name, "applies")


def _root(need: Need) -> str:
    """The package that the need is about."""
    if isinstance(need, Text):
        return need.modules[0].partition(".")[0]
    name = need.function if isinstance(need, Reads) else need
    return name.module.partition(".")[0]


def _reasons(need: Need, sources: Sources) -> Iterator[str]:
    """Why the need is not met; nothing if it is."""
    if isinstance(need, Text):
        texts = [text for module in need.modules if (text := sources.text(module)) is not None]
        if not any(has_pattern(text, need.pattern) for text in texts):
            yield f"{' or '.join(need.modules)}: {need.meaning} is not found"
        return
    name = need if isinstance(need, Name) else need.function
    if sources.text(name.module) is None:
        yield f"module {name.module} is missing"
        return
    definition = sources.find(name.module, name.path) if name.path else None
    if name.path and definition is None:
        yield f"{name.module} has no {name.path}"
    elif isinstance(need, Reads):
        if unknown := attributes_read(definition, need.argument).difference(need.attributes):  # type: ignore[arg-type]
            yield f"{name.module}.{name.path} reads {', '.join(sorted(unknown))} of {need.argument} too"
    elif name.parameters is not None and isinstance(definition, ast.FunctionDef | ast.AsyncFunctionDef):
        yield from _differences(name, definition)


def _differences(name: Name, function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    """Parameters that the hook passes and the function does not take, or needs and does not get."""
    signature = function.args
    positional = [*signature.posonlyargs, *signature.args]
    if "." in name.path and positional and positional[0].arg in ("self", "cls"):
        positional = positional[1:]
    optional = {arg.arg for arg in positional[len(positional) - len(signature.defaults) :]}
    optional |= {arg.arg for arg, value in zip(signature.kwonlyargs, signature.kw_defaults, strict=True) if value}
    taken = [arg.arg for arg in (*positional, *signature.kwonlyargs)]
    passed = name.parameters or ()
    unknown = [] if signature.kwarg else [parameter for parameter in passed if parameter not in taken]
    needed = [parameter for parameter in taken if parameter not in passed and parameter not in optional]
    if unknown:
        yield f"{name.module}.{name.path} takes no {', '.join(unknown)}"
    if needed:
        yield f"{name.module}.{name.path} needs {', '.join(needed)}"
