/* A libcudart.so.13 over the libcuda.so.1 of cuda.c. */
#define _GNU_SOURCE
#include <cuda_runtime_api.h>
#include <cuda.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "stub.h"
static __thread int last;
static int err(int e) {
  if (e && e != 600) last = e;
  return e;
}
#define R(e) return err(e)
static int ready(void) { return stub_driver() == DRIVER_OLD ? 35 : stub_init(); }
#define INIT()                                                                                               \
  do {                                                                                                       \
    FIRST();                                                                                                 \
    int e_ = ready();                                                                                        \
    if (e_ || (e_ = stub_fault(__func__))) R(e_);                                                            \
  } while (0)
#define RESULT cudaError_t
#define END(e) err(e)
#define S stub_stream(s)
F(cudaGetDeviceCount, int *n) {
  FIRST();
  int e = ready();
  *n = e ? 0 : stub_count();
  R(e);
}
F(cudaGetDevice, int *d) {
  FIRST();
  int e = ready();
  if (e) R(e);
  *d = stub_dev;
  return 0;
}
F(cudaSetDevice, int d) {
  INIT();
  if (d < 0 || d >= stub_count()) R(101);
  stub_dev = d;
  stub_charge(d, 0);
  return 0;
}
F(cudaInitDevice, int d, unsigned a, unsigned b) {
  INIT();
  if (d < 0 || d >= stub_count()) R(101);
  stub_charge(d, 0);
  return 0;
}
IS(cudaSetDeviceFlags, (unsigned f), 0)
SETS(cudaGetDeviceFlags, (unsigned *f), *f = 0)
IS(cudaDeviceReset, (void), 0)
IS(cudaDeviceSynchronize, (void), stub_wait(0))
F(cudaDriverGetVersion, int *v) {
  FIRST();
  *v = stub_cuda_version();
  return 0;
}
F(cudaRuntimeGetVersion, int *v) {
  FIRST();
  *v = 13000;
  return 0;
}
F(cudaGetDeviceProperties, struct cudaDeviceProp *p, int d) {
  INIT();
  if (d < 0 || d >= stub_count()) R(101);
  size_t f;
  memset(p, 0, sizeof *p);
  snprintf(p->name, sizeof p->name, "%s", stub_name());
  stub_memory(d, &f, &p->totalGlobalMem);
  p->uuid.bytes[15] = (stub_physical(d) / 10 << 4) | stub_physical(d) % 10;
  p->sharedMemPerBlock = 49152;
  p->regsPerBlock = 65536;
  p->warpSize = 32;
  p->memPitch = 2147483647;
  p->maxThreadsPerBlock = 1024;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
  p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 2147483647;
  p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->totalConstMem = 65536;
  p->major = 9;
  p->textureAlignment = 512;
  p->multiProcessorCount = 132;
  p->canMapHostMemory = 1;
  p->concurrentKernels = 1;
  p->ECCEnabled = 1;
  p->pciBusID = 16 + stub_physical(d);
  p->asyncEngineCount = 3;
  p->unifiedAddressing = 1;
  p->memoryBusWidth = 5120;
  p->l2CacheSize = 52428800;
  p->persistingL2CacheMaxSize = 32505856;
  p->maxThreadsPerMultiProcessor = 2048;
  p->streamPrioritiesSupported = 1;
  p->globalL1CacheSupported = p->localL1CacheSupported = 1;
  p->sharedMemPerMultiprocessor = 233472;
  p->regsPerMultiprocessor = 65536;
  p->managedMemory = 1;
  p->concurrentManagedAccess = 1;
  p->computePreemptionSupported = 1;
  p->canUseHostPointerForRegisteredMem = 1;
  p->cooperativeLaunch = 1;
  p->sharedMemPerBlockOptin = 232448;
  p->maxBlocksPerMultiProcessor = 32;
  p->accessPolicyMaxWindowSize = 134213632;
  p->reservedSharedMemPerBlock = 1024;
  p->hostRegisterSupported = 1;
  p->memoryPoolsSupported = 1;
  p->gpuDirectRDMASupported = 1;
  p->clusterLaunch = 1;
  p->unifiedFunctionPointers = 1;
  return 0;
}
F(cudaDeviceGetAttribute, int *v, enum cudaDeviceAttr a, int d) {
  INIT();
  if (d < 0 || d >= stub_count()) R(101);
  *v = stub_attribute(a, d);
  return 0;
}
SETS(cudaDeviceGetPCIBusId, (char *t, int n, int d), snprintf(t, n, "0000:%02X:00.0", 16 + stub_physical(d)))
F(cudaDeviceGetByPCIBusId, int *d, const char *t) {
  INIT();
  int k;
  if (sscanf(t, "%*x:%x", &k) != 1) R(1);
  for (*d = 0; *d < stub_count(); ++*d)
    if (16 + stub_physical(*d) == k) return 0;
  R(101);
}
SETS(cudaDeviceCanAccessPeer, (int *v, int a, int b), *v = a != b)
IS(cudaDeviceEnablePeerAccess, (int d, unsigned f), 0)
SETS(cudaDeviceGetP2PAttribute, (int *v, enum cudaDeviceP2PAttr a, int b, int c), *v = 1)
SETS(cudaDeviceGetStreamPriorityRange, (int *a, int *b), if (a) *a = 0; if (b) *b = -5)
SETS(cudaDeviceGetLimit, (size_t *v, enum cudaLimit l), *v = 1024)
IS(cudaDeviceSetLimit, (enum cudaLimit l, size_t v), 0)
SETS(cudaDeviceGetGraphMemAttribute, (int d, enum cudaGraphMemAttributeType a, void *v),
   *(unsigned long long *)v = 0)
