// The softmax family, row by row, on CUDA. One source without includes. plan.py says what it does and picks an instance,
// which -D macros describe (at the end). The mathematics is that of _formulas.py, in its letters.
//
// A row goes through three steps, whatever the operation:
//
//     gather   m, and the sums over the row that need it: r, and those of labels or cotangents
//     settle   what all of the row's numbers need: m, r, factors
//     finish   each number's answer
//
// A *group* of threads shares a row: some lanes of a warp, a block, or (columns) the threads of a block that have one
// lane number, so that neighbouring threads take neighbouring rows. It takes a row in *tiles*: one, unless the row is too
// long to be held in registers; a second array may wait in shared memory meanwhile. A long row may be cut into pieces, a
// block each: either one launch gathers and a second finishes, or the blocks are a cluster, which joins its sums through one
// another's shared memory.
//
// Nothing is read by ld.global.nc, since y may be x. No thread leaves before the last barrier.

typedef long long Long;
typedef unsigned long long Address;

// ---- the call: plan.py has the same fields in the same order --------------------------------------------------------

struct View {
  Address address;
  Long outer, inner, along;
};

struct Number {
  Address address;
  Long step;
  double value;
};

struct Rows {
  Address address;
  Long step;
};

struct Call {
  View x, y, v, mask;
  Number temperature, factor, sample_weight, divisor, cotangent;
  Rows label, loss, weight, m, r;
  Address class_weight, workspace;
  Long rows, inner, n, pieces, piece, ignore_index;
  double softcap, smoothing, z_loss;
  int label_kind, ignore;
};

enum {
  SOFTMAX, LOG_SOFTMAX, LOGSUMEXP, STATE, LOSS, LOSS_AND_GRADIENT, SOFTMAX_PULLBACK, LOG_SOFTMAX_PULLBACK,
  TOTAL, SHARE
};
enum {
  MASK = 1, TEMPERATURE = 2, SOFTCAP = 4, SOFT = 8, SMOOTHING = 16, CLASS_WEIGHT = 32, WIDE = 64, STRIDED = 128,
  GIVEN = 256
};
enum { STREAMED, IN_REGISTERS, V_IN_SHARED };  // how a row is held: not at all, it is read again
enum { WHOLE, FIRST, LAST, CLUSTER };  // of a row in pieces: the launch that gathers, that finishes; both in one
constexpr int RECORD = 12;    // float64 of workspace for a piece

// ---- numbers: what lies in memory, and the arithmetic ---------------------------------------------------------------

struct Half {
  unsigned short bits;
};

struct Bfloat {
  unsigned short bits;
};

template <class E>
constexpr bool is_half = false;
template <>
constexpr bool is_half<Half> = true;

#define HERE __device__ __forceinline__

HERE float wide(float y) { return y; }
HERE double wide(double y) { return y; }
HERE float wide(Bfloat y) { return __uint_as_float((unsigned)y.bits << 16); }

// What the hardware does in one instruction; whoever builds this for something else has these by other means
#ifdef __CUDA_ARCH__
HERE float wide(Half y) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(y.bits));
  return x;
}
// Two numbers as 16 bits each, rounded to nearest, ties to even; the first in the low bits
HERE unsigned pair(Half, float a, float b) {
  unsigned both;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(b), "f"(a));
  return both;
}
HERE unsigned pair(Bfloat, float a, float b) {
  unsigned both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(b), "f"(a));
  return both;
}
// 2^x, 0 instead of a subnormal, which is 0 in a float16 anyway
HERE float exp2_to_zero(float x) {
  float e;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(x));
  return e;
}
// 16 bytes at once. ld.global, not ld.global.nc: y may be x
HERE uint4 load_vector(const void* at) {
  uint4 raw;
  asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(raw.x), "=r"(raw.y), "=r"(raw.z), "=r"(raw.w)
               : "l"(at)
               : "memory");
  return raw;
}
HERE void store_vector(void* at, uint4 raw) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};"
               :
               : "l"(at), "r"(raw.x), "r"(raw.y), "r"(raw.z), "r"(raw.w)
               : "memory");
}
HERE void store_half_vector(void* at, unsigned low, unsigned high) {
  asm volatile("st.global.v2.u32 [%0], {%1, %2};" : : "l"(at), "r"(low), "r"(high) : "memory");
}
// 16 bytes on their way into shared memory, past the registers; and when all that this thread has sent are there
HERE void send_vector(uint4* to, const void* at) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" : : "r"((unsigned)__cvta_generic_to_shared(to)), "l"(at)
               : "memory");
}
HERE void sent_vectors_arrive() { asm volatile("cp.async.wait_all;" ::: "memory"); }
// The blocks of a cluster: all wait for all; and a number at the same place in the shared memory of another
HERE void cluster_barrier() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release;\n\tbarrier.cluster.wait.acquire;" ::: "memory");
#endif
}
template <class T>
HERE T of_block(const T* at, int rank) {
  T value = 0;
#if __CUDA_ARCH__ >= 900
  unsigned here = (unsigned)__cvta_generic_to_shared(at), there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(here), "r"(rank));
  if constexpr (sizeof(T) == 4) asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(value) : "r"(there) : "memory");
  else asm volatile("ld.shared::cluster.f64 %0, [%1];" : "=d"(value) : "r"(there) : "memory");
#endif
  return value;
}
#endif

template <class E>
HERE E narrow(E, float y) {
  return {(unsigned short)pair(E(), y, 0.0f)};
}
HERE float narrow(float, float y) { return y; }
HERE float narrow(float, double y) { return (float)y; }
HERE double narrow(double, double y) { return y; }

// A vector: 16 bytes of numbers of memory. Put together and taken apart by bits: a pointer to a local may take it out of
// the registers.
template <class E>
HERE E element(const uint4& raw, int i) {
  const unsigned words[4] = {raw.x, raw.y, raw.z, raw.w};
  if constexpr (sizeof(E) == 2) return {(unsigned short)(words[i / 2] >> (i % 2 * 16))};
  if constexpr (sizeof(E) == 4) return __uint_as_float(words[i]);
  if constexpr (sizeof(E) == 8) return __hiloint2double(words[2 * i + 1], words[2 * i]);
}
template <class E>
HERE uint4 vector_of(const E* e) {
  if constexpr (sizeof(E) == 2)
    return {e[0].bits | (unsigned)e[1].bits << 16, e[2].bits | (unsigned)e[3].bits << 16,
            e[4].bits | (unsigned)e[5].bits << 16, e[6].bits | (unsigned)e[7].bits << 16};
  if constexpr (sizeof(E) == 4)
    return {__float_as_uint(e[0]), __float_as_uint(e[1]), __float_as_uint(e[2]), __float_as_uint(e[3])};
  if constexpr (sizeof(E) == 8)
    return {(unsigned)__double2loint(e[0]), (unsigned)__double2hiint(e[0]), (unsigned)__double2loint(e[1]),
            (unsigned)__double2hiint(e[1])};
}
template <class E, class A>
HERE void unpack(const uint4& raw, A* x) {
#pragma unroll
  for (int i = 0; i < int(16 / sizeof(E)); ++i) x[i] = wide(element<E>(raw, i));
}
template <class E, class A>
HERE uint4 pack(const A* x) {
  if constexpr (sizeof(E) == 2) {
    return {pair(E(), x[0], x[1]), pair(E(), x[2], x[3]), pair(E(), x[4], x[5]), pair(E(), x[6], x[7])};
  } else {
    E e[16 / sizeof(E)];
#pragma unroll
    for (int i = 0; i < int(16 / sizeof(E)); ++i) e[i] = narrow(E(), x[i]);
    return vector_of(e);
  }
}

