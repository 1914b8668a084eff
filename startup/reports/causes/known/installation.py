"""Causes about the installation: libraries, compilers, caches, versions, the command line."""

from typing import Final

from startup.reports.causes.known_cause import KnownCause
from startup.reports.causes.phase import COMMAND_LINE, CONFIGURATION

ERROR_IN_CODE: Final = KnownCause(
    "error-in-code",
    "vLLM's own code failed: a bug, or versions of packages that do not fit each other",
    (
        "^AssertionError",
        "^AttributeError",
        "^IndexError",
        "^KeyError",
        "^NameError",
        "^NotImplementedError",
        "^RecursionError",
        "^TypeError",
        "^UnboundLocalError",
        "^ZeroDivisionError",
        "^torch._dynamo.exc.TorchRuntimeError",
        "must have same reduction dim",
        "must match the size of tensor",
        "must match the existing size",
        "shape mismatch:",
        "is invalid for input of size",
        "shapes cannot be multiplied",
        "have the same dtype",
        "expected scalar type",
        "values to unpack",
        "Failed to apply … on data=",
    ),
    "Search vLLM's issues for the text; try its newest release with the transformers that it asks for; start without "
    "the feature or plugin that the traceback names.",
    is_general=True,
)
"""For an exception about which nothing else is known."""

SETTING_REFUSED: Final = KnownCause(
    "setting-refused",
    "vLLM refuses these settings or this model, and says why",
    (),
    "Search vLLM's issues for this line; leave out the flags that it is about; a newer vLLM may take them.",
    is_general=True,
)
"""For an exception that recommends or refuses something; the digest shows what it names. Has no texts."""

LOADED_FROM_DISK: Final = "Directly load AOT compilation"
"""vLLM's message that it has loaded a model compiled before, if an exception follows."""

