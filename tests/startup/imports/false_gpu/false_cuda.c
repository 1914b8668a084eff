/* A libcuda.so.1 for tests: it has one device once `cuInit` was called, and none before, as NVIDIA's. */
static int is_initialized;

int cuInit(unsigned flags) { is_initialized = 1; return 0; }
int cuDeviceGetCount(int *count) { *count = is_initialized; return is_initialized ? 0 : 3; }