#define INF __longlong_as_double(0x7ff0000000000000ll)
#define NOT_A_NUMBER __longlong_as_double(0x7ff8000000000000ll)

HERE float larger(float a, float b) { return fmaxf(a, b); }  // of a number and NaN the number
HERE double larger(double a, double b) { return fmax(a, b); }
HERE float fused(float a, float b, float c) { return fmaf(a, b, c); }
HERE double fused(double a, double b, double c) { return fma(a, b, c); }
HERE float log1p_of(float x) { return log1pf(x); }
HERE double log1p_of(double x) { return log1p(x); }
HERE float expm1_of(float x) { return expm1f(x); }
HERE double expm1_of(double x) { return expm1(x); }
HERE float tanh_of(float x) { return tanhf(x); }
HERE double tanh_of(double x) { return tanh(x); }
HERE float exp_of(float x) { return expf(x); }
HERE double exp_of(double x) { return exp(x); }

// exp(d + error) for d <= 4, where `error` is what rounding took from d. The product with log2(e) comes after the shift.
template <class E>
HERE float exponential(float d, float error) {
  constexpr float log2e = 1.44269502f, log2e_low = 1.92596303e-8f, ln2 = 0.693147182f;
  if constexpr (sizeof(E) == 2) {
    if constexpr (is_half<E>) return exp2_to_zero(d * log2e);
    float root = exp2_to_zero(d * (log2e / 2));  // no subnormal, where its square may be one
    return root * root;
  } else {
    const bool zero = d < -150.0f;  // and the error of -inf is NaN
    d = zero ? -150.0f : d, error = zero ? 0.0f : error;
    float h = d * log2e, low = fused(d, log2e, -h) + d * log2e_low;
    float e = exp2f(h);
    return fused(e, fused(low, ln2, error), e);
  }
}
template <class E>
HERE double exponential(double d, double error) {
  double e = exp(d);
  return fused(e, d < -800 ? 0 : error, e);
}

#if __CUDA_ARCH__ >= 1000  // there the compiler asks for twice the registers in a loop over tiles
constexpr bool LOOPS_ARE_HEAVY = true;
#else
constexpr bool LOOPS_ARE_HEAVY = false;
#endif

// ---- an instance ----------------------------------------------------------------------------------------------------

template <bool, class Yes, class No>
struct Choice {
  using type = Yes;
};
template <class Yes, class No>
struct Choice<false, Yes, No> {
  using type = No;
};

template <int OPERATION_, class E_, class ANSWER_, int LANES_, int THREADS_, int VECTORS_, int HELD_, int PART_,
          int FLAGS_>
struct Config {
  using E = E_;
  using Answer = ANSWER_;  // y's numbers. Where they have more bits than x's, the arithmetic is as exact as they need
  using Finer = typename Choice<(sizeof(Answer) > sizeof(E)), Answer, E>::type;
  using A = typename Choice<sizeof(E) == 8 || (FLAGS_ & WIDE) != 0, double, float>::type;  // the arithmetic's numbers

  static constexpr int OPERATION = OPERATION_, THREADS = THREADS_, PART = PART_, FLAGS = FLAGS_, VECTORS = VECTORS_;
  static constexpr bool HELD = HELD_ != STREAMED, SENT = HELD_ == V_IN_SHARED;
  static constexpr bool COLUMNS = LANES_ == 0, STRIDES = COLUMNS || (FLAGS & STRIDED) != 0;
  static constexpr int SIZE = COLUMNS ? THREADS / 32 : LANES_;    // threads in a group
  static constexpr int GROUPS = COLUMNS ? 32 : THREADS / LANES_;  // in a block
  static constexpr int WIDTH = 16 / sizeof(E), N = VECTORS * WIDTH;  // numbers in a vector; of a tile in a thread
  static constexpr int TILE = N * SIZE;

  static constexpr bool LOSSES = OPERATION == LOSS || OPERATION == LOSS_AND_GRADIENT;
  static constexpr bool HARD = LOSSES && !(FLAGS & SOFT), SMOOTH = LOSSES && (FLAGS & SMOOTHING) != 0;
  static constexpr bool SECOND = (LOSSES && !HARD) || OPERATION >= SOFTMAX_PULLBACK;  // is v read?
  static constexpr bool WEIGHTS = LOSSES && (FLAGS & CLASS_WEIGHT) != 0, CAP = LOSSES && (FLAGS & SOFTCAP) != 0;
  static constexpr bool ADJOINT =
      OPERATION == LOG_SOFTMAX_PULLBACK || (OPERATION == LOSS_AND_GRADIENT && (SECOND || SMOOTH));
  static constexpr bool GRADIENT = OPERATION >= LOSS_AND_GRADIENT;
  static constexpr bool ANSWERS = OPERATION < LOGSUMEXP || GRADIENT;  // is there an answer for each number?
  static constexpr bool TEMPERED = (FLAGS & TEMPERATURE) != 0, MASKED = (FLAGS & MASK) != 0;
  static constexpr bool PARTS = MASKED || CAP || SMOOTH;  // is it asked of each number whether it takes part?
  static constexpr bool FEW_TOPS = HELD && !COLUMNS && SIZE > 32;  // have most warps no maximum?
  static constexpr bool EXACT = sizeof(Finer) == sizeof(A);  // then a quotient's rounding is made good

  // at most 64 registers a thread keep 1024 threads on a multiprocessor; what needs more has half of them
  static constexpr bool HEAVY = sizeof(A) == 8 || FLAGS != 0 || OPERATION >= TOTAL || (LOOPS_ARE_HEAVY && !HELD);
  static constexpr bool TIGHT = OPERATION == LOSS_AND_GRADIENT && EXACT && SIZE <= 32;  // it would spill a few of them
  static constexpr int AT_ONCE = HEAVY ? 512 : TIGHT ? 768 : 1024;  // threads on a multiprocessor
  static constexpr int BLOCKS = AT_ONCE / THREADS > 0 ? AT_ONCE / THREADS : 1;

