// CUDA, as far as softrow.cu asks for it, on a CPU: the threads of a block are fibres that take turns in an order drawn anew
// at every switch, and stop at barriers and shuffles. Blocks run one after the other, in any order. What it cannot see: two threads
// of a warp that race through shared memory (compute-sanitizer's racecheck can, on a GPU).
#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>
#include <ucontext.h>

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

// As far from the truth as CUDA's documentation allows its exp2f to be: 2 ulp, here this way, there that way
inline float loose_exp2f(float x) {
  unsigned draw = (__float_as_uint(x) * 2654435761u) >> 16;
  float e = exp2f(x);
  return x == 0 || !(e > 1e-30f) ? e : __uint_as_float(__float_as_uint(e) + (draw % 5 - 2));
}
#define exp2f loose_exp2f

namespace host {

enum { READY, AT_BARRIER, AT_SHUFFLE, DONE };
constexpr int MOST = 1024;
constexpr size_t STACK = 64 << 10;

struct Fibre {
  jmp_buf here;
  ucontext_t first;
  bool begun;
  int state;
};

static Fibre fibres[MOST];
static jmp_buf scheduler;
static char* stacks;
static int threads, current, running, waiting;
static uint64_t draws;
static bool in_order;
static int arrived[MOST / 32];
static uint64_t given[MOST], taken[MOST];  // by a shuffle
static void (*job)(const void* call, void* shared);
static const void* job_call;
static void* job_shared;

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
    job(job_call, job_shared);
    pause(DONE);
  }
}

inline void resume(int thread) {
  current = thread;
  threadIdx.x = thread;
  if (_setjmp(scheduler)) return;
  Fibre& f = fibres[thread];
  if (f.begun) _longjmp(f.here, 1);
  f.begun = true;
  setcontext(&f.first);
}

// 0: done; 1: some left while others wait at a barrier, or wait for one another
inline int block_of_threads() {
  int ready[MOST], count = threads, done = 0;
  waiting = 0;
  memset(arrived, 0, sizeof arrived);
  for (int i = 0; i < threads; ++i) {
    ready[i] = in_order ? threads - 1 - i : i;
    fibres[i].state = READY;
    if (fibres[i].begun) continue;
    if (!stacks) stacks = (char*)mmap(nullptr, MOST * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
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
      case DONE: ++done; break;
      case AT_BARRIER:
        if (++waiting < threads) break;
        waiting = 0;
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

inline void __syncthreads() { host::pause(host::AT_BARRIER); }

template <class T>
inline T __shfl_xor_sync(unsigned, T value, int apart) {
  int me = host::current;
  memcpy(&host::given[me], &value, sizeof(T));
  host::pause(host::AT_SHUFFLE);
  memcpy(&value, &host::taken[me ^ apart], sizeof(T));
  return value;
}

#include SOURCE

template <class C>
void one_thread(const void* call, void* shared) {
  Work<C>(*static_cast<const Call*>(call), *static_cast<typename C::Shared*>(shared)).go();
}

// Run a grid. seed 0: threads and blocks in order; other seeds draw another order each.
template <class C>
int launch(const Call* call, long long grid, unsigned seed) {
  static typename C::Shared shared;
  host::threads = C::THREADS;
  host::in_order = seed == 0;
  host::draws = 0x9e3779b97f4a7c15ull * (seed + 1);
  host::job = one_thread<C>;
  host::job_call = call;
  host::job_shared = &shared;
  for (long long i = 0; i < grid; ++i) {
    memset(&shared, 0xff, sizeof shared);  // NaN
    blockIdx.x = unsigned(seed % 2 ? grid - 1 - i : i);
    if (int wrong = host::block_of_threads()) return wrong;
  }
  return 0;
}
