"""A process that ends without finalizing has run its exit functions and written all its output."""

import subprocess
import sys
import textwrap


def test_exit_functions_run_and_objects_are_not_freed() -> None:
    program = textwrap.dedent(
        """
        import atexit, sys, threading, time
        from startup.processes.quick_end import end_without_finalizing

        class Reports:
            def __del__(self):
                print("freed")

        kept = Reports()
        atexit.register(print, "exit function")
        threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
        code = end_without_finalizing(7)
        print("afterwards", end="")
        sys.exit(code)
        """
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (7, "")
    assert done.stdout == "exit function\nafterwardsthread\n"