F(cudaGetLastError, void) {
  FIRST();
  int e = last;
  last = 0;
  return e;
}
F(cudaPeekAtLastError, void) {
  FIRST();
  return last;
}
const char *cudaGetErrorString(cudaError_t e) { return stub_error(e, 0); }
const char *cudaGetErrorName(cudaError_t e) { return stub_error(e, 1); }
/* memory */
IS(cudaMalloc, (void **p, size_t n), stub_alloc(p, n, stub_dev, DEVICE))
IS(cudaMallocAsync, (void **p, size_t n, cudaStream_t s), stub_alloc(p, n, stub_dev, DEVICE))
IS(cudaMallocFromPoolAsync, (void **p, size_t n, cudaMemPool_t m, cudaStream_t s),
   stub_alloc(p, n, stub_dev, DEVICE))
IS(cudaMallocManaged, (void **p, size_t n, unsigned f), stub_alloc(p, n, stub_dev, DEVICE))
F(cudaMallocPitch, void **p, size_t *q, size_t w, size_t h) {
  INIT();
  *q = (w + 511) & ~511ul;
  R(stub_alloc(p, *q * h, stub_dev, DEVICE));
}
F(cudaFree, void *p) {
  INIT();
  stub_charge(stub_dev, 0);
  R(stub_free(p, DEVICE));
}
IS(cudaFreeAsync, (void *p, cudaStream_t s), stub_free(p, DEVICE))
IS(cudaMallocHost, (void **p, size_t n), stub_alloc(p, n, stub_dev, HOST))
IS(cudaHostAlloc, (void **p, size_t n, unsigned f), stub_alloc(p, n, stub_dev, HOST))
IS(cudaFreeHost, (void *p), stub_free(p, HOST))
SETS(cudaHostRegister, (void *p, size_t n, unsigned f), stub_register(p, n, stub_dev, REGISTERED))
IS(cudaHostUnregister, (void *p), stub_free(p, REGISTERED))
SETS(cudaHostGetDevicePointer, (void **d, void *p, unsigned f), *d = p)
SETS(cudaHostGetFlags, (unsigned *f, void *p), *f = 0)
SETS(cudaMemGetInfo, (size_t *f, size_t *t), stub_charge(stub_dev, 0); stub_memory(stub_dev, f, t))
F(cudaPointerGetAttributes, struct cudaPointerAttributes *a, const void *p) {
  INIT();
  Region r;
  memset(a, 0, sizeof *a);
  a->device = -2;
  if (!stub_find(p, &r)) return 0; /* type 0: not registered */
  int dev = r.kind == DEVICE || r.kind == ADDRESSES || r.kind == MANAGED;
  a->type = dev ? cudaMemoryTypeDevice : cudaMemoryTypeHost;
  a->device = r.dev;
  a->devicePointer = (void *)p;
  a->hostPointer = dev ? 0 : (void *)p;
  return 0;
}
static int copy(void *to, const void *from, size_t n, Stream *s) { return stub_copy(to, from, n, s); }
static int blocking(const void *a, const void *b) {
  Region r;
  return !stub_find(a, &r) || !stub_find(b, &r);
} /* pageable memory: the copy waits */
F(cudaMemcpy, void *a, const void *b, size_t n, enum cudaMemcpyKind k) {
  INIT();
  copy(a, b, n, 0);
  R(stub_wait(stub_work(0)));
}
F(cudaMemcpyAsync, void *a, const void *b, size_t n, enum cudaMemcpyKind k, cudaStream_t s) {
  INIT();
  int e = copy(a, b, n, S);
  if (!e && k == cudaMemcpyDeviceToHost && !stub_capture(S) && blocking(a, b)) e = stub_wait(stub_work(S));
  R(e);
}
IS(cudaMemcpyPeer, (void *a, int x, const void *b, int y, size_t n), copy(a, b, n, 0))
IS(cudaMemcpyPeerAsync, (void *a, int x, const void *b, int y, size_t n, cudaStream_t s), copy(a, b, n, S))
static int copy2d(char *a, size_t ap, const char *b, size_t bp, size_t w, size_t h, Stream *s) {
  for (size_t i = 0; i < h; i++) copy(a + i * ap, b + i * bp, w, s);
  return 0;
}
F(cudaMemcpy2D, void *a, size_t ap, const void *b, size_t bp, size_t w, size_t h, enum cudaMemcpyKind k) {
  INIT();
  copy2d(a, ap, b, bp, w, h, 0);
  R(stub_wait(stub_work(0)));
}
IS(cudaMemcpy2DAsync, (void *a, size_t ap, const void *b, size_t bp, size_t w, size_t h,
   enum cudaMemcpyKind k, cudaStream_t s),
   copy2d(a, ap, b, bp, w, h, S))
