/* A libcuda.so.1 without a GPU: "device" memory is host memory that is not touched, kernels and graphs do
   nothing, and every call succeeds at once. STUB_GPUS: the number of GPUs (1). STUB_MEMORY: the bytes of each
   (85520809984). CUDA_VISIBLE_DEVICES is obeyed. STUB_CUDA_LOG=FILE: gets "pid name" for the first call of
   each function in each process. STUB_LAUNCH_US, STUB_GRAPH_US: how long a kernel or a graph takes.
   STUB_FAIL=FILE: the calls that fail (README.md). STUB_COPY=0: skips large copies, too, so that device memory
   costs nothing. STUB_DRIVER=not-loaded|mismatch|old: the driver cannot be used.
   In a process that was forked after cuInit, every call returns error 3, as with NVIDIA's library. */
#define _GNU_SOURCE
#include <cuda.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include "stub.h"
#define E __attribute__((visibility("default")))
unsigned stub_gen = 1;
__thread int stub_dev;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int inited, forked, devices, physical[64];
static Slot *slots, *mine[64];
enum { CONTEXT = 480 << 20 };

void stub_log(const char *name, int generated) {
  char *p = getenv("STUB_CUDA_LOG"), b[200];
  if (!p) return;
  int d = open(p, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666),
      k = snprintf(b, sizeof b, "%d %s%s\n", getpid(), name, generated ? " generated" : "");
  if (d >= 0) {
    if (write(d, b, k)) {
    }
    close(d);
  }
}
static void child(void) {
  stub_gen++;
  pthread_mutex_init(&lock, 0);
  if (inited) {
    char b[64];
    forked = 1;
    snprintf(b, sizeof b, "(forked) %d", getppid());
    stub_log(b, 0);
  }
  memset(mine, 0, sizeof mine);
}
__attribute__((constructor)) static void loaded(void) { pthread_atfork(0, 0, child); }
static void attach(void) {
  int d = open(stub_table(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (d >= 0 && !ftruncate(d, SLOTS * sizeof *slots)) {
    slots = mmap(0, SLOTS * sizeof *slots, PROT_READ | PROT_WRITE, MAP_SHARED, d, 0);
    if (slots == MAP_FAILED) slots = 0;
  }
  if (d >= 0) close(d);
}
int stub_init(void) {
  if (forked) return 3;
  if (stub_driver() == DRIVER_NOT_LOADED) return 100;
  if (stub_driver() == DRIVER_MISMATCH) return 803;
  if (inited) return devices ? 0 : 100;
  pthread_mutex_lock(&lock);
  if (!inited) {
    char *t = getenv("STUB_GPUS"), *v = getenv("CUDA_VISIBLE_DEVICES");
    int n = t ? atoi(t) : 1;
    if (!v)
      for (devices = 0; devices < n; devices++) physical[devices] = devices;
    else
      for (char *c = strdup(v), *w = strtok(c, ","); w; w = strtok(0, ",")) {
        int k;
        if (sscanf(w, "GPU-00000000-0000-0000-0000-0000000000%d", &k) != 1) {
          char *e;
          k = strtol(w, &e, 10);
          if (e == w) break;
        }
        if (k < 0 || k >= n) break;
        physical[devices++] = k;
      }
    attach();
    inited = 1;
    struct timespec c;
    clock_gettime(CLOCK_REALTIME, &c);
    char b[64];
    snprintf(b, sizeof b, "(initialized) %ld.%03ld", c.tv_sec, c.tv_nsec / 1000000);
    stub_log(b, 0);
  }
  pthread_mutex_unlock(&lock);
  return devices ? 0 : 100;
}
int stub_count(void) { return devices; }
int stub_physical(int dev) { return dev >= 0 && dev < devices ? physical[dev] : 0; }
void stub_charge(int dev, long long bytes) {
  if (dev < 0 || dev >= devices || !slots) return;
  if (!mine[dev])
    for (int i = 0, me = getpid(); i < SLOTS; i++) {
      int was = slots[i].pid;
      if ((was == 0 || !stub_alive(was)) && __sync_bool_compare_and_swap(&slots[i].pid, was, me)) {
        slots[i].dev = physical[dev];
        slots[i].used = CONTEXT;
        mine[dev] = &slots[i];
        break;
      }
    }
  if (mine[dev]) __sync_fetch_and_add(&mine[dev]->used, bytes);
}
void stub_memory(int dev, size_t *unused, size_t *all) {
  unsigned long long used = 0;
  if (slots)
    for (int i = 0; i < SLOTS; i++)
      if (stub_uses(&slots[i], stub_physical(dev))) used += slots[i].used;
  *all = stub_total();
  *unused = *all > used ? *all - used : 0;
}

/* Packages load NVIDIA's own libraries by path (torch, cuda.pathfinder). Then the process has two runtimes,
   and vLLM's sleep mode calls the wrong one. So a path with the name of a stand-in's library loads the
   stand-in. For other names, the loader must be reached by a jump (-O2), because it
   looks into the RPATH of its caller. */
E void *dlopen(const char *file, int mode) {
  static void *(*real)(const char *, int);
  static char folder[4096];
  if (!real) {
    Dl_info here;
    dladdr(dlopen, &here);
    snprintf(folder, sizeof folder, "%.*s", (int)(strrchr(here.dli_fname, '/') + 1 - here.dli_fname),
             here.dli_fname);
    real = dlsym(RTLD_NEXT, "dlopen");
  }
  const char *name = file ? strrchr(file, '/') : 0;
  if (name) {
    char own[8192];
    snprintf(own, sizeof own, "%s%s", folder, name + 1);
    if (strstr(own, ".so") && !access(own, R_OK)) return real(own, mode);
  }
  return real(file, mode);
}

/* memory: a sorted table of regions */
static Region *regions;
static int nregions, cap;
static unsigned long long ids;
static int at(const void *p) {
  int a = 0, b = nregions;
  while (a < b) {
    int m = (a + b) / 2;
    if (regions[m].base <= (char *)p)
      a = m + 1;
    else
      b = m;
  }
  return a - 1;
}
void stub_register(void *p, size_t n, int dev, int kind) {
  pthread_mutex_lock(&lock);
  if (nregions == cap) regions = realloc(regions, (cap = cap ? 2 * cap : 256) * sizeof *regions);
  int i = at(p) + 1;
  memmove(regions + i + 1, regions + i, (nregions++ - i) * sizeof *regions);
  regions[i] = (Region){p, n, dev, kind, 0, ++ids};
  pthread_mutex_unlock(&lock);
}
int stub_find(const void *p, Region *out) {
  pthread_mutex_lock(&lock);
  int i = at(p), ok = i >= 0 && (char *)p < regions[i].base + regions[i].size;
  if (ok) *out = regions[i];
  pthread_mutex_unlock(&lock);
  return ok;
}
static int drop(void *p, Region *out) {
  pthread_mutex_lock(&lock);
  int i = at(p), ok = i >= 0 && regions[i].base == p;
  if (ok) {
    *out = regions[i];
    memmove(regions + i, regions + i + 1, (--nregions - i) * sizeof *regions);
  }
  pthread_mutex_unlock(&lock);
  return ok;
}
int stub_alloc(void **p, size_t n, int dev, int kind) {
  *p = 0;
  if (!n) return 0;
  n = (n + 4095) & ~(size_t)4095;
  if (kind == DEVICE) {
    size_t f, t;
    stub_charge(dev, 0);
    stub_memory(dev, &f, &t);
    if (n > f) return 2;
  }
  void *m = mmap(0, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (m == MAP_FAILED) return 2;
  madvise(m, n, MADV_NOHUGEPAGE);
  if (kind == DEVICE) stub_charge(dev, n);
  stub_register(*p = m, n, dev, kind);
  return 0;
}
static void forget(void *p, size_t n); /* the small pieces there */
int stub_free(void *p, int kind) {
  Region r;
  if (!p) return 0;
  if (!drop(p, &r)) return 1;
  forget(r.base, r.size);
  stub_part(r.base, r.size);
  if (r.kind != REGISTERED) munmap(r.base, r.size);
  if (r.kind == DEVICE) stub_charge(r.dev, -(long long)r.size);
  return 0;
}
/* Memory of several processes. What was in it before is lost, because nothing on a device depends on it. The file
   stays open: after a capture, a rank of vLLM may free what a slower one has not opened yet. */
typedef struct {
  int pid, file;
  size_t size;
} Shared;
int stub_export(void *handle, void *p) {
  Shared *h = memset(handle, 0, 64);
  pthread_mutex_lock(&lock);
  int i = at(p), ok = i >= 0 && (char *)p < regions[i].base + regions[i].size;
  Region *r = &regions[i];
  if (ok && !r->file) {
    r->file = memfd_create("stub", MFD_CLOEXEC);
    ok = !ftruncate(r->file, r->size) && mmap(r->base, r->size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
                                              r->file, 0) != MAP_FAILED;
  }
  if (ok) *h = (Shared){getpid(), r->file, r->size};
  pthread_mutex_unlock(&lock);
  return ok ? 0 : 1;
}
int stub_import(void **p, const void *handle) {
  const Shared *h = handle;
  char name[64];
  snprintf(name, sizeof name, "/proc/%d/fd/%d", h->pid, h->file);
  int d = open(name, O_RDWR | O_CLOEXEC);
  if (d < 0) return 400;
  *p = mmap(0, h->size, PROT_READ | PROT_WRITE, MAP_SHARED, d, 0);
  close(d);
  if (*p == MAP_FAILED) return 400;
  stub_register(*p, h->size, stub_dev, MANAGED);
  return 0;
}
/* Copies. Kernels compute nothing, so what was once copied to device memory would show up in the "results" of
   later kernels, because torch uses memory again. Therefore writes of up to SMALL bytes go to a table and not
   to memory: who reads exactly the same piece back gets it, every other small read gets zeros. Larger copies
   are real, and take the small pieces with them: vLLM's sleep mode copies whole allocations. */
enum { SMALL = 65536 };
typedef struct {
  char *at, *data;
  size_t size;
} Note;
static Note *notes; /* sorted by address */
static int nnotes, note_cap;
static int on_device(const void *p) {
  Region r;
  return stub_find(p, &r) && (r.kind == DEVICE || r.kind == ADDRESSES);
}
static int copying(void) {
  static int c = -1;
  if (c < 0) {
    char *t = getenv("STUB_COPY");
    c = !t || *t != '0';
  }
  return c;
}
/* The number of the first note at this address or behind it. */
static int note(const void *p) {
  int a = 0, b = nnotes;
  while (a < b) {
    int m = (a + b) / 2;
    if (notes[m].at < (char *)p)
      a = m + 1;
    else
      b = m;
  }
  return a;
}
static void drop_notes(void *p, size_t n) {
  int a = note(p), b = note((char *)p + n);
  if (a == b) return;
  for (int i = a; i < b; i++) free(notes[i].data);
  memmove(notes + a, notes + b, (nnotes - b) * sizeof *notes);
  nnotes -= b - a;
}
static void put(void *to, const void *data, size_t n) { /* data NULL: forget */
  char *own = data ? memcpy(malloc(n), data, n) : 0;
  drop_notes(to, n);
  if (!data) return;
  if (nnotes == note_cap) notes = realloc(notes, (note_cap = note_cap ? 2 * note_cap : 256) * sizeof *notes);
  int i = note(to);
  memmove(notes + i + 1, notes + i, (nnotes++ - i) * sizeof *notes);
  notes[i] = (Note){to, own, n};
}
static const char *get(const void *from, size_t n) {
  int i = note(from);
  return i < nnotes && notes[i].at == from && notes[i].size == n ? notes[i].data : 0;
}
/* After a large copy. In host memory a piece is real, and its note is void once the program has changed it. */
static void carry(char *to, const char *from, size_t n, int to_device, int from_device) {
  drop_notes(to, n);
  const char *p = from;
  for (int i; (i = note(p)) < nnotes && notes[i].at < from + n; p++) {
    Note o = notes[i];
    p = o.at;
    if (p + o.size > from + n || (!from_device && memcmp(p, o.data, o.size))) continue;
    if (!to_device) memcpy(to + (p - from), o.data, o.size);
    put(to + (p - from), o.data, o.size);
  }
}
static void forget(void *p, size_t n) {
  pthread_mutex_lock(&lock);
  drop_notes(p, n);
  pthread_mutex_unlock(&lock);
}
int stub_copy(void *to, const void *from, size_t n, Stream *s) {
  Capture *c = stub_capture(s);
  if (c) {
    c->nodes++;
    return 0;
  }
  if (!n || to == from) return 0;
  int d = on_device(to), f = on_device(from);
  if (!(d || f)) {
    memmove(to, from, n);
    return 0;
  }
  if (n > SMALL) {
    if (copying())
      memmove(to, from, n);
    else if (!d)
      memset(to, 0, n);
    pthread_mutex_lock(&lock);
    carry(to, from, n, d, f);
    pthread_mutex_unlock(&lock);
    return 0;
  }
  pthread_mutex_lock(&lock);
  const char *data = f ? get(from, n) : from;
  if (d)
    put(to, data, n);
  else if (data)
    memcpy(to, data, n);
  else
    memset(to, 0, n);
  pthread_mutex_unlock(&lock);
  return 0;
}
int stub_fill(void *to, uint64_t value, size_t unit, size_t n, Stream *s) { /* n units */
  Capture *c = stub_capture(s);
  if (c) {
    c->nodes++;
    return 0;
  }
  size_t bytes = n * unit;
  int d = on_device(to);
  if (!bytes) return 0;
  if (d && bytes > SMALL) { /* only gives the pages back */
    forget(to, bytes);
    char *a = (char *)(((uintptr_t)to + 4095) & ~(uintptr_t)4095),
         *b = (char *)(((uintptr_t)to + bytes) & ~(uintptr_t)4095);
    madvise(a, b - a, MADV_DONTNEED);
    return 0;
  }
  char *m = d ? malloc(bytes) : to;
  for (size_t i = 0; i < n; i++) memcpy(m + i * unit, &value, unit);
  if (d) {
    pthread_mutex_lock(&lock);
    put(to, value ? m : 0, bytes);
    pthread_mutex_unlock(&lock);
    free(m);
  }
  return 0;
}

/* time */
static int64_t busy; /* until then, the device runs kernels, one after the other */
static int64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000ll + t.tv_nsec;
}
static void occupy(Work *w, const char *variable) {
  char *t = getenv(variable);
  long us = t ? atol(t) : 0;
  if (us <= 0) return;
  pthread_mutex_lock(&lock);
  int64_t n = now();
  w->time = busy = (busy > n ? busy : n) + us * 1000;
  pthread_mutex_unlock(&lock);
}
void stub_launch(Stream *s) {
  Capture *c = stub_capture(s);
  if (c)
    c->nodes++;
  else
    occupy(stub_work(s), "STUB_LAUNCH_US");
}

/* Faults. STUB_FAIL names a file with lines "DEVICE CALL NTH RESULT", which a process tries one by one. */
enum { HANGS = -1 };
static int fault(const char *call) {
  static char *file = (char *)-1;
  static int sticky, line, count;
  char text[1024], *rest = text, *rule, name[64], result[16] = "", *end;
  if (file == (char *)-1) file = getenv("STUB_FAIL");
  if (!file || sticky) return sticky;
  int d = open(file, O_RDONLY | O_CLOEXEC), k = d < 0 ? 0 : read(d, text, sizeof text - 1), e = 0;
  if (d >= 0) close(d);
  text[k > 0 ? k : 0] = 0;
  pthread_mutex_lock(&lock);
  if (k <= 0) line = count = 0;
  for (int i = 0, dev, nth; k > 0 && (rule = strsep(&rest, "\n"));) {
    if (sscanf(rule, "%d %63s %d %15s", &dev, name, &nth, result) != 4 || dev != stub_physical(stub_dev) ||
        i++ != line)
      continue;
    if (strcmp(name, call) || ++count < nth) break;
    if (count == nth) stub_log("(fault)", 0);
    if (!strcmp(result, "kill")) kill(getpid(), SIGKILL);
    e = !strcmp(result, "hang") ? HANGS : strtol(result, &end, 10);
    if (e != HANGS && *end != '+') line++, count = 0;
    if (e != HANGS && *end == '!') sticky = e;
    break;
  }
  pthread_mutex_unlock(&lock);
  return e;
}
int stub_fault(const char *call) {
  int e;
  while ((e = fault(call)) == HANGS) usleep(2000);
  return e;
}

/* Meetings. In a channel, each process counts the operations that it has begun. */
static struct {
  unsigned *own, *peers[PEERS];
  int n;
} channels[CHANNELS];
static int nchannels;
static void begin(Work *w, int channel, unsigned n) {
  w->needs[channel] = __atomic_add_fetch(channels[channel].own, n, __ATOMIC_ACQ_REL);
}
void stub_meet(Stream *s, unsigned *own, int n, unsigned **peers) {
  pthread_mutex_lock(&lock);
  int i = 0;
  while (i < nchannels && channels[i].own != own) i++;
  if (i == CHANNELS || n > PEERS) abort();
  if (i == nchannels) {
    nchannels++;
    channels[i].own = own;
    memcpy(channels[i].peers, peers, (channels[i].n = n) * sizeof *peers);
  }
  Capture *c = stub_capture(s);
  if (c)
    c->nodes++, c->meetings[i]++;
  else
    begin(stub_work(s), i, 1);
  pthread_mutex_unlock(&lock);
}
void stub_replay(Stream *s, const Graph *g) {
  occupy(stub_work(s), "STUB_GRAPH_US");
  for (int i = 0; i < nchannels; i++)
    if (g->meetings[i]) begin(stub_work(s), i, g->meetings[i]);
}
void stub_part(void *p, size_t n) {
  static unsigned none;
  pthread_mutex_lock(&lock);
  for (int i = 0; i < nchannels; i++)
    for (int k = -1; k < channels[i].n; k++) {
      char *counter = (char *)(k < 0 ? channels[i].own : channels[i].peers[k]);
      if (counter < (char *)p || counter >= (char *)p + n) continue;
      channels[i].own = &none;
      channels[i].n = 0;
    }
  pthread_mutex_unlock(&lock);
}
static int met(const Work *w) {
  int ok = 1;
  pthread_mutex_lock(&lock);
  for (int i = 0; i < nchannels; i++)
    for (int k = 0; k < channels[i].n; k++) {
      unsigned has = __atomic_load_n(channels[i].peers[k], __ATOMIC_ACQUIRE);
      ok &= (int)(has - (w ? w->needs[i] : *channels[i].own)) >= 0;
    }
  pthread_mutex_unlock(&lock);
  return ok;
}
int stub_done(const Work *w) {
  int e = fault("sync");
  return e == HANGS || (!e && ((w ? w->time : busy) > now() || !met(w))) ? 600 : e;
}
int stub_wait(const Work *w) {
  int e = stub_fault("sync");
  for (int64_t d; !e && (d = (w ? w->time : busy) - now()) > 0;) {
    struct timespec t = {d / 1000000000, d % 1000000000};
    nanosleep(&t, 0);
  }
  while (!e && !met(w)) usleep(100);
  return e;
}

/* streams and capture */
Stream *stub_stream(void *s) { return (uintptr_t)s > 2 ? s : 0; }
Work *stub_work(Stream *s) {
  static Work of_default;
  return s ? &s->work : &of_default;
}
Capture *stub_capture(Stream *s) { return s && s->cap && s->cap->active ? s->cap : 0; }
Capture *stub_begin(Stream *s, int mode) {
  static unsigned long long n;
  Capture *c = calloc(1, sizeof *c);
  c->id = __sync_add_and_fetch(&n, 1);
  c->active = 1;
  c->mode = mode;
  return s->cap = c; /* never freed: events and streams may still point to it */
}
Graph *stub_end(Stream *s) {
  Graph *g = calloc(1, sizeof *g);
  g->nodes = s->cap->nodes;
  memcpy(g->meetings, s->cap->meetings, sizeof g->meetings);
  s->cap->active = 0;
  s->cap = 0;
  return g;
}

const char *stub_error(int code, int name) {
  static const struct {
    int code;
    const char *name, *text;
  } t[] = {
      {0, "cudaSuccess", "no error"},
      {1, "cudaErrorInvalidValue", "invalid argument"},
      {2, "cudaErrorMemoryAllocation", "out of memory"},
      {3, "cudaErrorInitializationError", "initialization error"},
      {35, "cudaErrorInsufficientDriver", "CUDA driver version is insufficient for CUDA runtime version"},
      {100, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
      {101, "cudaErrorInvalidDevice", "invalid device ordinal"},
      {400, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
      {500, "cudaErrorSymbolNotFound", "named symbol not found"},
      {600, "cudaErrorNotReady", "device not ready"},
      {700, "cudaErrorIllegalAddress", "an illegal memory access was encountered"},
      {704, "cudaErrorPeerAccessAlreadyEnabled", "peer access is already enabled"},
      {801, "cudaErrorNotSupported", "operation not supported"},
      {803, "cudaErrorSystemDriverMismatch",
       "system has unsupported display driver / cuda driver combination"},
      {900, "cudaErrorStreamCaptureUnsupported", "operation not permitted when stream is capturing"}};
  for (unsigned i = 0; i < sizeof t / sizeof *t; i++)
    if (t[i].code == code) return name ? t[i].name : t[i].text;
  return name ? "cudaErrorUnknown" : "unknown error";
}
int stub_attribute(int a, int dev) {
  static const int t[][2] = {
      {1, 1024},      {2, 1024},  {3, 1024}, {4, 64},          {5, 2147483647},  {6, 65535},    {7, 65535},
      {8, 49152},     {9, 65536}, {10, 32},  {11, 2147483647}, {12, 65536},      {13, 1980000}, {14, 512},
      {15, 1},        {16, 132},  {19, 1},   {31, 1},          {32, 1},          {36, 2619000}, {37, 5120},
      {38, 52428800}, {39, 2048}, {40, 3},   {41, 1},          {51, 32},         {75, 9},       {76, 0},
      {78, 1},        {79, 1},    {80, 1},   {81, 233472},     {82, 65536},      {83, 1},       {87, 2},
      {89, 1},        {90, 1},    {91, 1},   {95, 1},          {97, 232448},     {98, 1},       {99, 1},
      {102, 1},       {103, 1},   {106, 32}, {108, 32505856},  {109, 134213632}, {110, 1},      {111, 1024},
      {115, 1},       {116, 1},   {119, 1},  {120, 1},         {121, 1},         {122, 1}};
  if (a == 33) return 16 + stub_physical(dev);
  for (unsigned i = 0; i < sizeof t / sizeof *t; i++)
    if (t[i][0] == a) return t[i][1];
  return 0;
}

/* the driver's interface */
#define INIT()                                                                                               \
  do {                                                                                                       \
    FIRST();                                                                                                 \
    if (!inited) return 3;                                                                                   \
    int e_ = stub_init();                                                                                    \
    if (e_ || (e_ = stub_fault(__func__))) return e_;                                                        \
  } while (0) /* only cuInit and the runtime initialize */
#define RESULT E CUresult
#define END(e) e
static struct ctx {
  int dev;
} contexts[64];
static __thread struct ctx *current, *stack[64];
static __thread int depth;
static CUcontext context(int dev) {
  contexts[dev].dev = dev;
  stub_charge(dev, 0);
  return (CUcontext)&contexts[dev];
}
F(cuInit, unsigned f) {
  FIRST();
  return stub_init();
}
F(cuDriverGetVersion, int *v) {
  FIRST();
  *v = stub_cuda_version();
  return 0;
}
SETS(cuDeviceGetCount, (int *n), *n = devices)
F(cuDeviceGet, CUdevice *d, int i) {
  INIT();
  if (i < 0 || i >= devices) return 101;
  *d = i;
  return 0;
}
SETS(cuDeviceGetName, (char *t, int n, CUdevice d), snprintf(t, n, "%s", stub_name()))
static void uuid(CUuuid *u, int d) {
  memset(u, 0, sizeof *u);
  u->bytes[15] = (stub_physical(d) / 10 << 4) | stub_physical(d) % 10;
}
SETS(cuDeviceGetUuid, (CUuuid *u, CUdevice d), uuid(u, d))
SETS(cuDeviceTotalMem, (size_t *n, CUdevice d), *n = stub_total())
SETS(cuDeviceGetAttribute, (int *v, CUdevice_attribute a, CUdevice d), *v = stub_attribute(a, d))
SETS(cuDeviceComputeCapability, (int *a, int *b, CUdevice d), *a = 9; *b = 0)
SETS(cuDeviceGetPCIBusId, (char *t, int n, CUdevice d), snprintf(t, n, "0000:%02X:00.0",
   16 + stub_physical(d)))
SETS(cuDeviceCanAccessPeer, (int *v, CUdevice a, CUdevice b), *v = a != b)
F(cuDevicePrimaryCtxRetain, CUcontext *c, CUdevice d) {
  INIT();
  if (d < 0 || d >= devices) return 101;
  *c = context(d);
  return 0;
}
SETS(cuDevicePrimaryCtxGetState, (CUdevice d, unsigned *f, int *a), if (f) *f = 0; if (a) *a = mine[d] != 0)
IS(cuDevicePrimaryCtxRelease, (CUdevice d), 0)
F(cuCtxGetCurrent, CUcontext *c) {
  FIRST();
  if (!inited) {
    *c = 0;
    return 3;
  }
  INIT();
  *c = (CUcontext)(current ? current : mine[stub_dev] ? (void *)context(stub_dev) : 0);
  return 0;
}
SETS(cuCtxSetCurrent, (CUcontext c), current = (void *)c; if (c) stub_dev = current->dev)
SETS(cuCtxPushCurrent, (CUcontext c), stack[depth++ & 63] = current; current = (void *)c;
   if (c) stub_dev = current->dev)
SETS(cuCtxPopCurrent, (CUcontext *c), if (c) *c = (CUcontext)current;
   if (depth) current = stack[--depth & 63]; if (current) stub_dev = current->dev)
SETS(cuCtxGetDevice, (CUdevice *d), *d = stub_dev)
SETS(cuCtxGetId, (CUcontext c, unsigned long long *i), *i = 1 + (c ? ((struct ctx *)c)->dev : stub_dev))
IS(cuCtxSynchronize, (void), stub_wait(0))
#undef cuCtxCreate
SETS(cuCtxCreate_v2, (CUcontext *c, unsigned f, CUdevice d), *c = context(d); current = (void *)*c)
IS(cuCtxDestroy, (CUcontext c), 0)
SETS(cuCtxGetApiVersion, (CUcontext c, unsigned *v), *v = 13000)
SETS(cuCtxGetLimit, (size_t *v, CUlimit l), *v = 1024)
SETS(cuCtxGetStreamPriorityRange, (int *a, int *b), *a = 0; *b = -5)
SETS(cuMemGetInfo, (size_t *f, size_t *t), stub_memory(stub_dev, f, t))
IS(cuMemAlloc, (CUdeviceptr *p, size_t n), stub_alloc((void **)p, n, stub_dev, DEVICE))
IS(cuMemAllocAsync, (CUdeviceptr *p, size_t n, CUstream s), stub_alloc((void **)p, n, stub_dev, DEVICE))
IS(cuMemAllocManaged, (CUdeviceptr *p, size_t n, unsigned f), stub_alloc((void **)p, n, stub_dev, DEVICE))
F(cuMemAllocPitch, CUdeviceptr *p, size_t *pitch, size_t w, size_t h, unsigned e) {
  INIT();
  *pitch = (w + 511) & ~511ul;
  return stub_alloc((void **)p, *pitch * h, stub_dev, DEVICE);
}
IS(cuMemFree, (CUdeviceptr p), stub_free((void *)p, DEVICE))
IS(cuMemFreeAsync, (CUdeviceptr p, CUstream s), stub_free((void *)p, DEVICE))
IS(cuMemAllocHost, (void **p, size_t n), stub_alloc(p, n, stub_dev, HOST))
IS(cuMemHostAlloc, (void **p, size_t n, unsigned f), stub_alloc(p, n, stub_dev, HOST))
IS(cuMemFreeHost, (void *p), stub_free(p, HOST))
SETS(cuMemHostGetDevicePointer, (CUdeviceptr *d, void *p, unsigned f), *d = (CUdeviceptr)p)
SETS(cuMemHostRegister, (void *p, size_t n, unsigned f), stub_register(p, n, stub_dev, REGISTERED))
IS(cuMemHostUnregister, (void *p), stub_free(p, REGISTERED))
F(cuMemGetAddressRange, CUdeviceptr *b, size_t *n, CUdeviceptr p) {
  INIT();
  Region r;
  if (!stub_find((void *)p, &r)) return 1;
  if (b) *b = (CUdeviceptr)r.base;
  if (n) *n = r.size;
  return 0;
}
static int pointer(void *v, int a, CUdeviceptr p) {
  Region r;
  int ok = stub_find((void *)p, &r), dev = ok && (r.kind == DEVICE || r.kind == ADDRESSES);
  switch (a) {
  case CU_POINTER_ATTRIBUTE_CONTEXT:
    if (!ok) return 1;
    *(CUcontext *)v = context(r.dev);
    return 0;
  case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
    if (!ok) return 1;
    *(unsigned *)v = dev ? 2 : 1;
    return 0;
  case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
    if (!ok) return 1;
    *(CUdeviceptr *)v = p;
    return 0;
  case CU_POINTER_ATTRIBUTE_HOST_POINTER:
    if (!ok || dev) return 1;
    *(void **)v = (void *)p;
    return 0;
  case CU_POINTER_ATTRIBUTE_BUFFER_ID:
    if (!ok) return 1;
    *(unsigned long long *)v = r.id;
    return 0;
  case CU_POINTER_ATTRIBUTE_IS_MANAGED: *(unsigned *)v = 0; return ok ? 0 : 1;
  case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL: *(int *)v = ok ? r.dev : -2; return ok ? 0 : 1;
  case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
    if (!ok) return 1;
    *(CUdeviceptr *)v = (CUdeviceptr)r.base;
    return 0;
  case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
    if (!ok) return 1;
    *(size_t *)v = r.size;
    return 0;
  case CU_POINTER_ATTRIBUTE_MAPPED: *(int *)v = ok; return 0;
  case CU_POINTER_ATTRIBUTE_SYNC_MEMOPS: *(unsigned *)v = 0; return 0;
  case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE: *(unsigned *)v = ok && r.kind == DEVICE; return 0;
  case CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE: *(void **)v = 0; return 0;
  default: *(unsigned *)v = 0; return 0;
  }
}
IS(cuPointerGetAttribute, (void *v, CUpointer_attribute a, CUdeviceptr p), pointer(v, a, p))
F(cuPointerGetAttributes, unsigned n, CUpointer_attribute *a, void **v, CUdeviceptr p) {
  INIT();
  for (unsigned i = 0; i < n; i++)
    if (pointer(v[i], a[i], p)) *(unsigned *)v[i] = 0;
  return 0;
}
IS(cuPointerSetAttribute, (const void *v, CUpointer_attribute a, CUdeviceptr p), 0)
#define S stub_stream(s)
F(cuMemcpy, CUdeviceptr a, CUdeviceptr b, size_t n) {
  INIT();
  stub_copy((void *)a, (void *)b, n, 0);
  return stub_wait(stub_work(0));
}
IS(cuMemcpyAsync, (CUdeviceptr a, CUdeviceptr b, size_t n, CUstream s), stub_copy((void *)a, (void *)b, n, S))
IS(cuMemcpyHtoD, (CUdeviceptr a, const void *b, size_t n), stub_copy((void *)a, b, n, 0))
IS(cuMemcpyHtoDAsync, (CUdeviceptr a, const void *b, size_t n, CUstream s), stub_copy((void *)a, b, n, S))
F(cuMemcpyDtoH, void *a, CUdeviceptr b, size_t n) {
  INIT();
  stub_copy(a, (void *)b, n, 0);
  return stub_wait(stub_work(0));
}
IS(cuMemcpyDtoHAsync, (void *a, CUdeviceptr b, size_t n, CUstream s), stub_copy(a, (void *)b, n, S))
IS(cuMemcpyDtoD, (CUdeviceptr a, CUdeviceptr b, size_t n), stub_copy((void *)a, (void *)b, n, 0))
IS(cuMemcpyDtoDAsync, (CUdeviceptr a, CUdeviceptr b, size_t n, CUstream s),
   stub_copy((void *)a, (void *)b, n, S))
IS(cuMemsetD8, (CUdeviceptr p, unsigned char v, size_t n), stub_fill((void *)p, v, 1, n, 0))
IS(cuMemsetD8Async, (CUdeviceptr p, unsigned char v, size_t n, CUstream s), stub_fill((void *)p, v, 1, n, S))
IS(cuMemsetD16Async, (CUdeviceptr p, unsigned short v, size_t n, CUstream s), stub_fill((void *)p, v, 2, n, S))
IS(cuMemsetD32, (CUdeviceptr p, unsigned v, size_t n), stub_fill((void *)p, v, 4, n, 0))
IS(cuMemsetD32Async, (CUdeviceptr p, unsigned v, size_t n, CUstream s), stub_fill((void *)p, v, 4, n, S))
/* virtual memory: addresses are PROT_NONE until memory is mapped there; memory counts as used from
 * cuMemCreate to cuMemRelease */
typedef struct {
  size_t size;
  int dev, refs;
} Handle;
F(cuMemAddressReserve, CUdeviceptr *p, size_t n, size_t align, CUdeviceptr at, unsigned long long f) {
  INIT();
  size_t a = align > 2 << 20 ? align : 2 << 20;
  char *m = mmap(0, n + a, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (m == MAP_FAILED) return 2;
  char *q = (char *)(((uintptr_t)m + a - 1) / a * a);
  if (q > m) munmap(m, q - m);
  if (m + a > q) munmap(q + n, m + a - q);
  stub_register(q, n, stub_dev, ADDRESSES);
  *p = (CUdeviceptr)q;
  return 0;
}
IS(cuMemAddressFree, (CUdeviceptr p, size_t n), stub_free((void *)p, ADDRESSES))
SETS(cuMemGetAllocationGranularity, (size_t *g, const CUmemAllocationProp *p,
   CUmemAllocationGranularity_flags f),
   *g = 2 << 20)
F(cuMemCreate, CUmemGenericAllocationHandle *h, size_t n, const CUmemAllocationProp *p,
  unsigned long long f) {
  INIT();
  size_t u, t;
  int d = p->location.id;
  stub_charge(d, 0);
  stub_memory(d, &u, &t);
  if (n > u) return 2;
  Handle *o = malloc(sizeof *o);
  *o = (Handle){n, d, 1};
  stub_charge(d, n);
  *h = (CUmemGenericAllocationHandle)o;
  return 0;
}
F(cuMemRelease, CUmemGenericAllocationHandle h) {
  INIT();
  Handle *o = (Handle *)h;
  if (!--o->refs) {
    stub_charge(o->dev, -(long long)o->size);
    free(o);
  }
  return 0;
}
IS(cuMemRetainAllocationHandle, (CUmemGenericAllocationHandle *h, void *p), 801)
IS(cuMemMap, (CUdeviceptr p, size_t n, size_t off, CUmemGenericAllocationHandle h, unsigned long long f),
   mprotect((void *)p, n, PROT_READ | PROT_WRITE) ? 1 : 0)
F(cuMemUnmap, CUdeviceptr p, size_t n) {
  INIT();
  forget((void *)p, n);
  return mmap((void *)p, n, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) ==
                 MAP_FAILED
             ? 1
             : 0;
}
IS(cuMemSetAccess, (CUdeviceptr p, size_t n, const CUmemAccessDesc *d, size_t k), 0)
SETS(cuMemGetAccess, (unsigned long long *f, const CUmemLocation *l, CUdeviceptr p), *f = 3)
F(cuMemExportToShareableHandle, void *v, CUmemGenericAllocationHandle h, CUmemAllocationHandleType t,
  unsigned long long f) {
  INIT();
  Handle *o = (Handle *)h;
  int d = memfd_create("stub", MFD_CLOEXEC);
  if (ftruncate(d, o->size)) {
  }
  *(int *)v = d;
  return 0;
}
F(cuMemImportFromShareableHandle, CUmemGenericAllocationHandle *h, void *v, CUmemAllocationHandleType t) {
  INIT();
  off_t n = lseek((int)(intptr_t)v, 0, SEEK_END);
  Handle *o = malloc(sizeof *o);
  *o = (Handle){n, -1, 1};
  *h = (CUmemGenericAllocationHandle)o;
  return 0;
}
SETS(cuMulticastGetGranularity, (size_t *g, const CUmulticastObjectProp *p, CUmulticastGranularity_flags f),
   *g = 2 << 20)
IS(cuMulticastCreate, (CUmemGenericAllocationHandle *h, const CUmulticastObjectProp *p), 801)
IS(cuIpcGetMemHandle, (CUipcMemHandle *h, CUdeviceptr p), stub_export(h, (void *)p))
IS(cuIpcOpenMemHandle, (CUdeviceptr *p, CUipcMemHandle h, unsigned f), stub_import((void **)p, &h))
IS(cuIpcCloseMemHandle, (CUdeviceptr p), stub_free((void *)p, MANAGED))
/* modules and kernels */
int stub_object(void *p) {
  *(void **)p = calloc(1, 4096);
  return 0;
}
IS(cuModuleLoad, (CUmodule *m, const char *f), stub_object(m))
IS(cuModuleLoadData, (CUmodule *m, const void *d), stub_object(m))
IS(cuModuleLoadDataEx, (CUmodule *m, const void *d, unsigned n, CUjit_option *o, void **v), stub_object(m))
IS(cuModuleLoadFatBinary, (CUmodule *m, const void *d), stub_object(m))
SETS(cuModuleUnload, (CUmodule m), free(m))
IS(cuModuleGetFunction, (CUfunction *f, CUmodule m, const char *n), stub_object(f))
F(cuModuleGetGlobal, CUdeviceptr *p, size_t *n, CUmodule m, const char *name) {
  INIT();
  if (n) *n = 4096;
  return p ? stub_alloc((void **)p, 4096, stub_dev, DEVICE) : 0;
}
SETS(cuModuleGetLoadingMode, (CUmoduleLoadingMode *m), *m = CU_MODULE_LAZY_LOADING)
IS(cuLibraryLoadData, (CUlibrary *l, const void *c, CUjit_option *jo, void **jv, unsigned jn,
   CUlibraryOption *o, void **v, unsigned n),
   stub_object(l))
IS(cuLibraryLoadFromFile, (CUlibrary *l, const char *c, CUjit_option *jo, void **jv, unsigned jn,
   CUlibraryOption *o, void **v, unsigned n),
   stub_object(l))
SETS(cuLibraryUnload, (CUlibrary l), free(l))
IS(cuLibraryGetKernel, (CUkernel *k, CUlibrary l, const char *n), stub_object(k))
SETS(cuLibraryGetModule, (CUmodule *m, CUlibrary l), *m = (CUmodule)l)
SETS(cuLibraryGetKernelCount, (unsigned *n, CUlibrary l), *n = 1)
F(cuLibraryEnumerateKernels, CUkernel *k, unsigned n, CUlibrary l) {
  INIT();
  for (unsigned i = 0; i < n; i++) stub_object(k + i);
  return 0;
}
F(cuLibraryGetGlobal, CUdeviceptr *p, size_t *n, CUlibrary m, const char *name) {
  INIT();
  if (n) *n = 4096;
  return p ? stub_alloc((void **)p, 4096, stub_dev, DEVICE) : 0;
}
SETS(cuKernelGetFunction, (CUfunction *f, CUkernel k), *f = (CUfunction)k)
SETS(cuKernelGetName, (const char **n, CUkernel k), *n = "stub")
SETS(cuFuncGetName, (const char **n, CUfunction k), *n = "stub")
SETS(cuFuncGetModule, (CUmodule *m, CUfunction f), *m = (CUmodule)f)
SETS(cuFuncIsLoaded, (CUfunctionLoadingState *s, CUfunction f), *s = 1)
static int function(int a) {
  return a == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK                                  ? 1024
         : a == CU_FUNC_ATTRIBUTE_NUM_REGS                                             ? 32
         : a == CU_FUNC_ATTRIBUTE_PTX_VERSION || a == CU_FUNC_ATTRIBUTE_BINARY_VERSION ? 90
         : a == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES                        ? 49152
                                                                                       : 0;
}
SETS(cuFuncGetAttribute, (int *v, CUfunction_attribute a, CUfunction f), *v = function(a))
SETS(cuKernelGetAttribute, (int *v, CUfunction_attribute a, CUkernel f, CUdevice d), *v = function(a))
IS(cuFuncSetAttribute, (CUfunction f, CUfunction_attribute a, int v), 0)
SETS(cuOccupancyMaxActiveBlocksPerMultiprocessor, (int *n, CUfunction f, int b, size_t s), *n = 1)
SETS(cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags, (int *n, CUfunction f, int b, size_t s,
   unsigned fl),
   *n = 1)
SETS(cuOccupancyMaxActiveClusters, (int *n, CUfunction f, const CUlaunchConfig *c), *n = 66)
SETS(cuOccupancyMaxPotentialBlockSize, (int *g, int *b, CUfunction f, CUoccupancyB2DSize u, size_t s, int l),
   *g = 132; *b = 256)
SETS(cuLaunchKernel, (CUfunction f, unsigned a, unsigned b, unsigned c, unsigned d, unsigned e, unsigned g,
   unsigned sh, CUstream s, void **p, void **x), stub_launch(S))
SETS(cuLaunchKernelEx, (const CUlaunchConfig *c, CUfunction f, void **p, void **x),
   stub_launch(stub_stream(c->hStream)))
SETS(cuLaunchCooperativeKernel, (CUfunction f, unsigned a, unsigned b, unsigned c, unsigned d, unsigned e,
   unsigned g, unsigned sh, CUstream s, void **p), stub_launch(S))
F(cuLaunchHostFunc, CUstream s, CUhostFn f, void *u) {
  INIT();
  Capture *c = stub_capture(S);
  if (c)
    c->nodes++;
  else
    f(u);
  return 0;
}
SETS(cuTensorMapEncodeTiled, (CUtensorMap *m, CUtensorMapDataType t, cuuint32_t r, void *p,
   const cuuint64_t *d, const cuuint64_t *st, const cuuint32_t *b, const cuuint32_t *es,
   CUtensorMapInterleave i, CUtensorMapSwizzle sw, CUtensorMapL2promotion l, CUtensorMapFloatOOBfill o),
   memset(m, 0, sizeof *m))
IS(cuLinkCreate, (unsigned n, CUjit_option *o, void **v, CUlinkState *s), stub_object(s))
F(cuLinkComplete, CUlinkState s, void **c, size_t *n) {
  INIT();
  static char b[64];
  *c = b;
  *n = sizeof b;
  return 0;
}
/* streams, events, graphs */
static int stream(CUstream *s, unsigned f, int p) {
  static unsigned long long n = 8;
  Stream *o = calloc(1, sizeof *o);
  o->dev = stub_dev;
  o->flags = f;
  o->priority = p;
  o->id = __sync_add_and_fetch(&n, 1);
  *s = (CUstream)o;
  return 0;
}
IS(cuStreamCreate, (CUstream *s, unsigned f), stream(s, f, 0))
IS(cuStreamCreateWithPriority, (CUstream *s, unsigned f, int p), stream(s, f, p))
F(cuStreamDestroy, CUstream s) {
  INIT();
  return 0;
} /* not freed: they are few, and pointers must stay valid */
IS(cuStreamQuery, (CUstream s), stub_done(stub_work(S)))
IS(cuStreamSynchronize, (CUstream s), stub_capture(S) ? 900 : stub_wait(stub_work(S)))
SETS(cuStreamGetPriority, (CUstream s, int *p), *p = S ? S->priority : 0)
SETS(cuStreamGetFlags, (CUstream s, unsigned *p), *p = S ? S->flags : 0)
SETS(cuStreamGetId, (CUstream s, unsigned long long *p), *p = S ? S->id : (uintptr_t)s)
SETS(cuStreamGetDevice, (CUstream s, CUdevice *d), *d = S ? S->dev : stub_dev)
#undef cuStreamGetCtx
SETS(cuStreamGetCtx, (CUstream s, CUcontext *c), *c = context(S ? S->dev : stub_dev))
SETS(cuStreamIsCapturing, (CUstream s, CUstreamCaptureStatus *v), *v = stub_capture(S) ? 1 : 0)
F(cuStreamBeginCapture, CUstream s, CUstreamCaptureMode m) {
  INIT();
  if (!S || stub_capture(S)) return 1;
  stub_begin(S, m);
  return 0;
}
F(cuStreamEndCapture, CUstream s, CUgraph *g) {
  INIT();
  if (!S || !stub_capture(S)) return 1;
  *g = (CUgraph)stub_end(S);
  return 0;
}
#undef cuStreamGetCaptureInfo
static int info(CUstream s, CUstreamCaptureStatus *v, cuuint64_t *id, CUgraph *g, const CUgraphNode **d,
                const CUgraphEdgeData **e, size_t *n) {
  Capture *c = stub_capture(S);
  *v = c ? 1 : 0;
  if (id) *id = c ? c->id : 0;
  if (g) *g = (CUgraph)c;
  if (d) *d = 0;
  if (e) *e = 0;
  if (n) *n = 0;
  return 0;
}
IS(cuStreamGetCaptureInfo_v2, (CUstream s, CUstreamCaptureStatus *v, cuuint64_t *id, CUgraph *g,
   const CUgraphNode **d, size_t *n),
   info(s, v, id, g, d, 0, n))
IS(cuStreamGetCaptureInfo_v3, (CUstream s, CUstreamCaptureStatus *v, cuuint64_t *id, CUgraph *g,
   const CUgraphNode **d, const CUgraphEdgeData **e, size_t *n),
   info(s, v, id, g, d, e, n))
F(cuThreadExchangeStreamCaptureMode, CUstreamCaptureMode *m) {
  INIT();
  static __thread CUstreamCaptureMode mode;
  CUstreamCaptureMode o = mode;
  mode = *m;
  *m = o;
  return 0;
}
F(cuEventCreate, CUevent *e, unsigned f) {
  INIT();
  Event *o = calloc(1, sizeof *o);
  o->flags = f;
  o->dev = stub_dev;
  *e = (CUevent)o;
  return 0;
}
SETS(cuEventDestroy, (CUevent e), free(e))
F(cuEventRecord, CUevent e, CUstream s) {
  INIT();
  Event *o = (Event *)e;
  o->cap = stub_capture(S);
  o->work = *stub_work(S);
  return 0;
}
F(cuEventRecordWithFlags, CUevent e, CUstream s, unsigned f) { return cuEventRecord(e, s); }
IS(cuEventQuery, (CUevent e), stub_done(&((Event *)e)->work))
IS(cuEventSynchronize, (CUevent e), stub_wait(&((Event *)e)->work))
SETS(cuEventElapsedTime, (float *t, CUevent a, CUevent b), *t = 0.01f)
F(cuStreamWaitEvent, CUstream s, CUevent e, unsigned f) {
  INIT();
  Event *o = (Event *)e;
  Work *w = stub_work(S);
  if (S && o->cap && o->cap->active) S->cap = o->cap;
  if (o->work.time > w->time) w->time = o->work.time;
  for (int i = 0; i < CHANNELS; i++)
    if (o->work.needs[i] > w->needs[i]) w->needs[i] = o->work.needs[i];
  return 0;
}
IS(cuGraphCreate, (CUgraph *g, unsigned f), stub_object(g))
SETS(cuGraphInstantiateWithFlags, (CUgraphExec *x, CUgraph g, unsigned long long f), stub_object(x);
   memcpy(*x, g, sizeof(Graph)))
SETS(cuGraphLaunch, (CUgraphExec x, CUstream s), stub_replay(S, (Graph *)x))
IS(cuGraphDestroy, (CUgraph g), 0)
IS(cuGraphExecDestroy, (CUgraphExec g), 0)
F(cuGraphGetNodes, CUgraph g, CUgraphNode *nodes, size_t *n) {
  INIT();
  size_t k = ((Graph *)g)->nodes;
  if (nodes) {
    if (*n < k) k = *n;
    for (size_t i = 0; i < k; i++) nodes[i] = (CUgraphNode)g;
  }
  *n = k;
  return 0;
}
F(cuGetErrorString, CUresult e, const char **s) {
  FIRST();
  *s = stub_error(e, 0);
  return 0;
}
F(cuGetErrorName, CUresult e, const char **s) {
  FIRST();
  *s = stub_error(e, 1);
  return 0;
}
F(cuGetExportTable, const void **t, const CUuuid *u) {
  FIRST();
  *t = 0;
  return 500;
}
/* name -> function: cuda.h's lines "#define cuX cuX_v2" decide; build.sh makes this table of them */
extern const struct {
  const char *name, *real;
} stub_names[];
static void *named(const char *n) {
  static void *self;
  if (!self) {
    Dl_info i;
    dladdr(named, &i);
    self = dlopen(i.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
  }
  for (int i = 0; stub_names[i].name; i++)
    if (!strcmp(stub_names[i].name, n)) {
      void *p = dlsym(self, stub_names[i].real);
      if (p) return p;
    }
  return dlsym(self, n);
}
F(cuGetProcAddress_v2, const char *n, void **p, int v, cuuint64_t f, CUdriverProcAddressQueryResult *q) {
  FIRST();
  *p = named(n);
  if (v < 13000 && !strcmp(n, "cuStreamGetCaptureInfo")) *p = cuStreamGetCaptureInfo_v2;
  if (v < 13000 && !strcmp(n, "cuCtxCreate")) *p = cuCtxCreate_v2;
  if (!*p && getenv("STUB_DEBUG")) {
    char b[120];
    snprintf(b, sizeof b, "cuGetProcAddress:%s missing", n);
    stub_log(b, 0);
  }
  if (q) *q = *p ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
  return *p ? 0 : 500;
}
#undef cuGetProcAddress
F(cuGetProcAddress, const char *n, void **p, int v, cuuint64_t f) {
  return cuGetProcAddress_v2(n, p, v, f, 0);
}