  // sums over a row. REST: exp(d) of all but the maxima; TOPS: how many of these; FIT: Σ q d, of labels, of smoothing
  static constexpr int REST = 0, TOPS = 1, OF_V = 2, V_TOPS = OF_V, V_REST = OF_V + 1, V_FIT = OF_V + 2;
  static constexpr int V_SUMS = !SECOND ? 0 : LOSSES ? 3 : OPERATION == LOG_SOFTMAX_PULLBACK ? 2 : 1;
  static constexpr int OF_PART = OF_V + V_SUMS, P_REST = OF_PART, P_TOPS = OF_PART + 1, P_FIT = OF_PART + 2;
  static constexpr int COUNT = OF_PART + 3, SUMS = OF_PART + 4 * SMOOTH;
  static_assert((PART != CLUSTER && !SENT) || SIZE == THREADS, "a block has one row");
  static_assert(!SENT || (SECOND && !STRIDES), "v is sent by vectors");
  static_assert(SUMS + 1 + HARD <= RECORD, "a record is m, all sums, and the label's score");
  static_assert(N <= 32, "which of them take part is said by 32 bits");

  // of long rows the sums over tiles are kept in float64: never one by one in 32 bits
  using Total = typename Choice<HELD_ != STREAMED, A, double>::type;

  struct Shared {  // two halves that take turns: a barrier then stands between any write and the reads before it
    double cells[2][COLUMNS ? THREADS : SIZE > 32 ? 32 * SUMS : 1];
    double of_block[2][PART == CLUSTER ? SUMS : 1];
    alignas(16) uint4 v[SENT ? VECTORS * THREADS : 1];
  };
};

// ---- a group of threads ---------------------------------------------------------------------------------------------

struct Largest {
  template <class T>
  HERE T operator()(T a, T b) const {
    return larger(a, b);
  }
};
struct Add {
  template <class T>
  HERE T operator()(T a, T b) const {
    return a + b;
  }
};

template <class C>
struct Group {
  typename C::Shared& shared;
  int blocks;  // of a cluster
  int turn;

  // `value` of all threads, joined; each thread gets the same answer, to the last bit
  template <class Join, class T, int K>
  HERE void all(T (&value)[K], T nothing) {
    constexpr Join join{};
    T* cells = reinterpret_cast<T*>(shared.cells[turn]);
    int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    if constexpr (C::COLUMNS) {
#pragma unroll
      for (int k = 0; k < K; ++k) {
        cells = reinterpret_cast<T*>(shared.cells[turn]);
        cells[thread] = value[k];
        __syncthreads();
        value[k] = cells[lane];
        for (int w = 1; w < C::SIZE; ++w) value[k] = join(value[k], cells[w * 32 + lane]);
        turn ^= 1;
      }
    } else {
#pragma unroll
      for (int k = 0; k < K; ++k) value[k] = in_warp<(C::SIZE < 32 ? C::SIZE : 32), Join>(value[k]);
      if constexpr (C::SIZE > 32) {
        constexpr int WARPS = C::SIZE / 32, LANES = WARPS > 16 ? 32 : WARPS > 8 ? 16 : WARPS > 4 ? 8 : WARPS > 2 ? 4 : 2;
        static_assert(K <= C::SUMS || K == 1, "there is room for so many");
        if (lane == 0)
#pragma unroll
          for (int k = 0; k < K; ++k) cells[k * 32 + warp] = value[k];
        __syncthreads();
#pragma unroll
        for (int k = 0; k < K; ++k)
          value[k] = in_warp<LANES, Join>(lane % LANES < WARPS ? cells[k * 32 + lane % LANES] : nothing);
        if constexpr (C::PART == CLUSTER) {
          T* ours = reinterpret_cast<T*>(shared.of_block[turn]);
          if (thread == 0)
#pragma unroll
            for (int k = 0; k < K; ++k) ours[k] = value[k];
          cluster_barrier();
#pragma unroll
          for (int k = 0; k < K; ++k)
            value[k] = in_warp<8, Join>(lane % 8 < blocks ? of_block(ours + k, lane % 8) : nothing);
        }
        turn ^= 1;
      }
    }
  }

  // of so many neighbouring lanes, a power of two
  template <int LANES, class Join, class T>
  HERE T in_warp(T value) {
#pragma unroll
    for (int apart = LANES / 2; apart > 0; apart /= 2)
      value = Join()(value, __shfl_xor_sync(0xffffffffu, value, apart));
    return value;
  }

  // The first thread's value. It has been read before anybody has it: in a warp by this, in a block by the next barrier,
  // where each thread has read the same.
  template <class T>
  HERE T of_first(T value) {
    if constexpr (C::COLUMNS || C::SIZE > 32 || !C::ANSWERS) return value;
    return __shfl_sync(0xffffffffu, value, 0, C::SIZE);
  }

  template <class T>
  HERE T largest(T value) {
    T one[1] = {value};
    all<Largest>(one, T(-INF));
    return one[0];
  }
};

// ---- distances from the maximum, in every corner --------------------------------------------------------------------

template <class A>
struct Distance {
  A d, error;  // (x - m) / t, and what rounding took from it
};

template <class C>
struct Temper {
  using A = typename C::A;

  A t = 1, inverse = 1, excess = 0;  // the temperature is t (1 + excess); the inverse of its limits is inf and 0
  bool limit = false;
  bool bad = false;  // negative or NaN

  HERE void set(double value) {
    constexpr double least = sizeof(A) == 4 ? 0x1p-126 : 0x1p-1022, most = sizeof(A) == 4 ? 3.4028234e38 : 1.7e308;
    if (!(value >= 0)) {
      bad = true;
      t = value < 0 ? A(1) : A(value);
    } else if (value < least || value > most) {
      limit = true;
      inverse = value < least ? A(INF) : A(0);
    } else {
      t = A(value);
      inverse = A(1) / t;
      excess = A((value - double(t)) / value);
    }
  }

  // Of x from a centre, m or nearly, with a temperature: exactly 0 at the top, -inf beside a top of inf. No step gives NaN
  // but for a NaN. Without one neither is infinite (`Work::level`), and the error of -inf is not looked at.
  HERE Distance<A> from(A centre, A x, bool top) const {
    A d = x - centre, error = 0;
    if constexpr (C::EXACT) {  // Knuth's difference of two numbers
      A v = d - x;
      error = (x - (d - v)) - (centre + v);
    }
    if constexpr (!C::TEMPERED) return {d, error};
    A by = centre == A(INF) ? A(1) : inverse;
    A parts = x > A(-INF) ? x * by - centre * by : x;  // the difference may overflow where the quotient does not
    A q = d > A(-INF) ? d * by : parts;
    if constexpr (C::EXACT) error = (fused(-q, t, d) + error) * by - q * excess;
    return clean(q, error, top);
  }
  HERE Distance<A> clean(A q, A error, bool top) const { return {top ? A(0) : q, error - error == A(0) ? error : A(0)}; }

  // In one number. Without a temperature d is the difference rounded, and its error is less than that rounds.
  HERE A whole(Distance<A> apart) const { return C::TEMPERED ? apart.d + apart.error : apart.d; }

  // Of any two, one by one
  HERE Distance<A> distance(A x, A m) const {
    const bool top = x == m && m > A(-INF);
    Distance<A> apart = from(m == A(-INF) ? A(0) : m, x, top);
    return clean(apart.d, apart.error, top);
  }

