"""Causes about the installation: libraries, compilers, caches, versions, the command line."""

from typing import Final

from startup.reports.causes.known_cause import KnownCause
from startup.reports.causes.phase import COMMAND_LINE, CONFIGURATION

ERROR_IN_CODE: Final = KnownCause(
    "error-in-code",  # vllm#11171
    "vLLM's own code failed, because of a bug or of packages that do not fit",
    "^AssertionError | ^AttributeError | ^IndexError | ^KeyError | ^NameError | ^NotImplementedError | "
    "^RecursionError | ^TypeError | ^UnboundLocalError | ^ZeroDivisionError | "
    "^torch._dynamo.exc.TorchRuntimeError | must have same reduction dim | must match the size of tensor | "
    "must match the existing size | shape mismatch: | is invalid for input of size | "
    "view size is not compatible | shapes cannot be multiplied | have the same dtype | expected scalar type | "
    "values to unpack | Failed to apply … on data=",
    "Search vLLM's issues for the message. Try the newest vLLM with the transformers that it requires, without the "
    "feature or plugin in the traceback.",
    is_general=True,
)
"""Used for an exception that matches no other cause."""

SETTING_REFUSED: Final = KnownCause(
    "setting-refused",  # vllm#19367
    "vLLM refuses these settings or this model",
    "",
    "Search vLLM's issues for the message. Leave out the flags in question, or try a newer vLLM.",
    is_general=True,
)
"""Used for an exception that recommends or refuses a setting, which the digest names. It has no texts."""

LOADED_FROM_DISK: Final = "Directly load AOT compilation"
"""vLLM's message about a loaded compiled model. Later exceptions are also compared with it in front."""

