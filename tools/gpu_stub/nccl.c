/* A libnccl.so.2: the ranks of a communicator wait for each other, and no data moves. Its unique id is a handle
   of memory that all ranks map. */
#include <nccl.h>
#include <stdlib.h>
#include <string.h>
#include "stub.h"
typedef struct {
  int has_come[PEERS];
  unsigned collectives[PEERS], pairs[2][PEERS][PEERS]; /* pairs: sends and receives, by both ranks */
} Shared;
typedef struct {
  int rank, size, dev;
  Shared *shared;
} Comm;
#define RESULT ncclResult_t
#define INIT()                                                                                               \
  FIRST();                                                                                                   \
  int e_ = stub_fault(__func__);                                                                             \
  if (e_) return e_ < ncclNumResults ? e_ : ncclUnhandledCudaError
#define END(e) e
#define C ((Comm *)c)
static int make(ncclComm_t *c, int size, int rank, ncclUniqueId *id) {
  Comm *o = calloc(1, 4096);
  *o = (Comm){rank, size, stub_dev};
  *c = (ncclComm_t)o;
  if (stub_init()) return ncclUnhandledCudaError;
  if (size > PEERS) return ncclInvalidArgument;
  if (stub_import((void **)&o->shared, id)) return ncclSystemError;
  o->shared->has_come[rank] = 1;
  for (int i = 0; i < size; i++)
    while (!__atomic_load_n(&o->shared->has_come[i], __ATOMIC_ACQUIRE)) {
      if (!stub_alive(*(int *)id)) return ncclRemoteError; /* the process that has made the id */
      usleep(1000);
    }
  return 0;
}
static int meet(ncclComm_t c, void *s) {
  unsigned *ranks[PEERS];
  for (int i = 0; i < C->size; i++) ranks[i] = &C->shared->collectives[i];
  stub_meet(stub_stream(s), ranks[C->rank], C->size, ranks);
  return 0;
}
static int pair(ncclComm_t c, int receives, int from, int to, void *s) {
  unsigned *other = &C->shared->pairs[!receives][from][to];
  stub_meet(stub_stream(s), &C->shared->pairs[receives][from][to], 1, &other);
  return 0;
}
SETS(ncclGetVersion, (int *v), *v = NCCL_VERSION_CODE)
F(ncclGetUniqueId, ncclUniqueId *i) {
  INIT();
  void *p;
  memset(i, 0, sizeof *i);
  return stub_alloc(&p, sizeof(Shared), 0, MANAGED) || stub_export(i, p) ? ncclSystemError : 0;
}
IS(ncclCommInitRank, (ncclComm_t *c, int n, ncclUniqueId i, int r), make(c, n, r, &i))
IS(ncclCommInitRankConfig, (ncclComm_t *c, int n, ncclUniqueId i, int r, ncclConfig_t *f), make(c, n, r, &i))
IS(ncclCommInitRankScalable, (ncclComm_t *c, int n, int r, int k, ncclUniqueId *i, ncclConfig_t *f),
   make(c, n, r, i))
SETS(ncclCommAbort, (ncclComm_t c), stub_part(C->shared, sizeof(Shared)))
SETS(ncclCommCount, (const ncclComm_t c, int *n), *n = C->size)
SETS(ncclCommUserRank, (const ncclComm_t c, int *n), *n = C->rank)
SETS(ncclCommCuDevice, (const ncclComm_t c, int *n), *n = C->dev)
SETS(ncclCommGetAsyncError, (ncclComm_t c, ncclResult_t *e), *e = 0)
SETS(ncclCommRegister, (const ncclComm_t c, void *p, size_t n, void **h), *h = p)
SETS(ncclCommWindowRegister, (ncclComm_t c, void *p, size_t n, ncclWindow_t *w, int f), *w = (ncclWindow_t)p)
#define DATA const void *a, void *b, size_t n, ncclDataType_t t
IS(ncclAllReduce, (DATA, ncclRedOp_t o, ncclComm_t c, cudaStream_t s), meet(c, s))
IS(ncclReduce, (DATA, ncclRedOp_t o, int r, ncclComm_t c, cudaStream_t s), meet(c, s))
IS(ncclReduceScatter, (DATA, ncclRedOp_t o, ncclComm_t c, cudaStream_t s), meet(c, s))
IS(ncclBroadcast, (DATA, int r, ncclComm_t c, cudaStream_t s), meet(c, s))
IS(ncclAllGather, (DATA, ncclComm_t c, cudaStream_t s), meet(c, s))
IS(ncclAlltoAll, (DATA, ncclComm_t c, cudaStream_t s), meet(c, s))
IS(ncclGather, (DATA, int r, ncclComm_t c, cudaStream_t s), meet(c, s))
IS(ncclScatter, (DATA, int r, ncclComm_t c, cudaStream_t s), meet(c, s))
IS(ncclBcast, (void *b, size_t n, ncclDataType_t t, int r, ncclComm_t c, cudaStream_t s), meet(c, s))
IS(ncclSend, (const void *a, size_t n, ncclDataType_t t, int to, ncclComm_t c, cudaStream_t s),
   pair(c, 0, C->rank, to, s))
IS(ncclRecv, (void *b, size_t n, ncclDataType_t t, int from, ncclComm_t c, cudaStream_t s),
   pair(c, 1, from, C->rank, s))
IS(ncclMemAlloc, (void **p, size_t n), stub_alloc(p, n, stub_dev, DEVICE) ? ncclUnhandledCudaError : 0)
IS(ncclMemFree, (void *p), stub_free(p, DEVICE) ? ncclUnhandledCudaError : 0)
SETS(ncclRedOpCreatePreMulSum, (ncclRedOp_t *o, void *s, ncclDataType_t t, ncclScalarResidence_t r,
   ncclComm_t c), *o = 0)
const char *ncclGetErrorString(ncclResult_t e) { return e ? "stub error" : "no error"; }
const char *ncclGetLastError(ncclComm_t c) { return ""; }
