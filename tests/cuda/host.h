// CUDA, as far as softrow.cu asks for it, on a CPU: the threads of a block, or of a cluster's blocks, are fibres that take
// turns in an order drawn anew at every switch, and stop at barriers and shuffles. What it cannot see: two threads of a warp
// that race through shared memory (compute-sanitizer's racecheck can, on a GPU).
#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>
#include <ucontext.h>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct Index {
  unsigned x;
};
static Index threadIdx, blockIdx;

template <class To, class From>
inline To same_bits(From from) {
  To to;
  static_assert(sizeof(To) == sizeof(From));
  memcpy(&to, &from, sizeof(To));
  return to;
}
inline float __uint_as_float(unsigned b) { return same_bits<float>(b); }
inline unsigned __float_as_uint(float x) { return same_bits<unsigned>(x); }
inline double __longlong_as_double(long long b) { return same_bits<double>(b); }
inline double __hiloint2double(int high, int low) {
  return same_bits<double>((uint64_t)(unsigned)high << 32 | (unsigned)low);
}
inline int __double2loint(double x) { return int(unsigned(same_bits<uint64_t>(x))); }
inline int __double2hiint(double x) { return int(unsigned(same_bits<uint64_t>(x) >> 32)); }

static bool misaligned;  // has a vector been where none may be?

// As far from the truth as CUDA's documentation allows its exp2f to be: 2 ulp, here this way, there that way
inline float loose_exp2f(float x) {
  unsigned draw = (__float_as_uint(x) * 2654435761u) >> 16;
  float e = exp2f(x);
  return x == 0 || !(e > 1e-30f) ? e : __uint_as_float(__float_as_uint(e) + (draw % 5 - 2));
}
#define exp2f loose_exp2f
inline float exp2_to_zero(float x) {
  float e = exp2f(x);
  return e < 0x1p-126f ? 0.0f : e;
}

// 16-bit floats by their bits
struct Half;
struct Bfloat;
float wide(Half);
unsigned pair(Half, float, float);
unsigned pair(Bfloat, float, float);
inline unsigned half_bits(float x) {
  unsigned b = __float_as_uint(x), sign = (b >> 16) & 0x8000u, a = b & 0x7fffffffu;
  if (a > 0x7f800000u) return sign | 0x7e00u;
  if (a >= 0x477ff000u) return sign | 0x7c00u;
  if (a < 0x38800000u) return sign | (__float_as_uint(__uint_as_float(a) + 0.5f) - 0x3f000000u);
  return sign | ((a - 0x38000000u + 0xfffu + ((a >> 13) & 1)) >> 13);
}
inline unsigned bfloat_bits(float x) {
  unsigned b = __float_as_uint(x);
  return x == x ? (b + 0x7fffu + ((b >> 16) & 1)) >> 16 : (b >> 16) | 0x40u;
}

inline uint4 load_vector(const void* at) {
  if (reinterpret_cast<uintptr_t>(at) % 16) misaligned = true;
  uint4 raw;
  memcpy(&raw, at, 16);
  return raw;
}
inline void store_vector(void* at, uint4 raw) {
  if (reinterpret_cast<uintptr_t>(at) % 16) misaligned = true;
  memcpy(at, &raw, 16);
}

inline void store_half_vector(void* at, unsigned low, unsigned high) {
  if (reinterpret_cast<uintptr_t>(at) % 8) misaligned = true;
  memcpy(at, &low, 4);
  memcpy(static_cast<char*>(at) + 4, &high, 4);
}

