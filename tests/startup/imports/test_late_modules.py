"""A late module is like one that is imported at once, whatever a program does with it first."""

import copy
import importlib
import inspect
import json
import os
import pickle
import pkgutil
import shutil
import subprocess
import sys
import typing
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import pytest

from startup.imports.finder import after_import, before_import
from startup.imports.late_modules import is_late, is_loaded
from startup.imports.late_names import LateImport, late_names
from tests.startup.conftest import ToyPackages
from tests.support.cli import python_output

NAME: Final = "heavy.part"
_HEAVY: Final = '''
"""Text."""
import sys
assert getattr(sys.modules[__name__].__spec__, "_initializing", True)
runs = sys.modules.setdefault("counted", [])
runs.append(__name__)
LIMIT = 3

class Fault(Exception): ...

class Tool:
    """A tool."""
    size = 3

    def other(self, tool: "Tool") -> "Tool": ...

def make(*words):
    return words

def fail():
    raise Fault("text")

def __getattr__(name):
    if name == "computed":
        return "by __getattr__"
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
'''
_IMPORTER: Final = """
from heavy import part

def annotated(tool: part.Tool | None, other: "part.Tool" = None) -> part.Tool: ...
"""


@pytest.fixture
def late_toys(toys: ToyPackages) -> ToyPackages:
    toys.write(NAME, _HEAVY)
    toys.write("light", _IMPORTER)
    return toys


def import_light(*, is_late: bool = True) -> ModuleType:
    """Imports `light` and returns its `heavy.part`."""
    with late_names([LateImport("light", NAME)] if is_late else []):
        part: ModuleType = importlib.import_module("light").part
    return part


def _run(code: str) -> dict[str, Any]:
    exec(code, namespace := {"__name__": "unlisted"})
    return namespace


def _set(module: Any) -> object:
    module.LIMIT, module.added = 5, "added"
    return _run(f"from {NAME} import LIMIT, added\nimport {NAME}"), sys.modules["light"].part.added


def _delete(module: Any) -> object:
    del module.LIMIT
    return hasattr(module, "LIMIT"), "LIMIT" in dir(module)


def _catch(module: Any) -> object:
    try:
        return module.fail()
    except module.Fault as err:
        return type(err) is module.Fault, str(err)


def _match(module: Any) -> bool:
    match module.Tool():
        case module.Tool():
            return True
    return False


def _error_of(action: Callable[[], object]) -> str:
    try:
        action()
    except Exception as err:  # noqa: BLE001 - the test compares it
        return f"{type(err).__name__}: {err}"
    return "none"