  // Is the derivative of the row 0?
  HERE bool frozen(A m) const { return m == m && (m - m != A(0) || limit) && t == t; }
};

// ---- a row in memory ------------------------------------------------------------------------------------------------

template <class E>
struct Line {
  E* start;  // number 0 of a row
  Long step;

  HERE E& operator[](Long k) const { return start[k * step]; }
};

// Numbers low to high of the 16 bytes of numbers from `first` on, one by one; `pad` elsewhere
template <class E>
HERE uint4 edge(const E* first, Long step, int low, int high, E pad) {
  constexpr int WIDTH = 16 / sizeof(E);
  E e[WIDTH];
#pragma unroll
  for (int i = 0; i < WIDTH; ++i) e[i] = i >= low && i < high ? first[i * step] : pad;
  return vector_of(e);
}
// WIDTH answers, which are one vector of x's: all of them side by side, or some of them one by one
template <int WIDTH, class E, class A>
HERE void store_all(E* at, const A* x) {
  if constexpr (WIDTH * sizeof(E) < 16) store_half_vector(at, pair(E(), x[0], x[1]), pair(E(), x[2], x[3]));
  else
#pragma unroll
    for (int i = 0; i < WIDTH; i += 16 / sizeof(E)) store_vector(at + i, pack<E>(x + i));
}
template <int WIDTH, class E, class A>
HERE void store_some(E* at, Long step, int low, int high, const A* x) {
#pragma unroll
  for (int i = 0; i < WIDTH; ++i)
    if (i >= low && i < high) at[i * step] = narrow(E(), x[i]);
}

HERE Long offset_of(const View& view, Long row, Long inner) {
  if (inner == 1) return row * view.outer;
  Long outer = row <= 0xffffffffll && inner <= 0xffffffffll ? Long(unsigned(row) / unsigned(inner)) : row / inner;
  return outer * view.outer + (row - outer * inner) * view.inner;
}

template <class E>
HERE Line<E> line_of(const View& view, Long row, Long inner) {
  return {reinterpret_cast<E*>(view.address) + offset_of(view, row, inner), view.along};
}

HERE double number_of(const Number& number, Long row) {
  return number.address ? reinterpret_cast<const double*>(number.address)[row * number.step] : number.value;
}

HERE double got(const Rows& rows, Long row) { return reinterpret_cast<const double*>(rows.address)[row * rows.step]; }
HERE void put(const Rows& rows, Long row, double value) {
  reinterpret_cast<double*>(rows.address)[row * rows.step] = value;
}

constexpr Long NO_LABEL = 0x7fffffffffffffffll;

HERE Long label_of(const Call& call, Long row) {
  Long at = row * call.label.step;
  switch (call.label_kind) {
    case 1: return reinterpret_cast<const signed char*>(call.label.address)[at];
    case 2: return reinterpret_cast<const short*>(call.label.address)[at];
    case 4: return reinterpret_cast<const int*>(call.label.address)[at];
    case -1: return reinterpret_cast<const unsigned char*>(call.label.address)[at];
    case -2: return reinterpret_cast<const unsigned short*>(call.label.address)[at];
    case -4: return reinterpret_cast<const unsigned*>(call.label.address)[at];
  }
  Long label = reinterpret_cast<const Long*>(call.label.address)[at];
  return call.label_kind == -8 && label < 0 ? NO_LABEL : label;  // unsigned, it is 2^63 or more
}

HERE double class_weight(const Call& call, Long k) { return reinterpret_cast<const double*>(call.class_weight)[k]; }

// What a row's label says. A bad one gives NaN, and is 0 from here on, as that of a row which is ignored
struct Label {
  Long at;
  bool bad, dropped;
  double weight;
};

template <bool WEIGHTS>
HERE Label judged(const Call& call, Long row, double sample) {
  Long label = label_of(call, row);
  bool ignored = call.ignore && label == call.ignore_index;
  bool bad = !ignored && (label < 0 || label >= call.n);
  label = ignored || bad ? 0 : label;
  double weight = bad ? 0 : WEIGHTS ? class_weight(call, label) : 1;
  return {label, bad, ignored || (weight == 0 && !bad) || sample == 0, weight};
}

// 0 · anything is 0
template <class A>
HERE A times(A a, A b) {
  return a == A(0) ? A(0) : a * b;
}

struct Reach {
  int low, high;

  HERE bool has(int k) const { return k >= low && k < high; }
};

// ---- the work of a group --------------------------------------------------------------------------------------------

template <class C>
struct Tile {
  typename C::A x[C::N];  // scores; from `gather` on their exps, or distances where the answer is log_softmax
  typename C::A v[C::SECOND && !C::SENT ? C::N : 1];
  unsigned part;  // which of them take part, bit by bit
};

template <class C>
struct State {
  typename C::A m;
  typename C::A centre;  // what REST's exps are taken from: m, or a little below
  typename C::Total sums[C::SUMS];
};

template <class C>
struct Work {
  using E = typename C::E;
  using A = typename C::A;
  using Answer = typename C::Answer;
  using Finer = typename C::Finer;
  using Total = typename C::Total;

  const Call& call;
  Group<C> group;
  int lane;     // of the group
  bool there;   // is there such a row?
  bool leads;   // does this thread speak for its row?
  Long row, piece, begin, end, origin;  // the group's part of the row; where its first tile begins, at or before `begin`
  Line<E> x, v;
  Line<Answer> y;
  Line<const unsigned char> mask;
  Temper<C> temper;

  Long label = 0;
  bool bad = false, dropped = false;
  A label_weight = 1, share = 1, score = 0;  // of the label's class; what smoothing leaves the labels; the label's x
  double sample = 1;

  // what `settle` finds. scale_m: m before a NaN is seen; factor: of all answers
  A scale_m, m, r, p_top, factor = 1;
  bool zero = false;  // is the answer 0 throughout?
  // of losses: what smoothing gives each class; Σ q, and all of it but the maxima's; the z-loss's part of the slope
  A even = 0, all_q = 0, rest_q = 0, more = 0, label_d = 0;
  A mean = 0, product = 0;  // of softmax's pullback: v at the maxima, and Σ p (v - mean)

  HERE Work(const Call& given, typename C::Shared& shared) : call(given), group{shared, int(given.pieces), 0} {
    const unsigned thread = threadIdx.x, pieces = unsigned(call.pieces);
    constexpr bool CUT = C::PART != WHOLE && (C::PART != LAST || C::ANSWERS);  // is there a block for each piece?
    piece = CUT ? blockIdx.x % pieces : 0;
    lane = C::GROUPS == 1 ? thread : C::COLUMNS ? thread / 32 : thread % C::SIZE;
    row = Long(CUT ? blockIdx.x / pieces : blockIdx.x) * C::GROUPS;
    row += C::GROUPS == 1 ? 0 : C::COLUMNS ? thread % 32 : thread / C::SIZE;
    there = C::GROUPS == 1 || row < call.rows;
    row = there ? row : call.rows - 1;
    leads = there && lane == 0 && piece == 0;
    begin = C::PART == WHOLE ? 0 : piece * call.piece;
    end = C::PART == WHOLE || begin + call.piece > call.n ? call.n : begin + call.piece;
    end = there ? end : begin;

    x = line_of<E>(call.x, row, call.inner);
    if constexpr (C::ANSWERS) y = line_of<Answer>(call.y, row, call.inner);
    if constexpr (C::SECOND) v = line_of<E>(call.v, row, call.inner);
    if constexpr (C::MASKED) mask = line_of<const unsigned char>(call.mask, row, call.inner);
    origin = begin - (C::STRIDES ? 0 : Long(reinterpret_cast<Address>(x.start + begin) % 16 / sizeof(E)));
    if constexpr (C::TEMPERED) temper.set(number_of(call.temperature, row));
    if constexpr (C::SMOOTH) share = A(1 - call.smoothing);
  }