INSTALLATION: Final = (
    KnownCause(
        "packages-replaced",
        "packages of the environment were replaced while this process ran, or only in part",
        ("(deleted): cannot open shared object file", "-packages/~"),
        "Start the server again; install into an environment only while nothing runs from it. If it fails again, "
        "delete site-packages/~*, which an interrupted pip leaves, and install that package again.",
    ),
    KnownCause(
        "flash-attention-required",
        "a feature that the flags or the model ask for runs only with FlashAttention",
        ("requires FlashAttention", "requires flash_attn", "requires flash-attn", "FlashAttention2 has been toggled"),
        "Give --attention-backend FLASH_ATTN, on an NVIDIA GPU from Ampere on (version 3: Hopper); else omit what the "
        "text is about. If the package flash_attn is meant, install the build for this torch.",
    ),
    KnownCause(
        "libraries-do-not-fit",
        "compiled libraries were built for another version of torch",
        (
            "undefined symbol",
            "Tried to instantiate class '_core_C",
            "has no attribute '_C'",
            "'_C' object has no attribute",
            "'_OpNamespace' '_",
            "Could not run '_C::",
            "version `GLIBC",
            "A module that was compiled using NumPy 1",
            "numpy.dtype size changed",
            "operator torchvision::nms does not exist",
        ),
        "Install vLLM into a new environment without other packages that pin torch; build flash-attn and other "
        "extensions again for the torch that vLLM installs.",
    ),
    KnownCause(
        "library-missing",
        "a shared library is missing",
        ("cannot open shared object file", "error while loading shared libraries"),
        "Its name says what is missing: libcudart.so.12 and .13 are the CUDA versions that vLLM was built for; "
        "install the vLLM that fits your CUDA into an environment of its own.",
    ),
    KnownCause(
        "versions-do-not-fit",
        "versions of Python packages do not fit each other",
        (
            "ImportError: cannot import name",
            "packaging.version.InvalidVersion",
            "VersionConflict",
            "'array.array' is not subscriptable",
            "got an unexpected keyword argument",
            "got multiple values for argument",
            "No module named '….…'",
        ),
        "Install vLLM into a new environment, so that it chooses the versions of torch, transformers and FlashInfer; a "
        "program that calls vLLM needs the release that it was written for.",
    ),
    KnownCause(
        "package-of-model-missing",
        "a Python package is missing",
        (
            "ModuleNotFoundError: No module named",
            "Please install vllm[",
            "ImportError: Please install",
            "requires the following packages that were not found in your environment",
            "NIXL is not available",
            "DeepGEMM backend is not available",
        ),
        "Install the package into vLLM's environment; vllm[audio] and vllm[video] have what such models need.",
    ),
    KnownCause(
        "compiler-misses-files",
        "the C compiler, which Triton needs, finds no header files of Python or no libcuda.so",
        ("fatal error: Python.h", "cannot find -lcuda"),
        "For Python.h, install python3-dev of vLLM's Python version; for -lcuda, set LIBRARY_PATH to a folder in "
        "which libcuda.so links to the driver's libcuda.so.1; or use the vllm/vllm-openai image.",
        where="hint",
    ),
    KnownCause(
        "compiler-failed",
        "the C compiler failed, with which Triton and torch.compile build their code",
        tuple(f"CalledProcessError: Command '['…{name}'" for name in ("cc", "++", "clang")),
        "Its own message stands before the traceback. Often Python's header files are missing (python3-dev), "
        "libcuda.so for the linker, or room in /tmp; a compiler in CC must be one for this system.",
        is_general=True,
    ),
    KnownCause(
        "no-compiler",
        "there is no C compiler, and torch.compile and Triton need one",
        (
            "Failed to find C compiler",
            "InvalidCxxCompiler",
            "No working C++ compiler found",
            "No such file or directory: 'gcc'",
        ),
        "Install gcc and g++ (build-essential), or set CC; --enforce-eager avoids torch.compile but not Triton.",
    ),
    KnownCause(
        "nvcc-missing",
        "FlashInfer or DeepGEMM compile a kernel, and nvcc or ninja is missing",
        (
            "Could not find nvcc",
            "No such file or directory: 'nvcc'",
            "nvcc: not found",
            "No such file or directory: '/usr/local/cuda/bin/nvcc'",
            "No such file or directory: 'ninja'",
            "CUDA_HOME environment variable is not set",
            "Ninja is required to load C++ extensions",
        ),
        "Install the CUDA toolkit and ninja and set CUDA_HOME, or avoid it: VLLM_USE_FLASHINFER_SAMPLER=0 and another "
        "--attention-backend.",
    ),
    KnownCause(
        "ptxas-too-old",
        "Triton's assembler does not know this GPU",
        ("is not defined for option 'gpu-name'", "ptxas fatal", "PTXASError", "CalledProcessError: …bin/ptxas'"),
        "Set TRITON_PTXAS_PATH to the ptxas of a CUDA toolkit that knows it (13 for sm_121), or use vLLM built for it.",
        where="hint",
    ),
    KnownCause(
        "torch-without-gpu",
        "the installed torch cannot use GPUs",
        ("Torch not compiled with CUDA enabled", "Torch not compiled with XPU enabled"),
        "Install vLLM into a new environment, with the torch for this machine's GPUs; on a machine without GPUs, "
        "vLLM's build for the CPU.",
    ),
    KnownCause(
        "kernel-build-failed",
        "a kernel could not be compiled",
        ("Ninja build failed", "Error building extension", "Command '['ninja'", "Command '['…nvcc'", "nvcc fatal"),
        "nvcc must not be older than the CUDA of torch; delete ~/.cache/flashinfer and try again; avoid compiling with "
        "VLLM_USE_FLASHINFER_SAMPLER=0 and another --attention-backend.",
    ),
    KnownCause(
        "compiled-model-required",
        "no compiled model fits, and --compile-cache require forbids compiling",
        ("--compile-cache require: vLLM would compile the model",),
        "Undo the difference, or start once without `require`, with the same LOCATION, to compile; `vllm-cli caches` "
        "shows the compiled models.",
    ),
    KnownCause(
        "compile-cache-damaged",
        "a cache of compiled kernels does not fit or has lost files",
        (
            "corrupted compilation artifact",
            "failed to get the hash of the compiled graph",
            "Expected tensors only, but got",
            f"{LOADED_FROM_DISK}…'_OpNamespace'",
            "No such file or directory: …/.triton/cache/",
            "No such file or directory: …/torchinductor_",
        ),
        "Delete VLLM_CACHE_ROOT/torch_compile_cache (~/.cache/vllm) and ~/.triton/cache; each server on a network "
        "disk needs a TRITON_CACHE_DIR of its own; VLLM_DISABLE_COMPILE_CACHE=1 for a test.",
    ),
    KnownCause(
        "compilation-failed",
        "the model or a kernel could not be compiled",
        (
            "InductorError",
            "BackendCompilerFailed",
            "PassManager::run failed",
            "TritonError",
            "Triton Error",
            "torch._dynamo.exc.Unsupported",
            "torch._dynamo.exc.Internal",
            "torch._dynamo.exc.UserError",
            "Constraints violated (",
            "ConstraintViolationError",
        ),
        "--enforce-eager starts without torch.compile; for Triton's errors try another --attention-backend, and check "
        "that the GPU is not older than this vLLM supports.",
        is_general=True,
    ),
    KnownCause(
        "container-command-missing",
        "the image has no program of the name with which the container's command begins",
        ("executable file not found in $PATH",),
        "In Kubernetes `command` replaces the image's program and `args` its arguments (compose: `entrypoint` and "
        "`command`): correct what the text names, or take an image that has it.",
        where="end",
    ),
    KnownCause(
        "unknown-argument",
        "the command line has a word that this vLLM does not know",
        (": error: unrecognized arguments:",),
        "Compare it with `vllm serve --help` of this version. In the vllm/vllm-openai image, the command begins "
        "behind `vllm serve`: give only MODEL and flags, each word as an item of its own.",
        where="end",
        phase=COMMAND_LINE,
    ),
    KnownCause(
        "parser-unknown",
        "this vLLM has no parser, tokenizer mode or connector of this name",
        (
            "invalid tool call parser",
            "invalid reasoning parser",
            "--enable-auto-tool-choice requires --tool-call-parser",
            "No tokenizer registered for",
            "Unsupported connector type",
        ),
        "Choose one of the names in the text, or those of `vllm serve --help`; a newer vLLM may have it.",
        phase=CONFIGURATION,
    ),
    KnownCause(
        "bad-argument",
        "a flag has a value that is not possible",
        (
            ": error: argument ",
            ": error: the following arguments are required",
            "TypeError: Error: --",
            "error: invalid argument: ",
            "error while handling argument ",
        ),
        "The text names flag and choices; values with JSON need quotes of the shell or of YAML; another version may "
        "have other flags.",
        where="end",
        phase=COMMAND_LINE,
    ),
    KnownCause(
        "service-named-vllm",
        "Kubernetes has set VLLM_PORT, because a Service is called vllm",
        ("VLLM_PORT … appears to be a URI", "invalid literal for int() with base 10: 'tcp://"),
        "Rename the Service, or set enableServiceLinks: false in the pod.",
    ),
    SETTING_REFUSED,
    ERROR_IN_CODE,
)
