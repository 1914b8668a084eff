"""Causes about several processes: NCCL, Ray, nodes, and processes that end or hang."""

from typing import Final

from startup.reports.causes.known_cause import KnownCause

STOPPED: Final = KnownCause(
    "stopped",
    "it was stopped by a signal",
    ("KeyboardInterrupt", "SystemExit: 15", "received signal=SIG", "Received SIGTERM", "Received signal 15"),
    "Nothing failed before. If nobody stopped it, Kubernetes may have: when probes fail during a long start "
    "(`kubectl describe pod`; docs/containers.md has fitting probes), or when a node is drained.",
    where="end",
)
"""Recognized by what comes before it, not by its text alone."""

NOT_IN_LOG: Final = KnownCause(
    "cause-not-in-log",
    "the cause is not in this log",
    (
        "Engine core initialization failed. See root cause above",
        "EngineCore failed to start",
        "EngineCore encountered a fatal error",
        "WorkerProc failed to start",
        "WorkerProc hit an exception",
        "torch_call_dispatcher(…) API call failed",
    ),
    "Its processes write the cause before this line: give the complete log, with standard error and from the start "
    "on (`kubectl logs --previous`). If the log is complete, the process was killed: look into `dmesg`.",
    where="end",
    is_general=True,
)
"""Used if no other cause is found."""