  // What the label says. Asked once the tile's loads are under way, so that nobody waits for the label alone; and read by
  // all before the group's first sums, so before anybody writes.
  HERE void judge() {
    if (!speaks()) return;
    if constexpr (C::LOSSES) sample = number_of(call.sample_weight, row);
    if constexpr (C::HARD) {
      const Label found = judged<C::WEIGHTS>(call, row, sample);
      label = found.at, bad = found.bad, dropped = found.dropped, label_weight = A(found.weight);
      score = C::PART == LAST ? A(record(0)[1 + C::SUMS]) : group.of_first(label_score());
    }
  }

  // Is there anything that this thread writes?
  HERE bool speaks() const { return C::ANSWERS || leads; }

  HERE A weight_in(Long start, int j) const {
    return reach(start).has(offset(j)) ? A(class_weight(call, start + offset(j))) : A(0);
  }

  HERE A capped(A score) const {
    if constexpr (!C::CAP) return score;
    A cap = A(call.softcap);
    return cap * tanh_of(score / cap);
  }

  HERE A cap_slope(A score) const {
    A e = exp_of(A(-2) * fabs(score / A(call.softcap)));
    return 4 * e / ((1 + e) * (1 + e));
  }

  // Where number j of a thread's tile lies in the tile
  HERE int offset(int j) const {
    if constexpr (C::STRIDES) return j * C::SIZE + lane;
    return (j / C::WIDTH * C::SIZE + lane) * C::WIDTH + j % C::WIDTH;
  }
  HERE bool inside(Long k) const { return k >= begin && k < end; }
  HERE Long tiles() const { return (end - origin + C::TILE - 1) / C::TILE; }
  HERE Reach reach(Long start) const {  // what of a tile is in the group's part of the row
    Long low = begin - start, high = end - start;
    return {int(low > 0 ? low : 0), int(high < C::TILE ? high : C::TILE)};
  }

  // Are all of this thread's numbers of a tile in it?
  HERE bool all_in(Reach r) const { return r.low <= offset(0) && offset(C::N - 1) < r.high; }

  // May vectors be used? Where they begin for x they may not begin for another array.
  template <class T>
  HERE bool by_vectors(const Line<T>& from) const {
    const int bytes = C::WIDTH * sizeof(T) < 16 ? 8 : 16;
    return from.step == 1 && reinterpret_cast<Address>(from.start + origin) % bytes == 0;
  }

  // A tile's numbers of a line: all loads are under way before the first is used. Past the ends they are `pad`.
  HERE void fetch(const Line<E>& from, Long start, A pad, A (&out)[C::N]) const {
    const Reach r = reach(start);
    const E* first = from.start + start * from.step;
    if constexpr (C::STRIDES) {
      E raw[C::N];
#pragma unroll
      for (int j = 0; j < C::N; ++j)
        raw[j] = r.has(offset(j)) ? first[offset(j) * from.step] : narrow(E(), pad);
#pragma unroll
      for (int j = 0; j < C::N; ++j) out[j] = wide(raw[j]);
    } else {
      uint4 raw[C::VECTORS];
      const bool vectors = by_vectors(from);
      if (vectors && all_in(r)) {
        const E* mine = from.start + start + offset(0);
#pragma unroll
        for (int i = 0; i < C::VECTORS; ++i) raw[i] = load_vector(mine + i * C::SIZE * C::WIDTH);
      } else {
#pragma unroll
        for (int i = 0; i < C::VECTORS; ++i) {
          const int at = offset(i * C::WIDTH);
          if (vectors && r.has(at) && r.has(at + C::WIDTH - 1)) raw[i] = load_vector(first + at);
          else raw[i] = edge(first + at * from.step, from.step, r.low - at, r.high - at, narrow(E(), pad));
        }
      }
#pragma unroll
      for (int i = 0; i < C::VECTORS; ++i) unpack<E>(raw[i], out + i * C::WIDTH);
    }
  }

  HERE void store(Long start, const A (&out)[C::N]) const {
    const Reach r = reach(start);
    Answer* first = y.start + start * y.step;
    if constexpr (C::STRIDES) {
#pragma unroll
      for (int j = 0; j < C::N; ++j)
        if (r.has(offset(j))) first[offset(j) * y.step] = narrow(Answer(), out[j]);
    } else {
      const bool vectors = by_vectors(y);
      if (vectors && all_in(r)) {
        Answer* mine = y.start + start + offset(0);
#pragma unroll
        for (int i = 0; i < C::VECTORS; ++i) store_all<C::WIDTH>(mine + i * C::SIZE * C::WIDTH, out + i * C::WIDTH);
        return;
      }
#pragma unroll
      for (int i = 0; i < C::VECTORS; ++i) {
        const int at = offset(i * C::WIDTH);
        const A* these = out + i * C::WIDTH;
        if (vectors && r.has(at) && r.has(at + C::WIDTH - 1)) store_all<C::WIDTH>(first + at, these);
        else store_some<C::WIDTH>(first + at * y.step, y.step, r.low - at, r.high - at, these);
      }
    }
  }

  // A tile's vectors of v, which this thread alone sends and reads
  HERE uint4& sent(int i) const { return group.shared.v[C::SENT ? i * C::THREADS + threadIdx.x : 0]; }

  HERE void send(Long start) const {
    const Reach r = reach(start);
    const bool vectors = by_vectors(v);
#pragma unroll
    for (int i = 0; i < C::VECTORS; ++i) {
      const int at = offset(i * C::WIDTH);
      const E* first = v.start + (start + at) * v.step;
      if (vectors && r.has(at) && r.has(at + C::WIDTH - 1)) send_vector(&sent(i), first);
      else sent(i) = edge(first, v.step, r.low - at, r.high - at, narrow(E(), A(0)));
    }
  }

  HERE A second(const Tile<C>& tile, int j) const {
    if constexpr (C::SENT) return wide(element<E>(sent(j / C::WIDTH), j % C::WIDTH));
    else return tile.v[C::SECOND ? j : 0];
  }

  HERE void forget_second(Tile<C>& tile, int j) const {
    if constexpr (!C::SENT) {
      tile.v[j] = 0;
    } else {
      E e[C::WIDTH];
#pragma unroll
      for (int k = 0; k < C::WIDTH; ++k)
        e[k] = k == j % C::WIDTH ? narrow(E(), A(0)) : element<E>(sent(j / C::WIDTH), k);
      sent(j / C::WIDTH) = vector_of(e);
    }
  }

