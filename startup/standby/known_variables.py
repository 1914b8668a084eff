"""Which environment variables differ between starts without consequence, and which are read by C libraries.

The entries follow what runs of the embedded engine and of vLLM 0.32 have read, in Python (recorded) and in C
(an interposed libc function). A name that is in no table counts only if Python code has read it on import.
"""

from collections.abc import Callable
from typing import Final

LOAD_TIME_NAMES: Final = frozenset(
    {
        "ACC_DEVICE_NUM",
        "ACC_DEVICE_TYPE",
        "GCONV_PATH",
        "GLIBC_TUNABLES",
        "LOCPATH",
        "LRU_CACHE_CAPACITY",
        "MPI_LOCALNRANKS",
        "NLSPATH",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
        "RUST_LOG",
        "RUST_LOG_STYLE",
        "THP_MEM_ALLOC_ENABLE",
        "TOKENIZERS_LOG",
        "__PYVENV_LAUNCHER__",
    }
)
"""Read by the loader, the interpreter or a library's initialisation."""

LOAD_TIME_PREFIXES: Final = (
    "BLIS_",
    "DNNL_",
    "GFORTRAN_",
    "GOMP_",
    "GOTOBLAS_",
    "GOTO_",
    "GRPC_",
    "HEAP",  # gperftools
    "INTEL_",  # ittnotify
    "I_MPI_",
    "KINETO_",
    "KMP_",
    "LD_",
    "LIBC_",
    "LLVM_",
    "MALLOC_",
    "MKLDNN_",
    "MKL_",
    "NETWORKX_",  # listed and filtered in Python
    "NPY_",
    "NUMEXPR_",
    "NUMPY_",
    "OMP_",
    "ONEDNN_",
    "OPENBLAS_",
    "OPENCV_",
    "OPENSSL_",
    "PYTHON",
    "PYTORCH_",
    "TCMALLOC",
    "TORCH_",
    "TQDM_",  # listed and filtered in Python
    "TRITON_",
    "XGRAMMAR_",
)
"""Families of variables of which libraries read some when they are loaded."""

WITHOUT_EFFECT: Final = {
    # the session and the terminal
    "COLORTERM": "of the terminal",
    "COLUMNS": "read at each use",
    "DISPLAY": "no library here opens a window",
    "FORCE_COLOR": "vLLM configures its log after the fork",
    "HOSTNAME": "read at each use",
    "INVOCATION_ID": "of systemd, read at each use",
    "JOURNAL_STREAM": "of systemd, read at each use",
    "LINES": "read at each use",
    "LISTEN_FDNAMES": "of systemd, read at each use",
    "LISTEN_FDS": "of systemd, read at each use",
    "LISTEN_PID": "of systemd, read at each use",
    "LNAME": "as LOGNAME",
    "LOGNAME": "only in the name of a cache's folder",
    "LS_COLORS": "of the terminal",
    "MAINPID": "of systemd",
    "NOTIFY_SOCKET": "of systemd, read at each use",
    "NO_COLOR": "vLLM configures its log after the fork",
    "OLDPWD": "of the shell",
    "PWD": "of the shell; the working folder itself is set in the fork",
    "SHELL": "used by child processes only",
    "SHLVL": "of the shell",
    "STY": "of the terminal",
    "TERM": "read at each use",
    "TMUX": "of the terminal",
    "TMUX_PANE": "of the terminal",
    "USER": "as LOGNAME",
    "USERNAME": "as LOGNAME",
    "VIRTUAL_ENV": "of the shell; the interpreter's prefix is compared",
    "WATCHDOG_PID": "of systemd, read at each use",
    "WATCHDOG_USEC": "of systemd, read at each use",
    "WAYLAND_DISPLAY": "no library here opens a window",
    "WINDOWID": "of the terminal",
    "_": "of the shell",
    # read again at each use
    "PATH": "commands are looked up at each use",
    "TORCHINDUCTOR_CACHE_DIR": "read at each use",
    "VCLI_BAKED": "read at each use",
    "VLLM_CACHE_ROOT": "read at each use",
    "VLLM_LOGGING_COLOR": "vLLM configures its log after the fork",
    "VLLM_LOGGING_LEVEL": "vLLM configures its log after the fork",
    "VLLM_LOGGING_STREAM": "vLLM configures its log after the fork",
    "XDG_RUNTIME_DIR": "read at each use",
    # libraries' copies that startup/processes/library_state.py corrects
    "HF_HUB_OFFLINE": "set again in huggingface_hub",
    "HF_TOKEN": "set again in huggingface_hub",
    "PROMETHEUS_MULTIPROC_DIR": "set again in prometheus_client",
    "TRANSFORMERS_OFFLINE": "set again in huggingface_hub",
    "TZ": "time.tzset",
}
"""Variables that may differ although they are read on import, each with the reason."""

WITHOUT_EFFECT_PREFIXES: Final = (
    "BYOBU_",
    "CONDA_PROMPT_",
    "DBUS_",
    "GPG_",
    "SSH_",
    "TERM_",
    "VSCODE_",
    "VTE_",
    "WEZTERM_",
    "XDG_SESSION_",
)
"""Families of such variables: they belong to the session or to the terminal."""


def _is_count(before: str | None, value: str | None) -> bool:
    return value is not None and value.isdecimal() and int(value) > 0


def _is_flag(before: str | None, value: str | None) -> bool:
    return value is not None


def _hides_gpus_as_before(before: str | None, value: str | None) -> bool:
    """CUDA reads the variable later; but on import, vLLM disables Triton if no GPU is visible."""
    return _hides_gpus(before) == _hides_gpus(value)


def _hides_gpus(value: str | None) -> bool:
    return value is not None and value.strip().lower() in {"", "-1", "none", "void"}


CORRECTABLE_VALUES: Final[dict[str, Callable[[str | None, str | None], bool]]] = {
    "CUDA_VISIBLE_DEVICES": _hides_gpus_as_before,
    "OMP_NUM_THREADS": _is_count,  # torch.set_num_threads
    "TORCHINDUCTOR_COMPILE_THREADS": _is_count,  # set again in torch's configuration
    "TORCHINDUCTOR_CPP_DYNAMIC_THREADS": _is_flag,
}
"""Whether a change from one value to another can be applied after the fork, as `library_state` does."""
