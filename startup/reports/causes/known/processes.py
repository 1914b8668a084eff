"""Causes about several processes: NCCL, Ray, nodes, and processes that end or hang."""

from typing import Final

from startup.reports.causes.known_cause import KnownCause

STOPPED: Final = KnownCause(
    "stopped",  # vllm#16588
    "a signal stopped the process",
    "KeyboardInterrupt | SystemExit: 15 | received signal=SIG | Received SIGTERM | Received signal 15 | "
    "server was ended by SIGTERM",
    "Nothing failed before. If nobody stopped the server, see `kubectl describe pod`. Often probes failed during a "
    "long start, or a node was drained. docs/containers.md has fitting probes.",
    where="end",
)
"""Counts only if nothing failed before the signal. Therefore the text alone does not show this cause."""

NOT_IN_LOG: Final = KnownCause(
    "cause-not-in-log",  # vllm#5901
    "the cause is not in this log",
    "Engine core initialization failed. See root cause above | EngineCore failed to start | "
    "EngineCore encountered a fatal error | WorkerProc failed to start | WorkerProc hit an exception | "
    "torch_call_dispatcher(…) API call failed",
    "Give the complete log, with standard error (`kubectl logs --previous`). If the failed process wrote no cause "
    "above this line, it was killed, so look into `dmesg`.",
    where="end",
    is_general=True,
)
"""Used if no other cause is found."""