  HERE void load(Tile<C>& tile, Long start) const {
    if constexpr (C::SENT) send(start);
    fetch(x, start, A(-INF), tile.x);
    if constexpr (C::SECOND && !C::SENT) fetch(v, start, A(0), tile.v);
    if constexpr (C::SENT) sent_vectors_arrive();
    if constexpr (C::PARTS) {
      const Reach r = reach(start);
      tile.part = 0;
#pragma unroll
      for (int j = 0; j < C::N; ++j) {
        bool takes_part = r.has(offset(j));
        if constexpr (C::MASKED) takes_part = takes_part && mask[start + offset(j)] != 0;
        tile.part |= unsigned(takes_part) << j;
        tile.x[j] = takes_part ? capped(tile.x[j]) : A(-INF);
      }
    }
    if constexpr (C::OPERATION == LOG_SOFTMAX_PULLBACK)  // log p is -inf there whatever x does nearby
#pragma unroll
      for (int j = 0; j < C::N; ++j)
        if (tile.x[j] == A(-INF)) forget_second(tile, j);
  }

  HERE A peak(const Tile<C>& tile) const {
    A m = tile.x[0];
#pragma unroll
    for (int j = 1; j < C::N; ++j) m = larger(m, tile.x[j]);
    return larger(m, A(-INF));  // NaN where all are
  }

  HERE A label_score() const {
    if constexpr (C::MASKED)
      if (mask[label] == 0) return A(-INF);
    return capped(A(wide(x[label])));
  }

  // What the numbers of a tile are compared with. A row with nothing in it has no top.
  struct Height {
    A centre, m, summit;
  };
  HERE Height height_of(A centre, A m) const {
    return {centre == A(-INF) ? A(0) : centre, m == A(-INF) ? A(0) : m, m == A(-INF) ? A(NOT_A_NUMBER) : m};
  }
  // Beside an infinite maximum all others are as far away as can be. With 0 and -inf in their place no difference is NaN.
  HERE void level(Tile<C>& tile, Height& height) const {
    if (C::TEMPERED || height.centre != A(INF)) return;
    height = {A(0), A(0), A(0)};
#pragma unroll
    for (int j = 0; j < C::N; ++j) tile.x[j] = tile.x[j] == A(INF) ? A(0) : tile.x[j] - A(INF);
  }

  // The sums of a tile, none of whose numbers is above m; `most` is the largest of this thread's. A tile that is held leaves
  // with what `finish` needs.
  HERE void gather(Tile<C>& tile, Long start, A most, State<C>& state) const {
    Height height = height_of(state.centre, state.m);
    const bool tops = most == height.summit;
    level(tile, height);
    A sums[C::SUMS] = {};
    if (C::FEW_TOPS && !tops) add_up<false>(tile, start, height, sums);
    else add_up<true>(tile, start, height, sums);
#pragma unroll
    for (int k = 0; k < C::SUMS; ++k) state.sums[k] += sums[k];
  }

  template <bool TOPS>
  HERE void add_up(Tile<C>& tile, Long start, const Height& height, A (&sums)[C::SUMS]) const {
    sums[C::TOPS] = C::N;
#pragma unroll
    for (int j = 0; j < C::N; ++j) {
      const bool top = TOPS && tile.x[j] == height.summit;
      const A below = top ? 0 : 1;  // one comparison and a product, where to choose would be one more
      Distance<A> apart = temper.from(height.centre, tile.x[j], top);
      A e = exponential<Finer>(apart.d, apart.error);
      sums[C::REST] += TOPS ? below * e : e;
      sums[C::TOPS] -= TOPS ? below : A(1);
      if constexpr (!C::HELD && (C::SECOND || C::SMOOTH)) apart = temper.from(height.m, tile.x[j], top);
      A w = 1;
      if constexpr (C::WEIGHTS && (C::SECOND || C::SMOOTH)) w = weight_in(start, j);
      if constexpr (C::SECOND) {
        A q = w * second(tile, j);
        sums[C::V_TOPS] += top ? q : A(0);
        if constexpr (C::V_SUMS > 1) sums[C::V_REST] += top ? A(0) : q;
        if constexpr (C::V_SUMS > 2) sums[C::V_FIT] += q == A(0) ? A(0) : q * temper.whole(apart);
      }
      if constexpr (C::SMOOTH) {
        A part = (tile.part >> j & 1) ? A(1) : A(0), q = part * w;
        sums[C::P_REST] += top ? A(0) : q;
        sums[C::P_TOPS] += top ? q : A(0);
        sums[C::P_FIT] += q == A(0) ? A(0) : q * temper.whole(apart);
        sums[C::COUNT] += part;
      }
      if constexpr (C::HELD) tile.x[j] = C::OPERATION == LOG_SOFTMAX ? temper.whole(apart) : e;
    }
  }

  // The same sums, as they are with a higher maximum. REST stays where it is while that is near: were it scaled for every
  // new maximum, the roundings of a row that climbs would add up.
  HERE void raise(State<C>& state, A m, bool centred) const {
    Total* s = state.sums;
    if (m > state.m) {
      Distance<A> old = temper.distance(state.m, state.centre), apart = temper.distance(state.m, m);
      Total d = Total(apart.d) + apart.error;
      s[C::REST] += s[C::TOPS] > 0 ? s[C::TOPS] * exponential<Finer>(old.d, old.error) : Total(0);
      s[C::TOPS] = 0;
      if constexpr (C::SECOND) {
        if constexpr (C::V_SUMS > 1) s[C::V_REST] += s[C::V_TOPS];
        s[C::V_TOPS] = 0;
        if constexpr (C::V_SUMS > 2) s[C::V_FIT] += s[C::V_REST] == 0 ? Total(0) : s[C::V_REST] * d;
      }
      if constexpr (C::SMOOTH) {
        s[C::P_REST] += s[C::P_TOPS];
        s[C::P_TOPS] = 0;
        s[C::P_FIT] += s[C::P_REST] == 0 ? Total(0) : s[C::P_REST] * d;
      }
      state.m = m;
    }
    bool far = centred || state.centre == A(-INF) || !(temper.distance(m, state.centre).d < A(4));
    if (state.centre < m && far) {
      Distance<A> apart = temper.distance(state.centre, m);
      s[C::REST] *= exponential<Finer>(apart.d, apart.error);
      state.centre = m;
    }
  }

  HERE double* record(Long of_piece) const {
    return reinterpret_cast<double*>(call.workspace) + (row * call.pieces + of_piece) * RECORD;
  }

  HERE void take_records(State<C>& state) const {
    for (Long k = lane; k < call.pieces; k += C::SIZE) {
      State<C> other;
      other.m = other.centre = A(record(k)[0]);
#pragma unroll
      for (int i = 0; i < C::SUMS; ++i) other.sums[i] = Total(record(k)[1 + i]);
      A m = larger(state.m, other.m);
      raise(state, m, true);
      raise(other, m, true);
#pragma unroll
      for (int i = 0; i < C::SUMS; ++i) state.sums[i] += other.sums[i];
    }
  }