_OPERATIONS: Final[dict[str, Callable[[Any], object]]] = {
    "__dict__": lambda module: module.__dict__["make"](1),
    "vars": lambda module: sorted(vars(module)),
    "dir": dir,
    "getmembers": lambda module: [name for name, _ in inspect.getmembers(module)],
    "ismodule": lambda module: (inspect.ismodule(module), isinstance(module, ModuleType)),
    "type after a use": lambda module: (module.LIMIT, type(module)),
    "repr": repr,
    "doc": lambda module: (module.__doc__, inspect.getdoc(module)),
    "source": inspect.getsource,
    "file": lambda module: (module.__name__, module.__file__, module.__cached__, module.__package__),
    "loader": lambda module: (type(module.__loader__), module.__spec__.loader is module.__loader__),
    "path": lambda module: hasattr(module, "__path__"),
    "missing": lambda module: _error_of(lambda: module.missing),
    "missing with default": lambda module: getattr(module, "missing", "default"),
    "module's __getattr__": lambda module: module.computed,
    "set": _set,
    "delete": _delete,
    "reload": lambda module: (importlib.reload(module) is module, module.runs),
    "except": _catch,
    "match": _match,
    "class as key": lambda module: {module.Tool: 1}[sys.modules[NAME].Tool],
    "isinstance": lambda module: isinstance(module.Tool(), sys.modules[NAME].Tool),
    "issubclass": lambda module: issubclass(type("Own", (module.Tool,), {}), module.Tool),
    "type hints": lambda module: typing.get_type_hints(module.Tool.other)["return"] is module.Tool,
    "pickled class": lambda module: pickle.loads(pickle.dumps(module.Tool)) is module.Tool,
    "pickled instance": lambda module: type(pickle.loads(pickle.dumps(module.Tool()))) is module.Tool,
    "copied object": lambda module: type(copy.deepcopy(module.Tool())) is module.Tool,
    "find_spec": lambda module: find_spec(NAME).origin == module.__file__,  # type: ignore[union-attr]
    "resolve_name": lambda module: pkgutil.resolve_name(f"{NAME}:Tool") is module.Tool,
    "import_module": lambda module: importlib.import_module(NAME) is module,
    "__import__": lambda module: __import__(NAME).part is module,
    "sys.modules": lambda module: sys.modules[NAME] is module,
    "import": lambda module: (_run(f"import {NAME} as part")["part"] is module, is_loaded(NAME)),
    "from import": lambda module: _run(f"from {NAME} import Tool")["Tool"] is module.Tool,
    "from package import": lambda module: _run("from heavy import part")["part"] is module,
    "import star": lambda module: sorted(_run(f"from {NAME} import *")),
    "attribute of the package": lambda module: sys.modules["heavy"].part is module,  # type: ignore[attr-defined]
    "hash and equality": lambda module: (module in {module}, module == sys.modules[NAME]),
}


@pytest.mark.parametrize("name", _OPERATIONS)
def test_an_operation_has_the_result_that_it_has_with_another_module(name, late_toys):
    results = []
    for late in (False, True):
        module = import_light(is_late=late)
        assert is_late(NAME) == late
        results.append(str(_OPERATIONS[name](module)).replace(hex(id(module)), "id"))
        assert module is sys.modules["light"].part
        assert module.make(1) == (1,)
        assert type(sys.modules[NAME]) is ModuleType
        for each in ("light", "heavy", NAME, "counted"):
            del sys.modules[each]
    assert results[0] == results[1]


def test_it_waits_for_its_use_whoever_looks_through_all_modules(late_toys):
    module = import_light()
    assert inspect.getmodule(sys._getframe()) is sys.modules[__name__]
    assert not isinstance(module, str)
    for each in list(sys.modules.values()):
        isinstance(each, dict)
        getattr(each, "__file__", None)
    assert is_late(NAME)
    seen: list[str] = []
    after_import(NAME, lambda module: seen.append(f"after {module.LIMIT}"))
    before_import(NAME, lambda module: seen.append(f"before {module.__name__}"))
    assert (is_late(NAME), seen) == (True, [])
    assert module.LIMIT == 3
    assert seen == [f"before {NAME}", "after 3"]
    assert sys.modules["counted"] == [NAME]


def test_a_module_itself_is_pickled_by_its_name_as_cloudpickle_does(late_toys):
    data = pickle.dumps(import_light())
    assert pickle.loads(data) is sys.modules[NAME] is sys.modules["light"].part


def test_a_loaded_module_stays_as_it_is(late_toys):
    loaded = importlib.import_module(NAME)
    assert import_light() is loaded
    assert not is_late(NAME)


def test_an_unlisted_import_statement_gets_the_error(late_toys):
    """The code of the importer chooses another way then, as in plain Python."""
    late_toys.write(NAME, "import absent\n")
    module = import_light()
    late_toys.write("unlisted", f"try:\n    import {NAME} as part\nexcept ImportError as err:\n    part = err.name\n")
    is_at_statement = sys.version_info >= (3, 13)  # older interpreters ignore errors of `__spec__`
    assert importlib.import_module("unlisted").part == ("absent" if is_at_statement else module)
    assert NAME not in sys.modules
    with pytest.raises(ModuleNotFoundError, match="absent"):
        _ = module.Tool