F(cudaMemcpyBatchAsync, void *const *a, const void *const *b, const size_t *n, size_t k,
  struct cudaMemcpyAttributes *at, size_t *ai, size_t an, cudaStream_t s) {
  INIT();
  for (size_t i = 0; i < k; i++) copy(a[i], b[i], n[i], S);
  return 0;
}
IS(cudaMemset, (void *p, int v, size_t n), stub_fill(p, v & 255, 1, n, 0))
IS(cudaMemsetAsync, (void *p, int v, size_t n, cudaStream_t s), stub_fill(p, v & 255, 1, n, S))
F(cudaMemset2DAsync, void *p, size_t q, int v, size_t w, size_t h, cudaStream_t s) {
  INIT();
  for (size_t i = 0; i < h; i++) stub_fill((char *)p + i * q, v & 255, 1, w, S);
  return 0;
}
static int pool[64];
SETS(cudaDeviceGetDefaultMemPool, (cudaMemPool_t *m, int d), *m = (cudaMemPool_t)&pool[d])
SETS(cudaDeviceGetMemPool, (cudaMemPool_t *m, int d), *m = (cudaMemPool_t)&pool[d])
SETS(cudaMemPoolCreate, (cudaMemPool_t *m, const struct cudaMemPoolProps *p), *m = (cudaMemPool_t)&pool[63])
SETS(cudaMemPoolGetAttribute, (cudaMemPool_t m, enum cudaMemPoolAttr a, void *v), if (a <= 3) *(int *)v = 0;
   else *(unsigned long long *)v = 0)