  HERE void gather_all(Tile<C>& tile, State<C>& state) {
    state.m = state.centre = A(-INF);
#pragma unroll
    for (int k = 0; k < C::SUMS; ++k) state.sums[k] = 0;
    if constexpr (C::HELD) {
      load(tile, origin);
      judge();
      const A most = peak(tile);
      state.m = state.centre = group.largest(most);
      gather(tile, origin, most, state);
    } else {
      judge();
      if constexpr (C::PART == LAST) {
        take_records(state);
      } else {
#pragma unroll 1
        for (Long i = 0, count = tiles(); i < count; ++i) {
          Long start = origin + i * C::TILE;
          load(tile, start);
          const A most = peak(tile);
          raise(state, larger(state.m, most), false);
          gather(tile, start, most, state);
        }
      }
      raise(state, group.largest(state.m), true);
    }
    group.template all<Add>(state.sums, Total(0));
  }

  // A tile in hand, as `gather` leaves one that is held
  HERE void load_exps(Tile<C>& tile, Long start) const {
    if constexpr (C::HELD) return;
    load(tile, start);
    Height height = height_of(scale_m, scale_m);
    level(tile, height);
#pragma unroll
    for (int j = 0; j < C::N; ++j) {
      Distance<A> apart = temper.from(height.centre, tile.x[j], tile.x[j] == height.summit);
      tile.x[j] = C::OPERATION == LOG_SOFTMAX ? temper.whole(apart) : exponential<Finer>(apart.d, apart.error);
    }
  }

  // ---- settle

  HERE A log() const { return log1p_of(r); }  // where it is asked for: of a loss's threads two are

  HERE void settle(const State<C>& state) {
    const Total* s = state.sums;
    scale_m = state.m;
    A rest = A(s[C::REST] + (s[C::TOPS] > 0 ? s[C::TOPS] - 1 : 0));
    m = rest == rest ? state.m : A(NOT_A_NUMBER);
    r = temper.bad ? A(NOT_A_NUMBER) : rest;
    p_top = 1 / (1 + r);
    if constexpr (C::LOSSES) settle_loss(s);
    bool derivative = C::GRADIENT;
    if constexpr (C::OPERATION == SOFTMAX) {
      derivative = call.factor.address != 0;
      if (derivative) factor = A(number_of(call.factor, row));
    }
    if constexpr (C::OPERATION == LOSS_AND_GRADIENT)
      factor = A(number_of(call.factor, row) * number_of(call.cotangent, 0) * sample);
    if constexpr (C::OPERATION == LOG_SOFTMAX_PULLBACK) {  // the loss's adjoint of -v
      factor = -1;
      rest_q = A(s[C::V_REST]);
      all_q = A(s[C::V_REST] + s[C::V_TOPS]);
    }
    if constexpr (C::OPERATION == SOFTMAX_PULLBACK) mean = A(s[C::V_TOPS] / (s[C::TOPS] > 0 ? s[C::TOPS] : 1));
    if constexpr (C::GRADIENT) factor /= temper.t;
    zero = dropped || (derivative && temper.frozen(m));
  }

  HERE void settle_loss(const Total* s) {
    A of_labels = label_weight, rest_of_labels, fit;
    if constexpr (C::HARD) {
      Distance<A> apart = temper.distance(score, scale_m);
      label_d = apart.d + apart.error;
      fit = times(share * of_labels, label_d);
      rest_of_labels = score == scale_m ? A(0) : of_labels;
    } else {
      of_labels = A(s[C::V_REST] + s[C::V_TOPS]);
      rest_of_labels = A(s[C::V_REST]);
      fit = times(share, A(s[C::V_FIT]));
      dropped = of_labels == 0 || sample == 0;
    }
    all_q = share * of_labels;
    rest_q = share * rest_of_labels;
    if constexpr (C::SMOOTH) {
      even = A(call.smoothing / (s[C::COUNT] > 1 ? double(s[C::COUNT]) : 1.0));
      all_q += even * A(s[C::P_REST] + s[C::P_TOPS]);
      rest_q += even * A(s[C::P_REST]);
      fit += times(even, A(s[C::P_FIT]));
    }
    A of_z = 0;
    if (call.z_loss != 0) {
      const A lse = m / temper.t + log();
      of_z = A(call.z_loss) * of_labels * lse * lse;
      more = A(2 * call.z_loss) * of_labels * lse;
    }
    if (!leads) return;
    A loss = all_q * log() - fit + of_z;
    put(call.loss, row, dropped ? 0.0 : bad ? NOT_A_NUMBER : sample * double(loss));
    put(call.weight, row, dropped ? 0.0 : sample * double(of_labels));
  }

  // ---- finish

  // Σ p (v - mean), where mean is v at the maxima: a constant added to v changes nothing, and one near 1 is not lost
  HERE void find_product(Tile<C>& tile) {
    Total sum[1] = {0};
#pragma unroll 1
    for (Long i = 0, count = C::HELD ? 1 : tiles(); i < count; ++i) {
      load_exps(tile, origin + i * C::TILE);
      A part = 0;
#pragma unroll
      for (int j = 0; j < C::N; ++j) part += tile.x[j] * (second(tile, j) - mean);
      sum[0] += part;
    }
    group.template all<Add>(sum, Total(0));
    product = A(sum[0]) * p_top;
  }

  // The slope of -Σ q log p, which is p Σq - q, without its cancellation where p is near 1
  HERE A adjoint(A e, A q) const {
    A p = e * p_top;
    bool lone = e == A(1) && r < A(1);
    return lone ? p * (rest_q + more) - q * (r * p_top) : q * (p - 1) + p * ((all_q - q) + more);
  }

  // From a tile's exps (or distances) to its answer
  HERE void answer(Tile<C>& tile, Long start) const {
    if constexpr (C::OPERATION == LOG_SOFTMAX) {
      const A total = log();
#pragma unroll
      for (int j = 0; j < C::N; ++j) tile.x[j] -= total;
    } else if constexpr (C::ADJOINT) {
#pragma unroll
      for (int j = 0; j < C::N; ++j) {
        A q = C::SECOND ? second(tile, j) : A(start + offset(j) == label && !bad);
        if constexpr (C::SMOOTH) q = share * q + even;  // where the mask is False the answer is 0 in any case
        if constexpr (C::WEIGHTS) q *= weight_in(start, j);
        tile.x[j] = adjoint(tile.x[j], q) * factor;
      }
    } else if constexpr (C::OPERATION == SOFTMAX_PULLBACK) {
      const A by = p_top * factor;
#pragma unroll
      for (int j = 0; j < C::N; ++j) tile.x[j] *= by * ((second(tile, j) - mean) - product);
    } else {
      A by = p_top * factor;
      if constexpr (C::LOSSES) by *= all_q + more;
#pragma unroll
      for (int j = 0; j < C::N; ++j) tile.x[j] *= by;
    }
    if constexpr (C::CAP) {
      A score[C::N];
      fetch(x, start, A(0), score);
#pragma unroll
      for (int j = 0; j < C::N; ++j) tile.x[j] *= cap_slope(score[j]);
    }
    const bool hides = C::MASKED && (C::GRADIENT || call.factor.address);
    if (!bad && !zero && !hides) return;
#pragma unroll
    for (int j = 0; j < C::N; ++j) {
      if (bad) tile.x[j] = A(NOT_A_NUMBER);
      bool hidden = hides && !(tile.part >> j & 1);
      if (zero || hidden) tile.x[j] = 0;
    }
  }