PROCESSES: Final = (
    KnownCause(
        "gpu-used-twice",  # vllm#17176
        "two ranks were given the same GPU",
        "Duplicate GPU detected",
        "Give each rank its own GPU. Check CUDA_VISIBLE_DEVICES, the ranks' numbers and Ray's version. Slices of a GPU "
        "(MIG) cannot work together, so start a server on each.",
    ),
    KnownCause(
        "nccl-invalid-usage",  # vllm#16978
        "NCCL reports invalid usage",
        "NCCL error: invalid usage | NCCL error … invalid usage | ncclInvalidUsage",
        "Set NCCL_DEBUG=WARN, which logs the reason. Often two ranks use one GPU, or two NCCL versions are loaded "
        "(LD_PRELOAD, VLLM_NCCL_SO_PATH).",
        is_general=True,
    ),
    KnownCause(
        "nccl-timeout",  # vllm#6042
        "a GPU waited too long for the others",
        "Watchdog caught collective operation timeout | ncclRemoteError | NCCL communicator was aborted",
        "One rank failed or hangs. Find the first error of any rank, with NCCL_DEBUG=INFO. Test NCCL_P2P_DISABLE=1 or "
        "NCCL_IB_DISABLE=1.",
    ),
    KnownCause(
        "nccl-failed",  # vllm#7800
        "the connection between the GPUs failed",
        "ncclSystemError | ncclUnhandledCudaError | ncclInternalError | NCCL error | NCCL Error | DistBackendError",
        "Set NCCL_DEBUG=INFO, which logs the reason. Often /dev/shm is too small (--ipc=host), the interface is wrong "
        "(NCCL_SOCKET_IFNAME), or the GPUs have no P2P (NCCL_P2P_DISABLE=1).",
        is_general=True,
    ),
    KnownCause(
        "custom-all-reduce-failed",  # vllm#49101
        "vLLM's own all-reduce failed, because the GPUs cannot share memory for it",
        "Cuda error …custom_all_reduce.cuh",
        "Set --disable-custom-all-reduce, and remove expandable_segments:True from PYTORCH_CUDA_ALLOC_CONF.",
        where="end",
    ),
    KnownCause(
        "peer-lost",  # vllm#6308
        "the connection to another process of the group was lost",
        "gloo…Connection reset by peer | gloo…Connection closed by peer | gloo…Timed out waiting",
        "Find that process's error in the logs of all nodes. If there is none, check the network.",
        is_general=True,
    ),
    KnownCause(
        "nodes-do-not-meet",  # vllm#19670
        "the processes of a group did not find each other",
        "client socket has timed out | waiting for clients | connectFullMesh failed | "
        "torch.distributed.DistNetworkError | torch.distributed.DistStoreError | Unable to find address for | "
        "The client socket has failed to connect",
        "Give all nodes the same --master-addr and open port. With several networks, set VLLM_HOST_IP, "
        "GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME. If a process failed before, read its log.",
        where="wait",
    ),
    KnownCause(
        "nccl-hangs",  # vllm#15453
        "the processes of a group wait for each other in NCCL",
        "vLLM is using nccl== | generating GPU P2P access cache",
        "If nothing follows, set NCCL_DEBUG=INFO, which logs the step. On one machine, test NCCL_P2P_DISABLE=1 (IOMMU, "
        "virtual machines) and --disable-custom-all-reduce. On several, set NCCL_SOCKET_IFNAME and open the ports.",
        where="wait",
    ),
    KnownCause(
        "ray-has-too-few-gpus",  # vllm#12983
        "Ray has fewer free GPUs than the flags ask for",
        "Ray does not allocate any GPUs on the driver node | "
        "The number of required … exceeds the total number of available | Cannot provide a placement group of | "
        "Current node has no … available | Waiting for creating a placement group | "
        "No available node types can fulfill resource request | exceeds available GPUs (",
        "Check `ray status`. End programs that hold GPUs, join missing nodes, or lower the parallel sizes. Give each "
        "node its own VLLM_HOST_IP, which is its address in `ray status`. Start vLLM on a node with a GPU.",
        where="wait",
    ),
    KnownCause(
        "ray-not-starting",  # vllm#6295
        "Ray could not start its processes",
        "Failed to register worker … to Raylet",
        "Check memory, /dev/shm and the limit of processes. On one machine, set --distributed-executor-backend mp. If "
        "no other program uses Ray here, `ray stop --force` ends what is left of it.",
        where="end",
    ),
    KnownCause(
        "ray-versions-differ",  # gpustack#2691
        "the nodes have different versions of Ray or Python",
        "Version mismatch: The cluster was started with",
        "Use the same image on all nodes.",
    ),
    KnownCause(
        "ray-worker-died",  # vllm#17770
        "a Ray worker died",
        "ActorDiedError | The actor died unexpectedly | WorkerCrashedError | The actor is dead because",
        "Read the worker's log in /tmp/ray/session_latest/logs on its node. Without a reason there, check `dmesg`, "
        "because memory probably ran out.",
        is_general=True,
    ),
    KnownCause(
        "engine-hangs",  # own
        "the engine hung",
        "s (--engine-watchdog-timeout): since | s while others wait for its memory: since | The engine hangs | "
        "The server hangs.",
        "Read the threads' stacks in the log. If a process is stopped, look for a debugger, a freezer or SIGSTOP. If a "
        "kernel or connection hangs, try NCCL_DEBUG=INFO and --disable-custom-all-reduce. If steps take longer, raise "
        "--engine-watchdog-timeout.",
    ),
    KnownCause(
        "worker-hangs",  # vllm#17965
        "a worker does not answer",
        "RPC call to … timed out | RayChannelTimeoutError | No available shared memory broadcast block found",
        "Find out with `py-spy dump` where the worker hangs. Try --disable-custom-all-reduce and NCCL_P2P_DISABLE=1, "
        "or raise VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS and Ray's RAY_CGRAPH_get_timeout.",
        where="wait",
    ),
    KnownCause(
        "start-took-too-long",  # vllm#32116
        "the engine was not ready in time",
        "Timed out waiting for engine core processes to start | Timed out waiting for engines to send | "
        "Did not receive response from front-end process | failed to start within",
        "Raise VLLM_ENGINE_READY_TIMEOUT_S. Downloads, network disks and compilation without a cache take long.",
        is_general=True,
    ),
    KnownCause(
        "illegal-instruction",  # ipex-llm#12922
        "this processor lacks instructions that the build needs",
        "Illegal instruction | SIGILL | exit code: -4 | exit code 132",
        "Use a build for this processor, or build from source on it. vLLM's CPU wheels need AVX2 or AVX512.",
        where="end",
    ),
    KnownCause(
        "native-assertion",  # vllm#20712
        "an assertion failed in the program or library that the message names",
        "Assertion `…' failed | Assertion '…' failed | Assertion failed: …, f",
        "Search that program's issues for the message. Try its newest release, or leave out the option or model that "
        "caused it.",
        where="end",
        is_general=True,
    ),
    KnownCause(
        "native-crash",  # vllm#15435
        "a process crashed in compiled code",
        "Segmentation fault | SIGSEGV | Fatal Python error | core dumped | terminate called after throwing | "
        "exit code: -11 | Segfault encountered | died with exit code -11 | died with <Signals.SIGABRT | "
        "Failed core proc(s): …: -11 | Failed core proc(s): …: -6 | exit code: -6 | exit code 139 | exit code 134 | "
        "exit code 136 | exited with code 139 | the process crashed with SIG | was killed by SIG | "
        "was ended by SIG | killed by signal",
        "Set PYTHONFAULTHANDLER=1, which logs the place. Often libraries have different versions. Try vLLM's image, a "
        "newer version, or --enforce-eager.",
        where="end",
        is_general=True,
    ),
    KnownCause(
        "worker-terminated",  # vllm#10478
        "a worker ended",
        "died, exit code: -15 | died, exit code:  | died with <Signals.",
        "If the exit code is -15 (SIGTERM), somebody ended the server or its container. Otherwise read the lines above "
        "it.",
        where="end",
        is_general=True,
    ),
    KnownCause(
        "process-vanished",  # vllm#20484
        "a process ended without a message",
        "died unexpectedly | Engine process … died | ended unexpectedly | with exit code | with exit status | "
        "(exit code  | left no message | ended with the forkserver | , and the forkserver does not answer | "
        "was …, and was killed | process…has ended | server has ended: ",
        "Check with `kubectl describe pod`, `docker inspect` or `dmesg` whether the OOM killer ended it. If not, "
        "compiled code crashed. Set PYTHONFAULTHANDLER=1, which logs the place.",
        where="end",
        is_general=True,
    ),
    NOT_IN_LOG,
    STOPPED,
)