def test_a_missing_module_is_missing_at_the_listed_statement(late_toys):
    late_toys.write("light", "try:\n    import absent\nexcept ImportError as err:\n    part = err.name\n")
    with late_names([LateImport("light", "absent")]):
        assert importlib.import_module("light").part == "absent"


def test_code_that_fails_runs_again_at_the_next_use(late_toys):
    late_toys.write(NAME, "import light\nleft = 1\nif not light.is_fixed: raise ValueError('not yet')\n")
    late_toys.write("light", f"{_IMPORTER}\nis_fixed = False\n")
    module = import_light()
    with pytest.raises(ValueError, match="not yet"):
        _ = module.left
    assert NAME not in sys.modules
    sys.modules["light"].is_fixed = True  # type: ignore[attr-defined]
    assert module.left == 1
    assert sys.modules[NAME] is module


def test_modules_that_import_each_other_see_what_is_defined_so_far(late_toys):
    late_toys.write(NAME, "first = 1\nimport heavy.friend\nsecond = heavy.friend.second\n")
    late_toys.write("heavy.friend", "from heavy.part import first\nimport light\nsecond = light.part.first + first\n")
    assert import_light().second == 2


def test_a_submodule_s_import_runs_the_code_of_a_late_package_first(late_toys):
    late_toys.write("heavy.part.inner", "from heavy.part import LIMIT\n")
    Path(late_toys._folder / "heavy/part/__init__.py").write_text(_HEAVY)
    module = import_light()
    assert is_late(NAME)
    assert importlib.import_module(f"{NAME}.inner").LIMIT == 3
    assert module.inner is sys.modules[f"{NAME}.inner"]


def test_code_may_replace_its_module_or_its_class(late_toys):
    replaced = "import sys, types\nother = types.ModuleType(__name__)\nother.LIMIT = 7\nsys.modules[__name__] = other\n"
    late_toys.write(NAME, replaced)
    module = import_light()
    assert (module.LIMIT, importlib.import_module(NAME).LIMIT) == (7, 7)
    late_toys.write("second", "from odd import part\n")
    late_toys.write("odd.part", f"{_HEAVY}\nclass Own(type(sys)): ...\nsys.modules[__name__].__class__ = Own\n")
    with late_names([LateImport("second", "odd.part")]):
        odd = importlib.import_module("second").part
    assert odd.LIMIT == 3
    assert type(odd).__name__ == "Own"


def test_a_finder_of_another_program_may_make_another_module(late_toys, monkeypatch):
    module = import_light()
    finders = [finder for finder in sys.meta_path if type(finder).__name__ != "_Finder"]
    monkeypatch.setattr(sys, "meta_path", finders)
    assert module.make(1) == (1,)
    assert module.make is sys.modules[NAME].make  # type: ignore[attr-defined]


def test_a_package_that_was_installed_anew_meanwhile_is_refused(late_toys):
    module = import_light()
    late_toys.write("heavy.__init__", "version = 'another one'\n")
    with pytest.raises(ImportError, match="heavy was installed anew while this server was running"):
        _ = module.Tool


def test_a_stand_in_for_an_annotation_is_the_class_once_it_is_used(late_toys):
    light = importlib.import_module("light") if import_light() else None
    assert is_late(NAME)
    hint = light.annotated.__annotations__["return"]  # type: ignore[union-attr]
    assert hint() and type(hint()) is sys.modules[NAME].Tool