  HERE bool owns(Long k) const {
    if (!inside(k)) return false;
    k -= origin;
    return lane == (C::STRIDES ? k : k / C::WIDTH) % C::SIZE;
  }

  HERE void finish(Tile<C>& tile) {
    // The label's own slope is q expm1(log p). Whoever writes the label's number writes it again, last.
    bool again = false;
    A slope = 0;
    if constexpr (C::LOSSES && !C::ADJOINT) {
      again = !bad && !zero && owns(label);
      if constexpr (C::MASKED) again = again && mask[label] != 0;
      if (again) {
        A less = expm1_of(label_d - log());
        slope = (all_q * less + more * (1 + less)) * factor;
        if constexpr (C::CAP) slope *= cap_slope(A(wide(x[label])));
      }
    }
    // the last tile first: what was read last is still in the cache
#pragma unroll 1
    for (Long i = C::HELD ? 0 : tiles() - 1; i >= 0; --i) {
      Long start = origin + i * C::TILE;
      load_exps(tile, start);
      answer(tile, start);
      store(start, tile.x);
    }
    if (again) y[label] = narrow(Answer(), slope);
  }

  HERE void go() {
    Tile<C> tile;
    State<C> state;
    gather_all(tile, state);
    if constexpr (C::PART == FIRST) {
      if (lane == 0 && there) {
        record(piece)[0] = state.m;
#pragma unroll
        for (int k = 0; k < C::SUMS; ++k) record(piece)[1 + k] = state.sums[k];
        if constexpr (C::HARD) record(piece)[1 + C::SUMS] = score;
      }
    } else if (speaks()) {
      settle(state);
      if constexpr (C::OPERATION == LOGSUMEXP)
        reinterpret_cast<Answer*>(call.y.address)[offset_of(call.y, row, call.inner)] = narrow(Answer(), A(m + log()));
      if constexpr (C::OPERATION == STATE) put(call.m, row, m), put(call.r, row, r);
      if constexpr (C::OPERATION == SOFTMAX_PULLBACK) find_product(tile);
      if constexpr (C::ANSWERS) finish(tile);
    }
    if constexpr (C::PART == CLUSTER) cluster_barrier();  // nobody leaves while another may read its shared memory
  }
};

// ---- sums over all rows, of what the losses left --------------------------------------------------------------------

// y: Σ loss / divisor, and m: factor / divisor, what each row's gradient has of a mean's cotangent. The divisor is given, or
// it is Σ weight, which integer labels say before there are losses. The mean of nothing is 0.
template <class C>
struct Sums {
  const Call& call;
  typename C::Shared& shared;

  struct Record {
    double loss, weight;
  };

  HERE Record* records() const { return reinterpret_cast<Record*>(call.workspace); }

  HERE Record of_row(Long row) const {
    Record one = {0, 0};
    if constexpr (C::OPERATION == TOTAL) one.loss = got(call.loss, row);
    if constexpr (!(C::FLAGS & GIVEN)) {
      if constexpr (C::OPERATION == TOTAL || (C::FLAGS & SOFT)) {
        one.weight = got(call.weight, row);
      } else {
        const double sample = number_of(call.sample_weight, row);
        const Label label = judged<(C::FLAGS & CLASS_WEIGHT) != 0>(call, row, sample);
        one.weight = label.dropped ? 0 : sample * double(typename C::A(label.weight));
      }
    }
    return one;
  }

  HERE void go() {
    const Long begin = C::PART == FIRST ? blockIdx.x * call.piece : 0;
    Long end = C::PART == FIRST ? begin + call.piece : C::PART == LAST ? call.pieces : call.rows;
    if (C::PART == FIRST && end > call.rows) end = call.rows;
    double sums[2] = {0, 0};
#pragma unroll 4
    for (Long k = begin + threadIdx.x; k < end; k += C::THREADS) {
      const Record one = C::PART == LAST ? records()[k] : of_row(k);
      sums[0] += one.loss, sums[1] += one.weight;
    }
    Group<C>{shared, 1, 0}.template all<Add>(sums, 0.0);
    if (threadIdx.x != 0) return;
    if constexpr (C::PART == FIRST) {
      records()[blockIdx.x] = {sums[0], sums[1]};
    } else {
      const double divisor = C::FLAGS & GIVEN ? number_of(call.divisor, 0) : sums[1];
      const bool nothing = divisor == 0 && sums[0] == 0;
      if constexpr (C::OPERATION == TOTAL)
        *reinterpret_cast<typename C::Answer*>(call.y.address) =
            narrow(typename C::Answer(), typename C::A(nothing ? 0 : sums[0] / divisor));
      else put(call.m, 0, nothing ? 0 : number_of(call.factor, 0) / divisor);
    }
  }
};

template <class C>
HERE void run(const Call& call, typename C::Shared& shared) {
  if constexpr (C::OPERATION == LOSS_AND_GRADIENT)  // is the answer there already?
    if (call.cotangent.address && number_of(call.cotangent, 0) == 1) return;
  if constexpr (C::OPERATION >= TOTAL) Sums<C>{call, shared}.go();
  else Work<C>(call, shared).go();
}

// ---- the instance that the -D macros describe -----------------------------------------------------------------------

#ifdef SOFTROW_OPERATION
using Instance = Config<SOFTROW_OPERATION, SOFTROW_ELEMENT, SOFTROW_ANSWER, SOFTROW_LANES, SOFTROW_THREADS,
                        SOFTROW_VECTORS, SOFTROW_HELD, SOFTROW_PART, SOFTROW_FLAGS>;

#ifdef SOFTROW_CLUSTER  // blocks in a cluster
#define OF_CLUSTER __cluster_dims__(SOFTROW_CLUSTER, 1, 1)
#else
#define OF_CLUSTER
#endif

extern "C" __global__ void OF_CLUSTER __launch_bounds__(SOFTROW_THREADS, Instance::BLOCKS) softrow(const Call call) {
#ifdef SOFTROW_SHARED  // bytes that the launch asks for, where they are more than a kernel may have by itself
  extern __shared__ uint4 memory[];
  static_assert(sizeof(Instance::Shared) <= SOFTROW_SHARED, "there is room");
  Instance::Shared& shared = *reinterpret_cast<Instance::Shared*>(memory);
#else
  __shared__ Instance::Shared shared;
#endif
  run<Instance>(call, shared);
}
#endif
