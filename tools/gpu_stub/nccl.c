/* A libnccl.so.2: communicators know their rank and size; collectives move no data and do not wait. */
#include <nccl.h>
#include <stdlib.h>
#include <string.h>
#include "stub.h"
typedef struct {
  int rank, size, dev;
} Comm;
#define RESULT ncclResult_t
#define INIT FIRST
#define END(e) e
static int make(ncclComm_t *c, int size, int rank) {
  Comm *o = calloc(1, 4096);
  o->size = size;
  o->rank = rank;
  o->dev = stub_dev;
  *c = (ncclComm_t)o;
  return stub_init() ? 1 : 0;
}
SETS(ncclGetVersion, (int *v), *v = NCCL_VERSION_CODE)
F(ncclGetUniqueId, ncclUniqueId *i) {
  FIRST();
  memset(i, 1, sizeof *i);
  return 0;
}
F(ncclCommGetUniqueId, ncclComm_t c, ncclUniqueId *i) {
  memset(i, 1, sizeof *i);
  return 0;
}
IS(ncclCommInitRank, (ncclComm_t *c, int n, ncclUniqueId i, int r), make(c, n, r))
IS(ncclCommInitRankConfig, (ncclComm_t *c, int n, ncclUniqueId i, int r, ncclConfig_t *f), make(c, n, r))
IS(ncclCommInitRankScalable, (ncclComm_t *c, int n, int r, int k, ncclUniqueId *i, ncclConfig_t *f),
   make(c, n, r))
F(ncclCommInitAll, ncclComm_t *c, int n, const int *d) {
  FIRST();
  for (int i = 0; i < n; i++) make(c + i, n, i);
  return 0;
}
IS(ncclCommSplit, (ncclComm_t c, int color, int key, ncclComm_t *o, ncclConfig_t *f),
   make(o, ((Comm *)c)->size, ((Comm *)c)->rank))
IS(ncclCommDestroy, (ncclComm_t c), 0)
IS(ncclCommAbort, (ncclComm_t c), 0)
SETS(ncclCommCount, (const ncclComm_t c, int *n), *n = ((Comm *)c)->size)
SETS(ncclCommUserRank, (const ncclComm_t c, int *n), *n = ((Comm *)c)->rank)
SETS(ncclCommCuDevice, (const ncclComm_t c, int *n), *n = ((Comm *)c)->dev)
SETS(ncclCommGetAsyncError, (ncclComm_t c, ncclResult_t *e), *e = 0)
SETS(ncclCommRegister, (const ncclComm_t c, void *p, size_t n, void **h), *h = p)
SETS(ncclCommWindowRegister, (ncclComm_t c, void *p, size_t n, ncclWindow_t *w, int f), *w = (ncclWindow_t)p)
IS(ncclMemAlloc, (void **p, size_t n), stub_alloc(p, n, stub_dev, DEVICE) ? 1 : 0)
IS(ncclMemFree, (void *p), stub_free(p, DEVICE) ? 1 : 0)
F(ncclRedOpCreatePreMulSum, ncclRedOp_t *o, void *s, ncclDataType_t t, ncclScalarResidence_t r,
  ncclComm_t c) {
  *o = 0;
  return 0;
}
const char *ncclGetErrorString(ncclResult_t e) { return e ? "stub error" : "no error"; }
const char *ncclGetLastError(ncclComm_t c) { return ""; }
