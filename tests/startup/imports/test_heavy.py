"""Heavy imports are serial, on the main thread, and leave the collector as it was."""

import subprocess
import sys
import threading

import pytest

from startup.imports.heavy import import_serially


def test_another_thread_is_rejected() -> None:
    errors: list[BaseException] = []

    def run() -> None:
        try:
            import_serially(["json"])
        except RuntimeError as err:
            errors.append(err)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert "main thread" in str(errors[0])


def test_collector_is_off_during_the_imports_and_on_afterwards() -> None:
    code = (
        "import gc, sys\n"
        "from startup.imports.heavy import import_serially\n"
        "seen = []\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        seen.append(gc.isenabled())\n"
        "sys.meta_path.insert(0, Finder())\n"
        "import_serially(['wave', 'tabnanny'])\n"
        "print(any(seen), len(seen) > 1, gc.isenabled(), gc.get_freeze_count() > 0)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert out.split() == ["False", "True", "True", "True"]


def test_modules_are_imported_in_the_order_given() -> None:
    code = (
        "import sys\n"
        "from startup.imports.heavy import import_serially\n"
        "import_serially(['wave', 'tabnanny'])\n"
        "names = list(sys.modules)\n"
        "print(names.index('wave') < names.index('tabnanny'))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "True\n"


def test_missing_module_is_an_import_error() -> None:
    with pytest.raises(ModuleNotFoundError):
        import_serially(["no_such_module_anywhere"])
