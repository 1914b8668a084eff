/* A libcublas.so.13: handles keep what was set. Every product succeeds, and none is computed. */
#include <cublas_v2.h>
#include <stdlib.h>
#include <string.h>
#include "stub.h"
typedef struct {
  void *stream;
  int pointer, math, atomics, sms;
} Handle;
#define F(n, ...) cublasStatus_t n(__VA_ARGS__)
#define H ((Handle *)h)
F(cublasCreate, cublasHandle_t *h) {
  FIRST();
  if (stub_init()) return CUBLAS_STATUS_NOT_INITIALIZED;
  *h = calloc(1, 4096);
  return 0;
}
F(cublasDestroy, cublasHandle_t h) {
  free(h);
  return 0;
}
F(cublasGetVersion, cublasHandle_t h, int *v) {
  *v = 130000;
  return 0;
}
F(cublasGetProperty, libraryPropertyType t, int *v) {
  *v = t == 0 ? 13 : 0;
  return 0;
}
F(cublasSetStream, cublasHandle_t h, cudaStream_t s) {
  H->stream = s;
  return 0;
}
F(cublasGetStream, cublasHandle_t h, cudaStream_t *s) {
  *s = H->stream;
  return 0;
}
F(cublasSetPointerMode, cublasHandle_t h, cublasPointerMode_t m) {
  H->pointer = m;
  return 0;
}
F(cublasGetPointerMode, cublasHandle_t h, cublasPointerMode_t *m) {
  *m = H->pointer;
  return 0;
}
F(cublasSetMathMode, cublasHandle_t h, cublasMath_t m) {
  H->math = m;
  return 0;
}
F(cublasGetMathMode, cublasHandle_t h, cublasMath_t *m) {
  *m = H->math;
  return 0;
}
F(cublasSetAtomicsMode, cublasHandle_t h, cublasAtomicsMode_t m) {
  H->atomics = m;
  return 0;
}
F(cublasGetAtomicsMode, cublasHandle_t h, cublasAtomicsMode_t *m) {
  *m = H->atomics;
  return 0;
}
F(cublasSetSmCountTarget, cublasHandle_t h, int n) {
  H->sms = n;
  return 0;
}
F(cublasGetSmCountTarget, cublasHandle_t h, int *n) {
  *n = H->sms;
  return 0;
}
const char *cublasGetStatusName(cublasStatus_t s) {
  return s ? "CUBLAS_STATUS_STUB" : "CUBLAS_STATUS_SUCCESS";
}
const char *cublasGetStatusString(cublasStatus_t s) { return s ? "stub error" : "success"; }
