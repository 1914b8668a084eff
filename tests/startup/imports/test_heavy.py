"""Heavy imports are on the main thread, and leave the collector as it was."""

import gc
import threading

from startup.imports.heavy import importing


def test_another_thread_is_rejected() -> None:
    errors: list[BaseException] = []

    def run() -> None:
        try:
            with importing():
                pass
        except RuntimeError as err:
            errors.append(err)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert "main thread" in str(errors[0])


def test_collector_is_off_during_the_imports_and_on_afterwards() -> None:
    try:
        with importing():
            assert not gc.isenabled()
        assert gc.isenabled()
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
