/* A libcublasLt.so.13: one algorithm fits everything, and no product is computed. */
#include <cublasLt.h>
#include <stdlib.h>
#include <string.h>
#include "stub.h"
#define F(n, ...) cublasStatus_t n(__VA_ARGS__)
F(cublasLtCreate, cublasLtHandle_t *h) {
  FIRST();
  if (stub_init()) return CUBLAS_STATUS_NOT_INITIALIZED;
  return stub_object(h);
}
size_t cublasLtGetVersion(void) { return 130000; }
size_t cublasLtGetCudartVersion(void) { return 13000; }
F(cublasLtGetProperty, libraryPropertyType t, int *v) {
  *v = t == 0 ? 13 : 0;
  return 0;
}
F(cublasLtMatmulDescCreate, cublasLtMatmulDesc_t *d, cublasComputeType_t c, cudaDataType_t t) {
  return stub_object(d);
}
F(cublasLtMatrixLayoutCreate, cublasLtMatrixLayout_t *d, cudaDataType t, uint64_t r, uint64_t c, int64_t l) {
  return stub_object(d);
}
F(cublasLtMatmulPreferenceCreate, cublasLtMatmulPreference_t *d) { return stub_object(d); }
F(cublasLtMatrixTransformDescCreate, cublasLtMatrixTransformDesc_t *d, cudaDataType t) { return stub_object(d); }
F(cublasLtMatmulDescDestroy, cublasLtMatmulDesc_t d) {
  free(d);
  return 0;
}
F(cublasLtMatrixLayoutDestroy, cublasLtMatrixLayout_t d) {
  free(d);
  return 0;
}
F(cublasLtMatmulPreferenceDestroy, cublasLtMatmulPreference_t d) {
  free(d);
  return 0;
}
static void found(cublasLtMatmulHeuristicResult_t *r) {
  memset(r, 0, sizeof *r);
  r->wavesCount = 1;
}
F(cublasLtMatmulAlgoGetHeuristic, cublasLtHandle_t h, cublasLtMatmulDesc_t o, cublasLtMatrixLayout_t a,
  cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d, cublasLtMatmulPreference_t p,
  int n, cublasLtMatmulHeuristicResult_t r[], int *k) {
  FIRST();
  found(r);
  *k = 1;
  return 0;
}
F(cublasLtMatmulAlgoGetIds, cublasLtHandle_t h, cublasComputeType_t c, cudaDataType_t s, cudaDataType_t a,
  cudaDataType_t b, cudaDataType_t d, cudaDataType_t e, int n, int ids[], int *k) {
  ids[0] = 1;
  *k = 1;
  return 0;
}
F(cublasLtMatmulAlgoCheck, cublasLtHandle_t h, cublasLtMatmulDesc_t o, cublasLtMatrixLayout_t a,
  cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d, const cublasLtMatmulAlgo_t *g,
  cublasLtMatmulHeuristicResult_t *r) {
  found(r);
  return 0;
}
F(cublasLtMatmulAlgoConfigGetAttribute, const cublasLtMatmulAlgo_t *g, cublasLtMatmulAlgoConfigAttributes_t a,
  void *b, size_t n, size_t *k) {
  memset(b, 0, n);
  if (k) *k = n;
  return 0;
}
F(cublasLtMatmulAlgoCapGetAttribute, const cublasLtMatmulAlgo_t *g, cublasLtMatmulAlgoCapAttributes_t a,
  void *b, size_t n, size_t *k) {
  memset(b, 0, n);
  if (k) *k = n;
  return 0;
}
F(cublasLtMatmul, cublasLtHandle_t h, cublasLtMatmulDesc_t o, const void *al, const void *A,
  cublasLtMatrixLayout_t a, const void *B, cublasLtMatrixLayout_t b, const void *be, const void *C,
  cublasLtMatrixLayout_t c, void *D, cublasLtMatrixLayout_t d, const cublasLtMatmulAlgo_t *g, void *w,
  size_t n, cudaStream_t s) {
  FIRST();
  stub_launch(stub_stream(s));
  return 0;
}
const char *cublasLtGetStatusName(cublasStatus_t s) {
  return s ? "CUBLAS_STATUS_STUB" : "CUBLAS_STATUS_SUCCESS";
}
const char *cublasLtGetStatusString(cublasStatus_t s) { return s ? "stub error" : "success"; }