IS(cudaIpcGetMemHandle, (cudaIpcMemHandle_t *h, void *p), stub_export(h, p))
IS(cudaIpcOpenMemHandle, (void **p, cudaIpcMemHandle_t h, unsigned f), stub_import(p, &h))
IS(cudaIpcCloseMemHandle, (void *p), stub_free(p, MANAGED))
SETS(cudaIpcGetEventHandle, (cudaIpcEventHandle_t *h, cudaEvent_t e), memset(h, 0, sizeof *h))
/* streams, events */
IS(cudaStreamCreate, (cudaStream_t *s), cuStreamCreate((CUstream *)s, 0))
IS(cudaStreamCreateWithFlags, (cudaStream_t *s, unsigned f), cuStreamCreate((CUstream *)s, f))
IS(cudaStreamCreateWithPriority, (cudaStream_t *s, unsigned f, int p),
   cuStreamCreateWithPriority((CUstream *)s, f, p))
IS(cudaStreamDestroy, (cudaStream_t s), 0)
IS(cudaStreamQuery, (cudaStream_t s), stub_capture(S) ? 900 : stub_done(stub_work(S)))
IS(cudaStreamSynchronize, (cudaStream_t s), stub_capture(S) ? 900 : stub_wait(stub_work(S)))
SETS(cudaStreamGetPriority, (cudaStream_t s, int *p), *p = S ? S->priority : 0)
SETS(cudaStreamGetFlags, (cudaStream_t s, unsigned *p), *p = S ? S->flags : 0)
SETS(cudaStreamGetId, (cudaStream_t s, unsigned long long *p), *p = S ? S->id : (uintptr_t)s)
SETS(cudaStreamGetDevice, (cudaStream_t s, int *p), *p = S ? S->dev : stub_dev)
SETS(cudaStreamAddCallback, (cudaStream_t s, cudaStreamCallback_t f, void *u, unsigned fl), f(s, 0, u))
F(cudaLaunchHostFunc, cudaStream_t s, cudaHostFn_t f, void *u) {
  INIT();
  Capture *c = stub_capture(S);
  if (c)
    c->nodes++;
  else
    f(u);
  return 0;
}
IS(cudaStreamWaitEvent, (cudaStream_t s, cudaEvent_t e, unsigned f),
   cuStreamWaitEvent((CUstream)s, (CUevent)e, f))
SETS(cudaStreamIsCapturing, (cudaStream_t s, enum cudaStreamCaptureStatus *v), *v = stub_capture(S) ? 1 : 0)
F(cudaStreamBeginCapture, cudaStream_t s, enum cudaStreamCaptureMode m) {
  INIT();
  if (!S || stub_capture(S)) R(901);
  stub_begin(S, m);
  return 0;
}
F(cudaStreamBeginCaptureToGraph, cudaStream_t s, cudaGraph_t g, const cudaGraphNode_t *d,
  const cudaGraphEdgeData *e, size_t n, enum cudaStreamCaptureMode m) {
  INIT();
  if (!S || stub_capture(S)) R(901);
  stub_begin(S, m);
  return 0;
}
F(cudaStreamEndCapture, cudaStream_t s, cudaGraph_t *g) {
  INIT();
  if (!S || !stub_capture(S)) R(901);
  *g = (cudaGraph_t)stub_end(S);
  return 0;
}
F(cudaStreamGetCaptureInfo, cudaStream_t s, enum cudaStreamCaptureStatus *v, unsigned long long *id,
  cudaGraph_t *g, const cudaGraphNode_t **d, const cudaGraphEdgeData **e, size_t *n) {
  INIT();
  Capture *c = stub_capture(S);
  *v = c ? 1 : 0;
  if (id) *id = c ? c->id : 0;
  if (g) *g = (cudaGraph_t)c;
  if (d) *d = 0;
  if (e) *e = 0;
  if (n) *n = 0;
  return 0;
}
F(cudaThreadExchangeStreamCaptureMode, enum cudaStreamCaptureMode *m) {
  FIRST();
  static __thread enum cudaStreamCaptureMode mode;
  enum cudaStreamCaptureMode o = mode;
  mode = *m;
  *m = o;
  return 0;
}
IS(cudaEventCreate, (cudaEvent_t *e), cuEventCreate((CUevent *)e, 0))
IS(cudaEventCreateWithFlags, (cudaEvent_t *e, unsigned f), cuEventCreate((CUevent *)e, f))
SETS(cudaEventDestroy, (cudaEvent_t e), free(e))
IS(cudaEventRecord, (cudaEvent_t e, cudaStream_t s), cuEventRecord((CUevent)e, (CUstream)s))
IS(cudaEventRecordWithFlags, (cudaEvent_t e, cudaStream_t s, unsigned f),
   cuEventRecord((CUevent)e, (CUstream)s))