namespace host {

enum { READY, AT_BARRIER, AT_CLUSTER_BARRIER, AT_SHUFFLE, DONE };
constexpr int MOST = 8192;  // of a block, or of all blocks of a cluster
constexpr size_t STACK = 64 << 10;

struct Sent {  // by one thread, and not there yet
  uint4* to;
  const void* at;
};

struct Fibre {
  std::vector<Sent> sent;
  jmp_buf here;
  ucontext_t first;
  bool begun;
  int state;
};

static Fibre fibres[MOST];
static jmp_buf scheduler;
static char* stacks;
static int threads, of_block, current;  // all that run at once; of a block
static unsigned first_block;
static int waiting[MOST / 32], waiting_all;  // at the barrier of a block, of the cluster
static uint64_t draws;
static bool in_order;
static int arrived[MOST / 32];
static uint64_t given[MOST], taken[MOST];  // by a shuffle
static void (*job)(const void* call, void* shared);
static const void* job_call;
static char* job_shared;
static size_t shared_size;

inline uint64_t draw() {
  draws ^= draws << 13;
  draws ^= draws >> 7;
  return draws ^= draws << 17;
}

inline void pause(int why) {
  fibres[current].state = why;
  if (!_setjmp(fibres[current].here)) _longjmp(scheduler, 1);
}

inline void body() {
  for (;;) {
    job(job_call, job_shared + current / of_block * shared_size);
    pause(DONE);
  }
}

inline void resume(int thread) {
  current = thread;
  threadIdx.x = thread % of_block;
  blockIdx.x = first_block + thread / of_block;
  if (_setjmp(scheduler)) return;
  Fibre& f = fibres[thread];
  if (f.begun) _longjmp(f.here, 1);
  f.begun = true;
  setcontext(&f.first);
}

// Have they not all come to the end?
inline bool block_of_threads() {
  int ready[MOST], count = threads, done = 0, done_of[MOST / 32] = {};
  waiting_all = 0;
  memset(waiting, 0, sizeof waiting);
  memset(arrived, 0, sizeof arrived);
  for (int i = 0; i < threads; ++i) {
    ready[i] = in_order ? threads - 1 - i : i;
    fibres[i].state = READY;
    if (fibres[i].begun) continue;
    constexpr int LAZY = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    if (!stacks) stacks = (char*)mmap(nullptr, MOST * STACK, PROT_READ | PROT_WRITE, LAZY, -1, 0);
    getcontext(&fibres[i].first);
    fibres[i].first.uc_stack.ss_sp = stacks + i * STACK;
    fibres[i].first.uc_stack.ss_size = STACK;
    fibres[i].first.uc_link = nullptr;
    makecontext(&fibres[i].first, body, 0);
  }
  while (count) {
    int at = in_order ? count - 1 : int(draw() % count), thread = ready[at];
    ready[at] = ready[--count];
    resume(thread);
    int warp = thread / 32, lanes = threads - warp * 32 < 32 ? threads - warp * 32 : 32;
    switch (fibres[thread].state) {
      case DONE:
        ++done;
        if (++done_of[thread / of_block] == of_block)  // a block that has left leaves no shared memory behind
          memset(job_shared + thread / of_block * shared_size, 0xff, shared_size);
        break;
      case AT_BARRIER:
        if (++waiting[thread / of_block] < of_block) break;
        waiting[thread / of_block] = 0;
        for (int i = 0; i < of_block; ++i) ready[count++] = thread / of_block * of_block + i;
        break;
      case AT_CLUSTER_BARRIER:
        if (++waiting_all < threads) break;
        waiting_all = 0;
        for (int i = 0; i < threads; ++i) ready[count++] = i;
        break;
      case AT_SHUFFLE:
        if (++arrived[warp] < lanes) break;
        arrived[warp] = 0;
        memcpy(taken + warp * 32, given + warp * 32, 32 * sizeof(uint64_t));
        for (int i = 0; i < lanes; ++i) ready[count++] = warp * 32 + i;
        break;
    }
  }
  return done != threads;
}

}  // namespace host

inline void send_vector(uint4* to, const void* at) {
  if (reinterpret_cast<uintptr_t>(at) % 16 || reinterpret_cast<uintptr_t>(to) % 16) misaligned = true;
  host::fibres[host::current].sent.push_back({to, at});
}
inline void sent_vectors_arrive() {
  for (const host::Sent& one : host::fibres[host::current].sent) memcpy(one.to, one.at, 16);
  host::fibres[host::current].sent.clear();
}
inline void __syncthreads() { host::pause(host::AT_BARRIER); }
inline void cluster_barrier() { host::pause(host::AT_CLUSTER_BARRIER); }

template <class T>
inline T of_block(const T* at, int rank) {
  long mine = host::current / host::of_block;
  return *reinterpret_cast<const T*>(reinterpret_cast<const char*>(at) + (rank - mine) * long(host::shared_size));
}

template <class T>
inline T __shfl_xor_sync(unsigned, T value, int apart) {
  int me = host::current;
  memcpy(&host::given[me], &value, sizeof(T));
  host::pause(host::AT_SHUFFLE);
  memcpy(&value, &host::taken[me ^ apart], sizeof(T));
  return value;
}

template <class T>
inline T __shfl_sync(unsigned, T value, int from, int width) {
  int me = host::current;
  memcpy(&host::given[me], &value, sizeof(T));
  host::pause(host::AT_SHUFFLE);
  memcpy(&value, &host::taken[me - me % width + from], sizeof(T));
  return value;
}

#include SOURCE

inline float wide(Half y) {
  unsigned sign = (y.bits & 0x8000u) << 16, size = (y.bits & 0x7fffu) << 13;
  float small = __uint_as_float(size) * 0x1p112f;
  return __uint_as_float(sign | (size >= 0x0f800000u ? size | 0x7f800000u : __float_as_uint(small)));
}
inline unsigned pair(Half, float a, float b) { return half_bits(a) | half_bits(b) << 16; }
inline unsigned pair(Bfloat, float a, float b) { return bfloat_bits(a) | bfloat_bits(b) << 16; }

template <class C>
void one_thread(const void* call, void* shared) {
  run<C>(*static_cast<const Call*>(call), *static_cast<typename C::Shared*>(shared));
}

// Run a grid. seed 0: threads and blocks in order; other seeds draw another order each. 0: done; 1: some threads left while
// others wait at a barrier, or wait for one another; 2: a vector that does not begin at a multiple of 16 bytes.
template <class C>
int launch(const Call* call, long long grid, unsigned seed) {
  const int blocks = C::PART == CLUSTER ? int(call->pieces) : 1;  // at once
  static typename C::Shared shared[C::PART == CLUSTER ? 8 : 1];
  host::of_block = C::THREADS;
  host::threads = C::THREADS * blocks;
  host::shared_size = sizeof(typename C::Shared);
  host::in_order = seed == 0;
  host::draws = 0x9e3779b97f4a7c15ull * (seed + 1);
  host::job = one_thread<C>;
  host::job_call = call;
  host::job_shared = reinterpret_cast<char*>(shared);
  misaligned = false;
  for (long long i = 0; i < grid; i += blocks) {
    memset(shared, 0xff, sizeof shared);  // NaN
    host::first_block = unsigned(seed % 2 ? grid - blocks - i : i);
    if (host::block_of_threads()) return 1;
  }
  return misaligned ? 2 : 0;
}
