/* A libnvidia-ml.so.1 that reports H100s without a driver: enough for vLLM's and PyTorch's NVML calls.
   STUB_GPUS: the number of GPUs (1). Used memory is what processes have allocated through the libcuda.so.1 of
   cuda.c (STUB_SHM, default /dev/shm/stub_gpu), so that it shows `sleep` and a second model. */
#include <signal.h>
#include <sys/mman.h>
#include "stub.h"
typedef struct {
  unsigned long long total, free, used;
} Memory;
typedef struct {
  unsigned version;
  unsigned long long total, reserved, free, used;
} Memory2;
static unsigned count(void) {
  char *t = getenv("STUB_GPUS");
  return t ? (unsigned)atoi(t) : 1;
}
static Slot *slots(void) {
  int d = open(stub_table(), O_RDONLY | O_CLOEXEC);
  if (d < 0) return 0;
  Slot *s = mmap(0, SLOTS * sizeof *s, PROT_READ, MAP_SHARED, d, 0);
  close(d);
  return s == MAP_FAILED ? 0 : s;
}
static unsigned long long used(int dev) {
  unsigned long long n = 0;
  Slot *s = slots();
  if (s) {
    for (int i = 0; i < SLOTS; i++)
      if (stub_uses(&s[i], dev)) n += s[i].used;
    munmap(s, SLOTS * sizeof *s);
  }
  return n;
}
static int ids[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
int nvmlInit(void) {
  return stub_driver() == DRIVER_NOT_LOADED ? 9 : stub_driver() == DRIVER_MISMATCH ? 18 : 0;
}
int nvmlInit_v2(void) { return nvmlInit(); }
int nvmlInitWithFlags(unsigned f) { return nvmlInit(); }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int code) {
  return code == 9    ? "Driver Not Loaded"
         : code == 18 ? "Driver/library version mismatch"
         : code       ? "Unknown Error"
                      : "Success";
}
int nvmlSystemGetDriverVersion(char *t, unsigned n) {
  snprintf(t, n, "580.95.05");
  return 0;
}
int nvmlSystemGetNVMLVersion(char *t, unsigned n) {
  snprintf(t, n, "13.580.95.05");
  return 0;
}
int nvmlSystemGetCudaDriverVersion(int *v) {
  *v = stub_cuda_version();
  return 0;
}
int nvmlSystemGetCudaDriverVersion_v2(int *v) {
  *v = stub_cuda_version();
  return 0;
}
int nvmlDeviceGetCount(unsigned *c) {
  *c = count();
  return 0;
}
int nvmlDeviceGetCount_v2(unsigned *c) {
  *c = count();
  return 0;
}
int nvmlDeviceGetHandleByIndex(unsigned i, void **h) {
  if (i >= count()) return 2;
  *h = &ids[i];
  return 0;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **h) { return nvmlDeviceGetHandleByIndex(i, h); }
int nvmlDeviceGetHandleByUUID(const char *u, void **h) {
  unsigned i;
  return sscanf(u, "GPU-00000000-0000-0000-0000-0000000000%u", &i) == 1 ? nvmlDeviceGetHandleByIndex(i, h)
                                                                        : 6;
}
int nvmlDeviceGetHandleByPciBusId_v2(const char *u, void **h) {
  unsigned i;
  return sscanf(u, "%*x:%x", &i) == 1 ? nvmlDeviceGetHandleByIndex(i - 16, h) : 6;
}
int nvmlDeviceGetIndex(void *h, unsigned *i) {
  *i = *(int *)h;
  return 0;
}
int nvmlDeviceGetMinorNumber(void *h, unsigned *i) {
  *i = *(int *)h;
  return 0;
}
int nvmlDeviceGetName(void *h, char *t, unsigned n) {
  snprintf(t, n, "%s", stub_name());
  return 0;
}
int nvmlDeviceGetUUID(void *h, char *t, unsigned n) {
  snprintf(t, n, "GPU-00000000-0000-0000-0000-0000000000%02d", *(int *)h);
  return 0;
}
int nvmlDeviceGetMemoryInfo(void *h, Memory *m) {
  m->total = stub_total();
  m->used = used(*(int *)h);
  m->free = m->total - m->used;
  return 0;
}
int nvmlDeviceGetMemoryInfo_v2(void *h, Memory2 *m) {
  m->total = stub_total();
  m->reserved = 0;
  m->used = used(*(int *)h);
  m->free = m->total - m->used;
  return 0;
}
int nvmlDeviceGetCudaComputeCapability(void *h, int *a, int *b) {
  *a = 9;
  *b = 0;
  return 0;
}
typedef struct {
  unsigned pid;
  unsigned long long used;
  unsigned gi, ci;
} Process;
int nvmlDeviceGetComputeRunningProcesses_v3(void *h, unsigned *c, Process *p) {
  unsigned n = 0, room = *c;
  Slot *s = slots();
  if (s) {
    for (int i = 0; i < SLOTS; i++)
      if (stub_uses(&s[i], *(int *)h)) {
        if (n < room) p[n] = (Process){s[i].pid, s[i].used, -1, -1};
        n++;
      }
    munmap(s, SLOTS * sizeof *s);
  }
  *c = n;
  return n > room ? 7 : 0;
}
int nvmlDeviceGetComputeRunningProcesses(void *h, unsigned *c, Process *p) {
  return nvmlDeviceGetComputeRunningProcesses_v3(h, c, p);
}
int nvmlDeviceGetP2PStatus(void *a, void *b, int cap, int *s) {
  *s = 0;
  return 0;
}
int nvmlDeviceGetTopologyCommonAncestor(void *a, void *b, int *s) {
  *s = 10;
  return 0;
}
int nvmlDeviceGetNvLinkState(void *h, unsigned l, int *s) {
  *s = 0;
  return 0;
}
int nvmlDeviceGetMaxPcieLinkGeneration(void *h, unsigned *g) {
  *g = 5;
  return 0;
}
int nvmlDeviceGetMigMode(void *h, unsigned *a, unsigned *b) {
  *a = *b = getenv("STUB_MIG") != 0;
  return 0;
}
int nvmlDeviceGetPowerUsage(void *h, unsigned *p) {
  *p = 70000;
  return 0;
}
int nvmlDeviceGetNumaNodeId(void *h, unsigned *n) { return 3; }
int nvmlDeviceGetCpuAffinity(void *h, unsigned n, unsigned long *s) {
  memset(s, 0xff, n * sizeof *s);
  return 0;
}
int nvmlDeviceGetUtilizationRates(void *h, unsigned *u) {
  u[0] = u[1] = 0;
  return 0;
}