IS(cudaEventQuery, (cudaEvent_t e), stub_done(&((Event *)e)->work))
IS(cudaEventSynchronize, (cudaEvent_t e), stub_wait(&((Event *)e)->work))
SETS(cudaEventElapsedTime, (float *t, cudaEvent_t a, cudaEvent_t b), *t = 0.01f)
IS(cudaIpcOpenEventHandle, (cudaEvent_t *e, cudaIpcEventHandle_t h), cuEventCreate((CUevent *)e, 0))
/* graphs */
IS(cudaGraphCreate, (cudaGraph_t *g, unsigned f), stub_object(g))
SETS(cudaGraphInstantiate, (cudaGraphExec_t *x, cudaGraph_t g, unsigned long long f), stub_object(x);
   memcpy(*x, g, sizeof(Graph)))
IS(cudaGraphInstantiateWithFlags, (cudaGraphExec_t *x, cudaGraph_t g, unsigned long long f),
   cudaGraphInstantiate(x, g, f))
SETS(cudaGraphLaunch, (cudaGraphExec_t x, cudaStream_t s), stub_replay(S, (Graph *)x))
IS(cudaGraphDestroy, (cudaGraph_t g), 0)
SETS(cudaGraphExecDestroy, (cudaGraphExec_t x), free(x))
F(cudaGraphGetNodes, cudaGraph_t g, cudaGraphNode_t *nodes, size_t *n) {
  INIT();
  size_t k = ((Graph *)g)->nodes;
  if (nodes) {
    if (*n < k) k = *n;
    for (size_t i = 0; i < k; i++) nodes[i] = (cudaGraphNode_t)g;
  }
  *n = k;
  return 0;
}
SETS(cudaGraphNodeGetDependencies, (cudaGraphNode_t g, cudaGraphNode_t *d, cudaGraphEdgeData *e, size_t *n),
   *n = 0)
SETS(cudaGraphNodeGetType, (cudaGraphNode_t g, enum cudaGraphNodeType *t), *t = cudaGraphNodeTypeKernel)
IS(cudaGraphAddNode, (cudaGraphNode_t *o, cudaGraph_t g, const cudaGraphNode_t *d, const cudaGraphEdgeData *e,
   size_t n, struct cudaGraphNodeParams *p),
   stub_object(o))
SETS(cudaGraphConditionalHandleCreate, (cudaGraphConditionalHandle *h, cudaGraph_t g, unsigned v, unsigned f),
   *h = 1)
IS(cudaUserObjectCreate, (cudaUserObject_t *o, void *p, cudaHostFn_t f, unsigned n, unsigned fl), stub_object(o))
/* kernels */
typedef struct {
  dim3 grid, block;
  size_t shared;
  void *stream;
} Config;
static __thread Config configs[16];
static __thread int nconfigs;
unsigned __cudaPushCallConfiguration(dim3 g, dim3 b, size_t sh, void *s) {
  configs[nconfigs++ & 15] = (Config){g, b, sh, s};
  return 0;
}
int __cudaPopCallConfiguration(dim3 *g, dim3 *b, size_t *sh, void *s) {
  Config c = configs[--nconfigs & 15];
  *g = c.grid;
  *b = c.block;
  *sh = c.shared;
  *(void **)s = c.stream;
  return 0;
}
void **__cudaRegisterFatBinary(void *f) {
  FIRST();
  return calloc(1, 64);
}
void __cudaRegisterFatBinaryEnd(void **h) {}
void __cudaUnregisterFatBinary(void **h) {}
char __cudaInitModule(void **h) { return 1; }
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
/* The only kernel that computes: torch's fill (torch.ones, full, fill_), because vLLM reads its values back.
 * Its arguments are int N, the value and the address.
 * vLLM's cross_device_… wait for each other with signals of all ranks: the second argument is an array of their
 * addresses, the third is the own one. */