PROCESSES: Final = (
    KnownCause(
        "gpu-used-twice",
        "two ranks were given the same GPU",
        ("Duplicate GPU detected",),
        "Give each rank a GPU of its own: check CUDA_VISIBLE_DEVICES, the ranks' numbers, and Ray's version.",
    ),
    KnownCause(
        "nccl-invalid-usage",
        "NCCL was used in a wrong way",
        ("NCCL error: invalid usage", "NCCL error … invalid usage", "ncclInvalidUsage"),
        "NCCL_DEBUG=WARN shows why; often two ranks use one GPU, or different NCCL versions are loaded (LD_PRELOAD, "
        "VLLM_NCCL_SO_PATH).",
        is_general=True,
    ),
    KnownCause(
        "nccl-timeout",
        "a GPU waited too long for the others",
        ("Watchdog caught collective operation timeout", "ncclRemoteError", "NCCL communicator was aborted"),
        "One rank failed or hangs: look for the first error of any rank, with NCCL_DEBUG=INFO. NCCL_P2P_DISABLE=1 or "
        "NCCL_IB_DISABLE=1 show whether the connection is at fault.",
    ),
    KnownCause(
        "nccl-failed",
        "the connection between the GPUs failed",
        (
            "ncclSystemError",
            "ncclUnhandledCudaError",
            "ncclInternalError",
            "NCCL error",
            "NCCL Error",
            "DistBackendError",
            "() of …/device_communicators/",
        ),
        "NCCL_DEBUG=INFO shows why. Often: /dev/shm too small (--ipc=host), the wrong interface "
        "(NCCL_SOCKET_IFNAME), no P2P between the GPUs (NCCL_P2P_DISABLE=1).",
        is_general=True,
    ),
    KnownCause(
        "oneccl-failed",
        "the connection between the Intel GPUs failed",
        ("oneCCL: … EXCEPTION", "|CCL_ERROR|"),
        "In a container mount -v /dev/dri:/dev/dri (not only --device), with --ipc=host and --cap-add SYS_PTRACE, and "
        "the same GPUs visible to all ranks; CCL_ZE_IPC_EXCHANGE chooses how memory is shared.",
    ),
    KnownCause(
        "custom-all-reduce-failed",
        "vLLM's own all-reduce failed: the GPUs cannot share memory as it expects",
        ("Cuda error …custom_all_reduce.cuh",),
        "Give --disable-custom-all-reduce; leave expandable_segments:True out of PYTORCH_CUDA_ALLOC_CONF.",
        where="end",
    ),
    KnownCause(
        "peer-lost",
        "the connection to another process of the group was lost",
        ("gloo…Connection reset by peer", "gloo…Connection closed by peer", "gloo…Timed out waiting"),
        "That process ended or hangs: look for its error in the logs of all nodes; else the network between them.",
        is_general=True,
    ),
    KnownCause(
        "nodes-do-not-meet",
        "the processes of a group did not find each other",
        (
            "client socket has timed out",
            "waiting for clients",
            "connectFullMesh failed",
            "torch.distributed.DistNetworkError",
            "torch.distributed.DistStoreError",
            "Unable to find address for",
        ),
        "All nodes need the same --master-addr and port, open between them; VLLM_HOST_IP, GLOO_SOCKET_IFNAME and "
        "NCCL_SOCKET_IFNAME for machines with several networks; or one of them failed before: see its log.",
    ),
    KnownCause(
        "ray-has-too-few-gpus",
        "Ray does not have the GPUs that the flags ask for",
        (
            "Ray does not allocate any GPUs on the driver node",
            "The number of required GPUs exceeds the total number of available GPUs",
            "Cannot provide a placement group of",
            "Current node has no GPU available",
        ),
        "`ray status` shows what is free: end what holds GPUs, join the missing nodes, lower the parallel sizes, and "
        "start vLLM on a node that has a GPU.",
    ),
    KnownCause(
        "ray-not-running",
        "no Ray cluster was found",
        ("Could not find any running Ray instance", "Failed to connect to Ray cluster", "Failed to start GCS"),
        "Run `ray start` on all nodes and set RAY_ADDRESS; on one machine give --distributed-executor-backend mp.",
    ),
    KnownCause(
        "ray-not-starting",
        "Ray could not start its processes",
        ("Failed to register worker … to Raylet",),
        "Run `ray stop --force` and delete /tmp/ray, which an earlier Ray may have left; check memory, /dev/shm and "
        "the limit of processes. One machine needs no Ray: --distributed-executor-backend mp.",
        where="end",
    ),
    KnownCause(
        "ray-versions-differ",
        "the nodes have different versions of Ray or Python",
        ("Version mismatch: The cluster was started with",),
        "Use the same image on all nodes.",
    ),
    KnownCause(
        "ray-worker-died",
        "a worker of Ray died",
        ("ActorDiedError", "The actor died unexpectedly", "WorkerCrashedError", "The actor is dead because"),
        "The worker's own log has the reason (/tmp/ray/session_latest/logs on its node); without one, it was "
        "probably killed for its memory: `dmesg` on that node.",
        is_general=True,
    ),
    KnownCause(
        "engine-hangs",
        "the engine hung",
        ("s (--engine-watchdog-timeout): since", "s while others wait for its memory: since"),
        "The log has the stacks of all threads. A stopped process was stopped by a debugger, a freezer or SIGSTOP; a "
        "kernel or a connection that hangs: NCCL_DEBUG=INFO, --disable-custom-all-reduce; a step that takes longer: "
        "raise --engine-watchdog-timeout.",
    ),
    KnownCause(
        "worker-hangs",
        "a worker did not answer in time",
        ("RPC call to … timed out", "RayChannelTimeoutError"),
        "A kernel or a connection hangs (`py-spy dump` of the worker): try --disable-custom-all-reduce and "
        "NCCL_P2P_DISABLE=1. VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS and Ray's RAY_CGRAPH_get_timeout raise the time.",
    ),
    KnownCause(
        "start-took-too-long",
        "the engine was not ready in time",
        (
            "Timed out waiting for engine core processes to start",
            "Timed out waiting for engines to send",
            "Did not receive response from front-end process",
            "failed to start within",
        ),
        "Raise VLLM_ENGINE_READY_TIMEOUT_S; downloads, network disks and compilation without a cache take long.",
        is_general=True,
    ),
    KnownCause(
        "illegal-instruction",
        "this processor lacks instructions that the build needs",
        ("Illegal instruction", "SIGILL", "exit code: -4", "exit code 132"),
        "Use a build for this processor (vLLM's CPU wheels need AVX2 or AVX512), or build from source on it.",
        where="end",
    ),
    KnownCause(
        "native-assertion",
        "a check in compiled code failed: a bug in the program or library that the line names",
        ("Assertion `…' failed", "Assertion '…' failed", "Assertion failed: …, f"),
        "Search the issues of that program for this line; try its newest release; start without the option or "
        "model that caused it.",
        where="end",
        is_general=True,
    ),
    KnownCause(
        "native-crash",
        "a process crashed in compiled code",
        (
            "Segmentation fault",
            "SIGSEGV",
            "Fatal Python error",
            "core dumped",
            "terminate called after throwing",
            "exit code: -11",
            "Segfault encountered",
            "died with exit code -11",
            "died with <Signals.SIGABRT",
            "Failed core proc(s): …: -11",
            "Failed core proc(s): …: -6",
            "exit code: -6",
            "exit code 139",
            "exit code 134",
            "exit code 136",
            "exited with code 139",
        ),
        "PYTHONFAULTHANDLER=1 shows where; often libraries of different versions in one environment: try vLLM's "
        "image, a newer version, or --enforce-eager.",
        where="end",
        is_general=True,
    ),
    KnownCause(
        "job-cancelled",
        "the job's scheduler ended it",
        ("slurmstepd: error: *** … CANCELLED", "DUE TO TIME LIMIT", "job killed: walltime"),
        "Ask for more time or memory (sbatch --time, --mem); nothing was wrong with vLLM.",
        where="end",
    ),
    KnownCause(
        "worker-terminated",
        "a worker was ended",
        ("died, exit code: -15", "died, exit code: ", "died with <Signals."),
        "Exit code -15 is SIGTERM: somebody ended the server or its container; else see the lines above it.",
        where="end",
        is_general=True,
    ),
    KnownCause(
        "process-vanished",
        "a process ended without a message",
        ("died unexpectedly", "Engine process … died"),
        "It was killed or crashed in compiled code: `kubectl describe pod`, `docker inspect` or `dmesg` show whether "
        "the OOM killer did it; PYTHONFAULTHANDLER=1 shows crashes.",
        where="end",
        is_general=True,
    ),
    NOT_IN_LOG,
    STOPPED,
)
