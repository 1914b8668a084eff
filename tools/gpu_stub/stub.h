/* What the stand-ins share: libcuda.so.1 (cuda.c) defines these, the others link against it. */
#pragma once
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
enum { DEVICE = 2, HOST = 1, MANAGED = 3, REGISTERED = 4, ADDRESSES = 5 };
typedef struct {
  char *base;
  size_t size;
  int dev, kind, file;
  unsigned long long id;
} Region; /* file: of memory that other processes can open, else 0 */
/* A channel counts the operations that this process has started in which ranks meet. Work has needs[channel] of
   them to wait for. CHANNELS suffices for all groups of a process. */
enum { CHANNELS = 64, PEERS = 16 };
typedef struct {
  int64_t time;
  unsigned needs[CHANNELS];
} Work;
typedef struct Capture {
  unsigned long long id;
  int active, mode;
  size_t nodes;
  unsigned meetings[CHANNELS];
} Capture;
typedef struct {
  unsigned magic;
  int dev, priority;
  unsigned flags;
  Capture *cap;
  unsigned long long id;
  Work work;
} Stream;
typedef struct {
  int dev;
  unsigned flags;
  Work work;
  Capture *cap;
} Event;
typedef struct {
  size_t nodes;
  unsigned meetings[CHANNELS];
} Graph;
extern unsigned stub_gen;     /* grows by one in each forked child */
extern __thread int stub_dev; /* this thread's device */
void stub_log(const char *name, int generated);
int stub_init(void); /* 0, 3 (forked after its initialization), 100 (no device or driver), 803 (mismatch) */
int stub_count(void);
int stub_physical(int dev);
int stub_attribute(int attr, int dev);
int stub_alloc(void **p, size_t n, int dev, int kind);
int stub_free(void *p, int kind);
int stub_find(const void *p, Region *out);
void stub_register(void *p, size_t n, int dev, int kind);
void stub_memory(int dev, size_t *unused, size_t *total);
void stub_charge(int dev, long long bytes);
int stub_copy(void *to, const void *from, size_t n, Stream *s);
int stub_fill(void *to, uint64_t value, size_t unit, size_t n, Stream *s);
int stub_fault(const char *call); /* 0 or an error (STUB_FAIL) */
void stub_launch(Stream *s);
void stub_replay(Stream *s, const Graph *g);
/* An operation that ends when it has begun in all processes. Each counts its own in memory that all share. */
void stub_meet(Stream *s, unsigned *own, int n, unsigned **peers);
void stub_part(void *p, size_t n); /* nobody waits for counters there any more */
int stub_export(void *handle, void *p);       /* makes memory that other processes can open */
int stub_import(void **p, const void *handle);
int stub_wait(const Work *w); /* 0 or an error; NULL: all work of this process */
int stub_done(const Work *w); /* 0, 600 (not ready), or an error */
Work *stub_work(Stream *s);
int stub_object(void *p); /* makes *p a zeroed object */
Stream *stub_stream(void *s); /* NULL for the default streams */
Capture *stub_capture(Stream *s);
Capture *stub_begin(Stream *s, int mode);
Graph *stub_end(Stream *s);
const char *stub_error(int code, int name);
/* Logs a function's first call in each process. */
#define FIRST_OF(generated)                                                                                  \
  do {                                                                                                       \
    static unsigned seen;                                                                                    \
    if (seen != stub_gen) {                                                                                  \
      seen = stub_gen;                                                                                       \
      stub_log(__func__, generated);                                                                         \
    }                                                                                                        \
  } while (0)
#define FIRST() FIRST_OF(0)
#define FIRST_GENERATED() FIRST_OF(1)
/* STUB_DRIVER: a driver that works, or why it does not. */
enum { DRIVER_WORKS, DRIVER_NOT_LOADED, DRIVER_MISMATCH, DRIVER_OLD };
static inline int stub_driver(void) {
  const char *t = getenv("STUB_DRIVER");
  return !t                         ? DRIVER_WORKS
         : !strcmp(t, "not-loaded") ? DRIVER_NOT_LOADED
         : !strcmp(t, "mismatch")   ? DRIVER_MISMATCH
         : !strcmp(t, "old")        ? DRIVER_OLD
                                    : DRIVER_WORKS;
}
/* Bytes of each device. */
static inline size_t stub_total(void) {
  const char *t = getenv("STUB_MEMORY");
  return t ? strtoull(t, 0, 0) : 85520809984ull;
}
static inline const char *stub_name(void) {
  const char *t = getenv("STUB_NAME");
  return t ? t : "NVIDIA H100 80GB HBM3";
}
/* The file STUB_SHM is a table of these, one for each process and device that it uses. */
typedef struct {
  int pid, dev;
  unsigned long long used;
} Slot;
enum { SLOTS = 4096 };
static inline const char *stub_table(void) {
  const char *t = getenv("STUB_SHM");
  return t ? t : "/dev/shm/stub_gpu";
}
static inline int stub_alive(int pid) {
  char p[64], b[256], *e;
  snprintf(p, sizeof p, "/proc/%d/stat", pid);
  int d = open(p, O_RDONLY | O_CLOEXEC);
  if (d < 0) return 0;
  int k = read(d, b, sizeof b - 1);
  close(d);
  if (k <= 0) return 0;
  b[k] = 0;
  e = strrchr(b, ')');
  return e && e[2] != 'Z' && e[2] != 'X';
}
/* Whether a living process uses this physical device through this slot. */
static inline int stub_uses(const Slot *slot, int dev) {
  return slot->pid && slot->dev == dev && stub_alive(slot->pid);
}
/* The newest CUDA that the driver supports, as 1000 * major + 10 * minor. */
static inline int stub_cuda_version(void) { return stub_driver() == DRIVER_OLD ? 12040 : 13000; }
/* Functions of a library, which defines RESULT, INIT() and, for what a call returns, END(e). */
#define F(n, ...) RESULT n(__VA_ARGS__)
/* A function that returns an expression, and one that succeeds after statements. */
#define IS(n, args, e)                                                                                       \
  RESULT n args {                                                                                            \
    INIT();                                                                                                  \
    return END(e);                                                                                           \
  }
#define SETS(n, args, ...)                                                                                   \
  RESULT n args {                                                                                            \
    INIT();                                                                                                  \
    __VA_ARGS__;                                                                                             \
    return 0;                                                                                                \
  }
