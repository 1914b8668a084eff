"""Imports transformers with stand-ins for modules that serving never uses. This saves a third of the time.

For tensor parallelism, transformers imports `torch.distributed.tensor`, which imports `torch._dynamo` and
sympy. The GGUF reader of transformers reads the sources of all models. torch uses symbolic shapes whenever a
model is created on the meta device. An engine on one device needs only names for annotations, false
`isinstance` checks, decorators that affect only torch.compile, and conditions on plain numbers. Stand-ins
provide all of these.
"""

import importlib
import operator
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import reduce
from importlib.util import find_spec
from typing import Any, Final

from startup.hook import Hook, Name, uses
from startup.imports.scan_cache import cached_scans
from startup.imports.stand_ins import StandIns

_LEFT_OUT_OF_TORCH: Final = ("torch._meta_registrations", "torch.export")
"""Modules of torch that serving does not use.

The first module has rules in Python for tensors without data, but the meta device uses rules in C++. The
second module exports models, and copies torch's operators into Python for this purpose.
"""
_LEFT_OUT_OF_IMPORTS: Final = ("accelerate",)
"""transformers uses names of accelerate only to distribute a model over several devices."""
SHAPES: Final = "torch.fx.experimental.symbolic_shapes"
"""This module imports sympy, which takes 0.2 s of a start."""
LEFT_OUT: Final = (
    "sympy",
    "torch._dynamo",
    "torch.distributed._composable",
    "torch.distributed._functional_collectives",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    SHAPES,
    "transformers.modeling_gguf_pytorch_utils",
)


class LeftOut:
    """The stand-ins that this process has installed so far."""

    def __init__(self, stand_ins: Sequence[StandIns] = ()) -> None:
        self._stand_ins = list(stand_ins)

    def end(self) -> None:
        """Removes the stand-ins, so that imports give the real modules.

        Call it once the model is built, because torch's own initialisers import the replaced modules, too.
        """
        for stand_ins in self._stand_ins:
            stand_ins.remove()

    def restore(self) -> bool:
        """Imports torch's modules that were replaced. Returns False if no module was replaced."""
        if not self._stand_ins:
            return False
        self.end()
        self._stand_ins.clear()
        _import_all(_LEFT_OUT_OF_TORCH)
        return True


def import_lean(modules: Sequence[str]) -> LeftOut:
    """Imports torch and `modules`, with stand-ins that stay installed, unless lean imports are left out.

    If an import fails, repeats it without stand-ins. Another version of transformers may use more of a
    replaced module than its stand-in supports.
    """
    if not uses("lean imports") or not STAND_INS.applies:
        with cached_scans():
            _import_all(("torch", *modules))
        return LeftOut()
    from_torch, stand_ins = StandIns(_LEFT_OUT_OF_TORCH), StandIns(LEFT_OUT, functions={SHAPES: SHAPE_FUNCTIONS})
    of_imports = StandIns([name for name in _LEFT_OUT_OF_IMPORTS if find_spec(name) is not None])
    from_torch.install()
    importlib.import_module("torch")
    before = set(sys.modules)
    stand_ins.install()
    try:
        with cached_scans(), ExitStack() as stack:
            of_imports.install()
            stack.callback(of_imports.remove)
            _import_all(modules)
    except Exception:  # noqa: BLE001 - a stand-in may cause any error; the second import has none
        stand_ins.remove()
        for name in set(sys.modules) - before:
            if name.partition(".")[0] != "torch":  # torch's modules register operators, which works only once
                del sys.modules[name]
        _import_all(modules)
    return LeftOut([from_torch, stand_ins])


def _import_all(modules: Sequence[str]) -> None:
    for module in modules:
        importlib.import_module(module)


def _itself(value: int, skip: int = 0) -> int:
    return value


def _sym_eq(x: Any, y: Any) -> bool:
    if isinstance(x, tuple | list) and isinstance(y, tuple | list):
        return list(x) == list(y)
    return bool(x == y)


SHAPE_FUNCTIONS: Final[Mapping[str, Callable[..., int]]] = {
    "expect_true": _itself,
    "guard_or_false": _itself,
    "guard_or_true": _itself,
    "guarding_hint_or_throw": _itself,
    "has_guarding_hint": lambda size: True,
    "is_nested_int": lambda size: False,
    "statically_known_true": _itself,
    "sym_and": lambda *conditions: reduce(operator.and_, conditions),
    "sym_eq": _sym_eq,
    "sym_or": lambda *conditions: reduce(operator.or_, conditions),
}
"""Replacements for torch's functions for symbolic shapes. Without torch.compile, all sizes are numbers."""

STAND_INS: Final = Hook(
    "stand-ins of the embedded engine",
    does="leaves out modules of torch and transformers that serving does not use",
    without="the embedded engine imports them",
    gain_in=("embedded, eager, later",),
    needs=tuple(map(Name, (*_LEFT_OUT_OF_TORCH, SHAPES))),
)
