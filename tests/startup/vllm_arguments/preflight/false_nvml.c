/* A libnvidia-ml.so for tests: what it reports is in the text file that FALSE_NVML names, a line each:
   init CODE | driver VERSION | cuda NUMBER | gpu NAME UUID TOTAL FREE [MAJOR] | process GPU PID USED */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned pid; unsigned long long used; unsigned instance, compute_instance; } Process;
typedef struct { char name[64], uuid[64]; Memory memory; int major; } Gpu;

static Gpu gpus[16];
static Process processes[16][16];
static unsigned num_gpus, num_processes[16];
static int init_code, cuda;
static char driver[64];

static void read_state(void) {
    char line[256];
    FILE *file = fopen(getenv("FALSE_NVML"), "r");
    num_gpus = 0;
    memset(num_processes, 0, sizeof num_processes);
    while (file && fgets(line, sizeof line, file)) {
        Gpu gpu = {0};
        Process process = {0};
        unsigned index;
        sscanf(line, "init %d", &init_code);
        sscanf(line, "driver %63s", driver);
        sscanf(line, "cuda %d", &cuda);
        if (sscanf(line, "gpu %63s %63s %llu %llu %d", gpu.name, gpu.uuid, &gpu.memory.total, &gpu.memory.free, &gpu.major) >= 4)
            gpus[num_gpus++] = gpu;
        if (sscanf(line, "process %u %u %llu", &index, &process.pid, &process.used) == 3)
            processes[index][num_processes[index]++] = process;
    }
    if (file) fclose(file);
}

int nvmlInit_v2(void) { init_code = 0; read_state(); return init_code; }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int code) { return code == 18 ? "Driver/library version mismatch" : "Unknown Error"; }
int nvmlSystemGetDriverVersion(char *text, unsigned length) { snprintf(text, length, "%s", driver); return 0; }
int nvmlSystemGetCudaDriverVersion_v2(int *number) { *number = cuda; return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = num_gpus; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, Gpu **handle) { *handle = &gpus[index]; return 0; }
int nvmlDeviceGetMemoryInfo(Gpu *gpu, Memory *memory) { *memory = gpu->memory; return 0; }
int nvmlDeviceGetName(Gpu *gpu, char *text, unsigned length) { snprintf(text, length, "%s", gpu->name); return 0; }
int nvmlDeviceGetCudaComputeCapability(Gpu *gpu, int *major, int *minor) { *major = gpu->major; *minor = 0; return 0; }
int nvmlDeviceGetUUID(Gpu *gpu, char *text, unsigned length) { snprintf(text, length, "%s", gpu->uuid); return 0; }
int nvmlDeviceGetComputeRunningProcesses_v3(Gpu *gpu, unsigned *count, Process *found) {
    unsigned index = gpu - gpus;
    *count = num_processes[index];
    memcpy(found, processes[index], *count * sizeof(Process));
    return 0;
}