static struct {
  const void *f;
  int size, ranks;
} kernels[512];
static int nkernels;
void __cudaRegisterFunction(void **h, const char *f, char *d, const char *n, int t, void *a, void *b, void *c,
                            void *e, int *w) {
  const char *p;
  int size = 0, ranks = 0;
  if (strstr(n, "cross_device_") && (p = strstr(n, "Li")))
    ranks = atoi(p + 2);
  else if (strncmp(n, "_ZN2at6native", 13) || !(p = strstr(n, "11FillFunctorI")) ||
           !strstr(n, "29vectorized_elementwise_kernel"))
    return;
  p += 14;
  if (ranks)
    size = 1;
  else if (strchr("hab", *p))
    size = 1;
  else if (strchr("st", *p))
    size = 2;
  else if (strchr("ijf", *p))
    size = 4;
  else if (strchr("lmdxy", *p))
    size = 8;
  else if (!strncmp(p, "N3c108BFloat16", 14) || !strncmp(p, "N3c104Half", 10))
    size = 2;
  if (size && nkernels < 512) {
    pthread_mutex_lock(&lock);
    kernels[nkernels].size = size;
    kernels[nkernels].ranks = ranks;
    kernels[nkernels++].f = f;
    pthread_mutex_unlock(&lock);
  }
}
static void launch(const void *f, void **a, Stream *s) {
  stub_launch(s);
  int i = 0;
  while (i < nkernels && kernels[i].f != f) i++;
  if (i == nkernels) return;
  if (kernels[i].ranks)
    stub_meet(s, *(unsigned **)a[2], kernels[i].ranks, a[1]);
  else if (!stub_capture(s)) {
    uint64_t v = 0;
    memcpy(&v, a[1], kernels[i].size);
    stub_fill(*(void **)a[2], v, kernels[i].size, *(int *)a[0], s);
  }
}
static struct {
  const void *host;
  void *dev;
  size_t size;
} *vars;
static int nvars;
void __cudaRegisterVar(void **h, char *host, char *d, const char *n, int ext, size_t size, int c, int g) {
  pthread_mutex_lock(&lock);
  if (nvars % 64 == 0) vars = realloc(vars, (nvars + 64) * sizeof *vars);
  vars[nvars].host = host;
  vars[nvars].dev = 0;
  vars[nvars++].size = size;
  pthread_mutex_unlock(&lock);
}
void __cudaRegisterManagedVar(void **h, void **host, char *d, const char *n, int ext, size_t size, int c,
                              int g) {
  *host = calloc(1, size);
}
static void *symbol(const void *host) {
  for (int i = 0; i < nvars; i++)
    if (vars[i].host == host) {
      if (!vars[i].dev) vars[i].dev = calloc(1, vars[i].size + 64);
      return vars[i].dev;
    }
  return 0;
}
F(cudaGetSymbolAddress, void **p, const void *h) {
  INIT();
  *p = symbol(h);
  R(*p ? 0 : 500);
}
F(cudaMemcpyToSymbol, const void *h, const void *b, size_t n, size_t off, enum cudaMemcpyKind k) {
  INIT();
  char *p = symbol(h);
  if (!p) R(500);
  memcpy(p + off, b, n);
  return 0;
}
F(cudaMemcpyToSymbolAsync, const void *h, const void *b, size_t n, size_t off, enum cudaMemcpyKind k,
  cudaStream_t s) {
  INIT();
  char *p = symbol(h);
  if (!p) R(500);
  memcpy(p + off, b, n);
  return 0;
}
F(cudaMemcpyFromSymbol, void *b, const void *h, size_t n, size_t off, enum cudaMemcpyKind k) {
  INIT();
  char *p = symbol(h);
  if (!p) R(500);
  memcpy(b, p + off, n);
  return 0;
}
SETS(cudaLaunchKernel, (const void *f, dim3 g, dim3 b, void **a, size_t sh, cudaStream_t s), launch(f, a, S))
SETS(cudaLaunchKernelExC, (const cudaLaunchConfig_t *c, const void *f, void **a),
   stub_launch(stub_stream(c->stream)))
