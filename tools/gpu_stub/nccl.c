/* A libnccl.so.2: communicators know their rank and size; collectives move no data and do not wait. */
#include <nccl.h>
#include <stdlib.h>
#include <string.h>
#include "stub.h"
typedef struct {
  int rank, size, dev;
} Comm;
#define F(n, ...) ncclResult_t n(__VA_ARGS__)
static int make(ncclComm_t *c, int size, int rank) {
  Comm *o = calloc(1, 4096);
  o->size = size;
  o->rank = rank;
  o->dev = stub_dev;
  *c = (ncclComm_t)o;
  return stub_init() ? 1 : 0;
}
F(ncclGetVersion, int *v) {
  FIRST();
  *v = NCCL_VERSION_CODE;
  return 0;
}
F(ncclGetUniqueId, ncclUniqueId *i) {
  FIRST();
  memset(i, 1, sizeof *i);
  return 0;
}
F(ncclCommGetUniqueId, ncclComm_t c, ncclUniqueId *i) {
  memset(i, 1, sizeof *i);
  return 0;
}
F(ncclCommInitRank, ncclComm_t *c, int n, ncclUniqueId i, int r) {
  FIRST();
  return make(c, n, r);
}
F(ncclCommInitRankConfig, ncclComm_t *c, int n, ncclUniqueId i, int r, ncclConfig_t *f) {
  FIRST();
  return make(c, n, r);
}
F(ncclCommInitRankScalable, ncclComm_t *c, int n, int r, int k, ncclUniqueId *i, ncclConfig_t *f) {
  FIRST();
  return make(c, n, r);
}
F(ncclCommInitAll, ncclComm_t *c, int n, const int *d) {
  FIRST();
  for (int i = 0; i < n; i++) make(c + i, n, i);
  return 0;
}
F(ncclCommSplit, ncclComm_t c, int color, int key, ncclComm_t *o, ncclConfig_t *f) {
  FIRST();
  return make(o, ((Comm *)c)->size, ((Comm *)c)->rank);
}
F(ncclCommDestroy, ncclComm_t c) {
  FIRST();
  return 0;
}
F(ncclCommAbort, ncclComm_t c) {
  FIRST();
  return 0;
}
F(ncclCommCount, const ncclComm_t c, int *n) {
  FIRST();
  *n = ((Comm *)c)->size;
  return 0;
}
F(ncclCommUserRank, const ncclComm_t c, int *n) {
  FIRST();
  *n = ((Comm *)c)->rank;
  return 0;
}
F(ncclCommCuDevice, const ncclComm_t c, int *n) {
  FIRST();
  *n = ((Comm *)c)->dev;
  return 0;
}
F(ncclCommGetAsyncError, ncclComm_t c, ncclResult_t *e) {
  FIRST();
  *e = 0;
  return 0;
}
F(ncclCommRegister, const ncclComm_t c, void *p, size_t n, void **h) {
  FIRST();
  *h = p;
  return 0;
}
F(ncclCommWindowRegister, ncclComm_t c, void *p, size_t n, ncclWindow_t *w, int f) {
  FIRST();
  *w = (ncclWindow_t)p;
  return 0;
}
F(ncclMemAlloc, void **p, size_t n) {
  FIRST();
  return stub_alloc(p, n, stub_dev, DEVICE) ? 1 : 0;
}
F(ncclMemFree, void *p) {
  FIRST();
  return stub_free(p, DEVICE) ? 1 : 0;
}
F(ncclRedOpCreatePreMulSum, ncclRedOp_t *o, void *s, ncclDataType_t t, ncclScalarResidence_t r,
  ncclComm_t c) {
  *o = 0;
  return 0;
}
const char *ncclGetErrorString(ncclResult_t e) { return e ? "stub error" : "no error"; }
const char *ncclGetLastError(ncclComm_t c) { return ""; }