_THREADS: Final = """
import importlib, json, os, sys, threading
from pathlib import Path
from startup.imports.late_modules import is_late
from startup.imports.late_names import LateImport, late_names

folder = Path(sys.argv[1])
sys.path.insert(0, str(folder))
sys.setswitchinterval(1e-6)
failed = []

def together(*actions):
    barrier = threading.Barrier(len(actions))
    def run(action):
        barrier.wait()
        try:
            action()
        except BaseException as err:
            failed.append(repr(err))
    threads = [threading.Thread(target=run, args=(action,), daemon=True) for action in actions]
    for thread in threads: thread.start()
    for thread in threads: thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "two threads wait for each other"

for number in range(40):
    for name, text in {
        f"slow{number}": "import time\\nfirst = 1\\ntime.sleep(0.002)\\nimport other%d\\nlast = 2\\n",
        f"other{number}": "import time\\ntime.sleep(0.001)\\nimport slow%d\\ntime.sleep(0.001)\\nlast = 3\\n",
        f"light{number}": "import slow%d as slow\\n",
    }.items():
        (folder / f"{name}.py").write_text(text.replace("%d", str(number)))
    importlib.invalidate_caches()
    with late_names([LateImport(f"light{number}", f"slow{number}")]):
        light = importlib.import_module(f"light{number}")
    def use():
        assert light.slow.last == 2
        assert sys.modules[f"slow{number}"] is light.slow
    def use_by_import():
        assert importlib.import_module(f"slow{number}").first == 1
    def import_other():
        assert importlib.import_module(f"other{number}").last == 3
    together(*([use, use_by_import] * 4 if number % 2 else [use, import_other]))

with late_names([LateImport("forked", "slow_fork")]):
    (folder / "slow_fork.py").write_text("last = 4\\n")
    (folder / "forked.py").write_text("import slow_fork as slow\\n")
    importlib.invalidate_caches()
    forked = importlib.import_module("forked")
pid = os.fork()
if pid == 0:
    os._exit(forked.slow.last)
code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
print(json.dumps({"failed": failed, "fork": code, "late": is_late("slow_fork")}))
"""


@pytest.mark.thorough
@pytest.mark.parametrize("version", [f"3.{minor}" for minor in range(11, 16)])
def test_threads_that_use_it_at_once_get_the_whole_module_and_never_wait_for_each_other(version, tmp_path):
    """With each Python of this machine."""
    python = shutil.which(f"python{version}") or sys.executable
    probe = [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    found = subprocess.run(probe, capture_output=True, text=True).stdout.strip()
    if found != version:
        pytest.skip(f"no Python {version}")
    command = [python, "-c", _THREADS, tmp_path]
    variables = {**os.environ, "PYTHONPATH": os.fspath(Path(__file__).parents[3]), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=variables, timeout=200)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"failed": [], "fork": 4, "late": True}


_CLOSED: Final = """
import importlib, json, sys, threading
from startup.imports import finder
from startup.imports.late_modules import is_late
from startup.imports.late_names import LateImport, late_names
from startup.imports.learned_imports import learn_beside, learned_imports

with learned_imports(), late_names([LateImport("parcel", "parcel.inner")]):
    import parcel
    if sys.argv[1] == "while it is open":
        parcel.inner.LIMIT
    served = sorted({name for file in finder._finder.files for name in file.served if name.startswith("parcel")})
late = is_late("parcel.inner")
thread = threading.Thread(target=lambda: parcel.inner.LIMIT)
thread.start()
thread.join()
learn_beside(["parcel", "parcel.inner"])
print(json.dumps({"served": served, "late": late, "limit": parcel.inner.LIMIT}))
"""


@pytest.mark.thorough
@pytest.mark.parametrize("used", ["while it is open", "later, on another thread"])
def test_its_code_comes_from_the_import_file_while_that_is_open(used, tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    package = tmp_path / "site" / "parcel"
    package.mkdir(parents=True)
    (package.parent / "parcel-1.0.dist-info").mkdir()
    (package / "__init__.py").write_text("from . import inner\n")
    (package / "inner.py").write_text("LIMIT = 3\n")
    for path in package.iterdir():
        os.utime(path, (1_700_000_000, 1_700_000_000))
    variables = {"VLLM_CACHE_ROOT": str(tmp_path / "cache"), "PYTHONPATH": str(package.parent)}
    outputs = [json.loads(python_output(_CLOSED, used, environment=variables)) for _ in range(2)]
    served = ["parcel", "parcel.inner"] if used == "while it is open" else ["parcel"]
    late = used != "while it is open"
    assert outputs == [{"served": [], "late": late, "limit": 3}, {"served": served, "late": late, "limit": 3}]