SETS(cudaLaunchCooperativeKernel, (const void *f, dim3 g, dim3 b, void **a, size_t sh, cudaStream_t s),
   stub_launch(S))
F(__cudaGetKernel, cudaKernel_t *k, const void *f) {
  FIRST();
  *k = (cudaKernel_t)f;
  return 0;
}
SETS(__cudaLaunchKernel, (cudaKernel_t k, dim3 g, dim3 b, void **a, size_t sh, cudaStream_t s), launch(k, a,
   S))
SETS(cudaGetKernel, (cudaKernel_t *k, const void *f), *k = (cudaKernel_t)f)
SETS(cudaGetFuncBySymbol, (cudaFunction_t *k, const void *f), *k = (cudaFunction_t)f)
F(cudaFuncGetAttributes, struct cudaFuncAttributes *a, const void *f) {
  INIT();
  memset(a, 0, sizeof *a);
  a->maxThreadsPerBlock = 1024;
  a->numRegs = 32;
  a->ptxVersion = a->binaryVersion = 90;
  a->maxDynamicSharedSizeBytes = 49152;
  return 0;
}
SETS(cudaFuncGetName, (const char **n, const void *f), *n = "stub")
SETS(cudaOccupancyMaxActiveBlocksPerMultiprocessor, (int *n, const void *f, int b, size_t sh),
   *n = b > 0 && b < 1024 ? 2048 / (b < 64 ? 64 : b) : 1)
SETS(cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags, (int *n, const void *f, int b, size_t sh,
   unsigned fl),
   *n = b > 0 && b < 1024 ? 2048 / (b < 64 ? 64 : b) : 1)
SETS(cudaOccupancyMaxActiveClusters, (int *n, const void *f, const cudaLaunchConfig_t *c), *n = 66)
SETS(cudaOccupancyMaxPotentialClusterSize, (int *n, const void *f, const cudaLaunchConfig_t *c), *n = 8)
SETS(cudaOccupancyAvailableDynamicSMemPerBlock, (size_t *n, const void *f, int a, int b), *n = 49152)
IS(cudaLibraryLoadData, (cudaLibrary_t *l, const void *c, enum cudaJitOption *jo, void **jv, unsigned jn,
   enum cudaLibraryOption *o, void **v, unsigned n),
   stub_object(l))
IS(cudaLibraryGetKernel, (cudaKernel_t *k, cudaLibrary_t l, const char *n), stub_object(k))
F(cudaLibraryEnumerateKernels, cudaKernel_t *k, unsigned n, cudaLibrary_t l) {
  INIT();
  for (unsigned i = 0; i < n; i++) stub_object(k + i);
  return 0;
}
SETS(cudaLibraryGetKernelCount, (unsigned *n, cudaLibrary_t l), *n = 1)
static int entry(const char *n, void **p, int v, enum cudaDriverEntryPointQueryResult *q) {
  CUdriverProcAddressQueryResult r;
  int e = cuGetProcAddress(n, p, v, 0, &r);
  if (q) *q = e ? cudaDriverEntryPointSymbolNotFound : cudaDriverEntryPointSuccess;
  return q ? 0 : e;
}
IS(cudaGetDriverEntryPoint, (const char *n, void **p, unsigned long long f,
   enum cudaDriverEntryPointQueryResult *q),
   entry(n, p, 13000, q))
IS(cudaGetDriverEntryPointByVersion, (const char *n, void **p, unsigned v, unsigned long long f,
   enum cudaDriverEntryPointQueryResult *q),
   entry(n, p, v, q))
