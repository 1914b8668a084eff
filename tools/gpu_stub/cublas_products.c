/* The products. They use only the handle, so that a capture contains a kernel. */
#include "stub.h"
typedef struct {
  void *stream;
} Handle;
#define P(n)                                                                                                 \
  int n(Handle *h) {                                                                                         \
    FIRST();                                                                                                 \
    stub_launch(stub_stream(h->stream));                                                                     \
    return 0;                                                                                                \
  }
P(cublasSgemm_v2)
P(cublasDgemm_v2) P(cublasHgemm) P(cublasGemmEx) P(cublasSgemmEx) P(cublasGemmStridedBatchedEx)
    P(cublasGemmBatchedEx) P(cublasSgemmStridedBatched) P(cublasSgemv_v2) P(cublasSdot_v2) P(cublasDotEx)