INSTALLATION: Final = (
    KnownCause(
        "nvidia-library-in-the-way",  # vllm#21633
        "another copy of an NVIDIA library is loaded than the one that torch needs",
        "undefined symbol: nccl | undefined symbol: __nvJitLink | undefined symbol: cublas | "
        "undefined symbol: cudnn | undefined symbol: cusparse | undefined symbol: nvshmem | "
        "Cannot load symbol cudnn | CUDNN_STATUS_SUBLIBRARY_VERSION_MISMATCH | cuDNN version incompatibility",
        "Remove the folder of that library (such as NCCL) from LD_LIBRARY_PATH, LD_PRELOAD and VLLM_NCCL_SO_PATH. If "
        "that does not help, install torch's own version again, such as nvidia-nccl-cu12 (`--force-reinstall`).",
    ),
    KnownCause(
        "operator-not-in-build",  # vllm#11249
        "this build has no kernel for the model's quantization",
        " | ".join(
            f"'_OpNamespace' '_C' object has no attribute '{name}" for name in ("awq", "gptq", "ggml", "marlin")
        ),
        "On ROCm and CPUs, choose another quantization, or none (on ROCm, VLLM_USE_TRITON_AWQ=1 serves AWQ). On NVIDIA "
        "GPUs, install vLLM into a new environment, with the torch that it requires.",
    ),
    KnownCause(
        "kernels-not-built",  # vllm#28199
        "vLLM's own library lacks a kernel, because it was built for other GPUs",
        "undefined symbol: …cutlass_ | undefined symbol: …_mm_sm | undefined symbol: …marlin | "
        "undefined symbol: …scaled_mm | undefined symbol: …mxfp4 | undefined symbol: …nvfp4",
        "Install a wheel or image of vLLM for this GPU and CUDA. A build from source needs an empty build folder, and "
        "a CUDA toolkit that knows the whole TORCH_CUDA_ARCH_LIST.",
    ),
    KnownCause(
        "libraries-do-not-fit",  # vllm#21226
        "compiled libraries were built for another version of torch",
        "undefined symbol | Tried to instantiate class '_core_C | has no attribute '_C' | "
        "'_C' object has no attribute | '_OpNamespace' '_ | Could not run '_C:: | "
        "A module that was compiled using NumPy 1 | numpy.dtype size changed | "
        "operator torchvision::nms does not exist | NameError: name 'vllm_",
        "Install vLLM into a new environment without packages that pin torch. Rebuild flash-attn and other extensions "
        "for vLLM's torch.",
    ),
    KnownCause(
        "system-too-old",  # vllm#15592
        "the system's C or C++ library is older than this build needs",
        "version `GLIBC | version `CXXABI",
        "Use vLLM's image or a newer system. For GLIBCXX and CXXABI, a newer libstdc++ is enough (conda-forge's "
        "libstdcxx-ng, whose folder must come first in LD_LIBRARY_PATH).",
    ),
    KnownCause(
        "library-missing",  # vllm#1738
        "a shared library is missing",
        "cannot open shared object file | error while loading shared libraries",
        "Read the library's name. libcudart.so.12 or .13 shows vLLM's CUDA version. Install the vLLM for your CUDA "
        "into a new environment.",
    ),
    KnownCause(
        "versions-do-not-fit",  # vllm#19867
        "versions of Python packages do not fit each other",
        "ImportError: cannot import name | packaging.version.InvalidVersion | VersionConflict | "
        "'array.array' is not subscriptable | got an unexpected keyword argument | "
        "got multiple values for argument | No module named '….…' | partially initialized module | "
        "AttributeError: module 'triton",
        "Install vLLM into a new environment, so that it chooses torch, transformers and FlashInfer. A program that "
        "calls vLLM needs the release that it was written for.",
    ),
    KnownCause(
        "package-of-model-missing",  # vllm#16259
        "a Python package is missing",
        "ModuleNotFoundError: No module named | Please install vllm[ | ImportError: Please install | "
        "requires the following packages that were not found in your environment | NIXL is not available | "
        "DeepGEMM backend is not available",
        "Install the package into vLLM's environment. For audio and video models, install vllm[audio] or vllm[video].",
    ),
    KnownCause(
        "compiler-misses-files",  # vllm#19656
        "the C compiler of Triton or torch.compile finds no Python.h, another header or libcuda.so",
        "fatal error: …: No such file or directory | cannot find -lcuda",
        "Install the header's package (python3-dev of vLLM's Python for Python.h, else gcc and libc6-dev). For -lcuda, "
        "set LIBRARY_PATH to a folder where libcuda.so links to the driver's libcuda.so.1. Or use the vllm/vllm-openai "
        "image.",
        where="hint",
    ),
    KnownCause(
        "compiler-failed",  # vllm#20345
        "the C compiler failed for Triton or torch.compile",
        "CalledProcessError: Command '['…cc' | CalledProcessError: Command '['…++' | "
        "CalledProcessError: Command '['…clang'",
        "Read the compiler's message before the traceback. Often python3-dev, libcuda.so or room in /tmp is missing. "
        "CC must name a compiler for this system.",
        is_general=True,
    ),
    KnownCause(
        "no-compiler",  # vllm#2997
        "torch.compile and Triton need a C compiler, and there is none",
        "Failed to find C compiler | InvalidCxxCompiler | No working C++ compiler found | "
        "No such file or directory: 'gcc'",
        "Install gcc and g++ (build-essential), or set CC. --enforce-eager avoids torch.compile but not Triton.",
    ),
    KnownCause(
        "nvcc-missing",  # vllm#21960
        "FlashInfer or DeepGEMM compiles a kernel, and nvcc or ninja is missing",
        "Could not find nvcc | No such file or directory: 'nvcc' | nvcc: not found | "
        "No such file or directory: '/usr/local/cuda/bin/nvcc' | No such file or directory: 'ninja' | "
        "CUDA_HOME environment variable is not set | Ninja is required to load C++ extensions",
        "Install the CUDA toolkit and ninja, and set CUDA_HOME. Or avoid nvcc with VLLM_USE_FLASHINFER_SAMPLER=0 and "
        "another --attention-backend.",
    ),
    KnownCause(
        "ptxas-too-old",  # vllm#16336
        "Triton's assembler does not know this GPU",
        "is not defined for option 'gpu-name' | ptxas fatal | PTXASError | CalledProcessError: …bin/ptxas'",
        "Set TRITON_PTXAS_PATH to the ptxas of a CUDA toolkit that knows this GPU (13 for sm_121), or use a vLLM built "
        "for it.",
        where="hint",
    ),
    KnownCause(
        "torch-without-gpu",  # vllm#12936
        "the installed torch cannot use GPUs",
        "Torch not compiled with CUDA enabled | Torch not compiled with XPU enabled",
        "Install vLLM into a new environment, with the torch for these GPUs. Without GPUs, install vLLM's build for "
        "the CPU.",
    ),
    KnownCause(
        "kernel-build-failed",  # vllm#23176
        "a kernel could not be compiled",
        "Ninja build failed | Error building extension | Command '['ninja' | Command '['…nvcc' | nvcc fatal",
        "Use an nvcc at least as new as torch's CUDA. Delete ~/.cache/flashinfer and try again. Or avoid nvcc with "
        "VLLM_USE_FLASHINFER_SAMPLER=0 and another --attention-backend.",
    ),
    KnownCause(
        "compiled-model-required",  # own
        "no compiled model fits, and --compile-cache require forbids compiling",
        "--compile-cache require: vLLM would compile the model",
        "Undo the difference, or start once with the same LOCATION and without `require`. `vllm-cli caches` shows "
        "compiled models.",
    ),
    KnownCause(
        "compile-cache-damaged",  # vllm#18851
        "a cache of compiled kernels does not fit or has lost files",
        "corrupted compilation artifact | failed to get the hash of the compiled graph | "
        f"Expected tensors only, but got | {LOADED_FROM_DISK}…'_OpNamespace' | "
        "No such file or directory: …/.triton/cache/ | No such file or directory: …/torchinductor_",
        "For a test, set VLLM_DISABLE_COMPILE_CACHE=1. If it starts so, delete torch_compile_cache in VLLM_CACHE_ROOT "
        "(~/.cache/vllm), and ~/.triton/cache. On a network disk, give each server its own TRITON_CACHE_DIR.",
    ),
    KnownCause(
        "compilation-failed",  # vllm#20303
        "the model or a kernel could not be compiled",
        "InductorError | BackendCompilerFailed | PassManager::run failed | Mosaic failed to compile | TritonError | "
        "Triton Error | torch._dynamo.exc.Unsupported | torch._dynamo.exc.Internal | torch._dynamo.exc.UserError | "
        "Constraints violated ( | ConstraintViolationError",
        "Set --enforce-eager. For Triton's errors, try another --attention-backend, and check that vLLM still supports "
        "this GPU.",
        is_general=True,
    ),
    KnownCause(
        "unknown-argument",  # vllm#22072
        "this vLLM does not know a word of the command line",
        ": error: unrecognized arguments:",
        "Compare the word with this version's `vllm serve --help`. Give the vllm/vllm-openai image, which already "
        "begins with `vllm serve`, only MODEL and flags, each word as a separate item.",
        where="end",
        phase=COMMAND_LINE,
    ),
    KnownCause(
        "parser-unknown",  # recipes#51
        "this vLLM has no parser, tokenizer mode or connector of this name",
        "invalid tool call parser | invalid reasoning parser | "
        "--enable-auto-tool-choice requires --tool-call-parser | No tokenizer registered for | "
        "Unsupported connector type",
        "Choose a name from the message or from `vllm serve --help`, or try a newer vLLM.",
        phase=CONFIGURATION,
    ),
    KnownCause(
        "bad-argument",  # vllm#14429
        "a flag has an invalid value",
        ": error: argument  | : error: the following arguments are required | TypeError: Error: -- | "
        "error: invalid argument:  | error while handling argument ",
        "Correct the flag that the message names. Quote JSON for the shell or YAML.",
        where="end",
        phase=COMMAND_LINE,
    ),
    KnownCause(
        "service-named-vllm",  # vllm#34199
        "Kubernetes has set VLLM_PORT, because a Service is called vllm",
        "VLLM_PORT … appears to be a URI | invalid literal for int() with base 10: 'tcp://",
        "Rename the Service, or set `enableServiceLinks: false` in the pod.",
    ),
    SETTING_REFUSED,
    ERROR_IN_CODE,
)
