// The steps of a chunk in C++: `forward_chunk` and `backward_chunk` of
// `NativeEngine`, without a call per operation.
//
// fbt/sequence/function.py contains the equations, fbt/sequence/layout.py the shapes
// of the tensors. The structs below have the fields of the classes of the same names
// there and in fbt/sequence/native_engine.py, in the same order; a test compares
// them.
//
// The batch is split into groups of sequences. A thread takes a group through all
// steps and layers of the chunk. Groups share nothing but weights, so threads meet
// only at the end of the chunk. If there are fewer groups than threads, several
// threads share the products and heads of a group in forward. Large products go to
// the BLAS inside torch; everything else is in this file. Where d is small, memory is
// the limit and not arithmetic: each layer of each step reads all keys and values,
// which fit into no cache near a core.

#include <algorithm>
#include <climits>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <exception>
#include <limits>
#include <omp.h>
#include <type_traits>
#include <utility>
#include <vector>

extern "C" {
void sgemm_(const char*, const char*, const int*, const int*, const int*,
            const float*, const float*, const int*, const float*, const int*,
            const float*, float*, const int*);
void dgemm_(const char*, const char*, const int*, const int*, const int*,
            const double*, const double*, const int*, const double*, const int*,
            const double*, double*, const int*);
}

#ifdef __AVX512BF16__
// oneDNN's `brgemm` inside torch. Weak: null in a version of torch without it.
namespace c10 {
struct BFloat16;
}
namespace at::native::cpublas {
__attribute__((weak)) void brgemm(int64_t M, int64_t N, int64_t K, int64_t ld_a,
                                  int64_t ld_b, int64_t ld_c, bool add_to_c,
                                  const c10::BFloat16* a, const c10::BFloat16* b,
                                  float* c, bool interleaved);
__attribute__((weak)) void brgemm_release(bool interleaved);
}
#endif

namespace {

using Int = int64_t;

// Sizes of a chunk.
struct ChunkLayout {
  Int T, B, H, D, L, F;   // steps, sequences, heads, their width, layers, inner width
  Int R;                  // rows of the relative tables
  Int capacity;           // rows of the buffers of keys and values
  Int past, span;         // keys carried in; how many keys a step sees
  Int norm_memory, gelu;  // options, 0 or 1
  Int bfloat16;           // 0, or 1 if the weights are what `pack` returned
  Int first, stop;        // the chunk's steps
  Int low, width;  // the chunk's oldest key, and the number of keys in its scores
  Int group;       // sequences per group
  Int threads;
  Int *border;  // [B, T], the oldest key of a row at a step; null without borders
  Int d() const { return H * D; }
  Int groups() const { return (B + group - 1) / group; }
  Int steps() const { return stop - first; }
  // The oldest key that step t sees, in any sequence and in sequence b.
  Int oldest(Int t) const { return std::max<Int>(0, past + t - span); }
  Int oldest(Int t, Int b) const {
    return border ? std::max(oldest(t), border[b * T + t]) : oldest(t);
  }
  // Whether sequence b begins at step t, and so has no key.
  bool begins(Int t, Int b) const { return oldest(t, b) == past + t; }
  // Rows of tensors [L + 1, T, B, d], [L, m, B, d] and [HB, m L, width].
  Int x_row(Int t, Int l, Int b) const { return (l * T + t) * B + b; }
  Int at(Int t, Int l, Int b) const { return (l * steps() + t - first) * B + b; }
  Int row(Int t, Int l, Int hb) const { return (hb * steps() + t - first) * L + l; }
};

// Matrices are [in, out] in forward and [out, in] in backward. What `pack` returned
// has numbers of half the size, so each matrix leaves half of its memory unused.
template <class S> struct Weights {
  S *w_q, *b_q, *u, *table, *s, *w_o, *b_o, *w_1, *b_1, *w_2, *b_2, *mix, *w_kv,
      *b_kv;
};

template <class S> struct Outputs {
  S *x, *m, *keys, *values;
};

template <class S> struct Chunk {
  S *q, *o, *y, *a, *p, *attention_dropout, *output_dropout;
};

template <class S> struct ChunkGradients {
  S *p, *with_u, *scores, *attended, *f, *y, *q, *a, *kv, *m;
};

// What W_q, W_1 and W_2 were multiplied by; with a ReLU, w_2 is `a` of the chunk.
template <class S> struct LayerInputs {
  S *w_q, *w_1, *w_2;
};

// From b_q on, each thread has a sum of its own: [threads, L, d] for b_q. The last
// two are null if not needed.
template <class S> struct SequenceGradients {
  S *top, *x, *keys, *values, *b_q, *b_o, *b_1, *b_2, *table, *s;
};

template <class S> struct Forward {
  Weights<S> w;
  Outputs<S> out;
  Chunk<S> chunk;
};

template <class S> struct Backward {
  Weights<S> w;
  Outputs<S> out;
  Chunk<S> chunk;
  ChunkGradients<S> grads;
  LayerInputs<S> inputs;
  SequenceGradients<S> total;
};

// What a call returns. An exception must not leave a parallel region or this file: it
// would end the process.
enum Status : int { done, out_of_memory, too_large };

// Products --------------------------------------------------------------------------

void blas(char ta, char tb, int m, int n, int k, const float* a, int lda,
          const float* b, int ldb, float beta, float* c, int ldc) {
  const float one = 1;
  sgemm_(&ta, &tb, &m, &n, &k, &one, a, &lda, b, &ldb, &beta, c, &ldc);
}

void blas(char ta, char tb, int m, int n, int k, const double* a, int lda,
          const double* b, int ldb, double beta, double* c, int ldc) {
  const double one = 1;
  dgemm_(&ta, &tb, &m, &n, &k, &one, a, &lda, b, &ldb, &beta, c, &ldc);
}

// Whether all sizes of matrices fit into an int, the integer type of BLAS. The rows
// that `query_gradients` multiplies are the farthest apart.
bool fits(const ChunkLayout& z) {
  const Int rows = z.steps() * z.L * std::max<Int>(1, z.width);
  return std::max({2 * z.d(), z.F, z.group, rows}) <= INT_MAX;
}

// Bytes of a register. A tile is `tile_rows` rows of two registers, or of up to
// `tile_vectors` registers where fewer rows are left. With more than `few_rows`, BLAS
// is faster unless B fits into a near cache.
#ifdef __AVX512F__
constexpr Int register_bytes = 64, tile_rows = 8, tile_vectors = 16, few_rows = 64;
#else
constexpr Int register_bytes = 32, tile_rows = 6, tile_vectors = 8, few_rows = 8;
#endif
template <class S> constexpr Int widest = register_bytes / sizeof(S);

// W numbers at any address.
template <class S, Int W> struct Vector {
  static constexpr Int bytes = W * sizeof(S);
  typedef S type __attribute__((vector_size(bytes), aligned(sizeof(S)), may_alias));
  typedef std::conditional_t<sizeof(S) == 4, int32_t, int64_t> Index
      __attribute__((vector_size(bytes)));
};

// C = beta C + A B for R rows and N vectors of C, which stay in registers. Rows of A
// are `row` numbers apart, columns `column`.
template <class S, Int W, Int R, Int N>
void tile(Int K, const S* A, Int row, Int column, const S* B, Int ldb, S beta, S* C,
          Int ldc) {
  using V = typename Vector<S, W>::type;
  V sum[R][N] = {};
  if (beta != 0)
    for (Int i = 0; i < R; i++)
      for (Int j = 0; j < N; j++)
        sum[i][j] = beta * reinterpret_cast<V*>(C + i * ldc)[j];
  for (Int k = 0; k < K; k++)
    for (Int i = 0; i < R; i++)
      for (Int j = 0; j < N; j++)
        sum[i][j] +=
            A[i * row + k * column] * reinterpret_cast<const V*>(B + k * ldb)[j];
  for (Int i = 0; i < R; i++)
    for (Int j = 0; j < N; j++) reinterpret_cast<V*>(C + i * ldc)[j] = sum[i][j];
}

// R rows of C: tiles of N vectors, then of fewer, then of narrower ones.
template <class S, Int W, Int R, Int N>
void strip(Int columns, Int K, const S* A, Int row, Int column, const S* B, Int ldb,
           S beta, S* C, Int ldc) {
  for (; columns >= N * W; columns -= N * W, B += N * W, C += N * W)
    tile<S, W, R, N>(K, A, row, column, B, ldb, beta, C, ldc);
  if constexpr (N * W > 1)
    if (columns)
      strip<S, N == 1 ? W / 2 : W, R, N == 1 ? 1 : N / 2>(columns, K, A, row, column,
                                                          B, ldb, beta, C, ldc);
}

// All of C: strips of R rows, then of fewer.
template <class S, Int R = tile_rows>
void small_product(Int M, Int N, Int K, const S* A, Int row, Int column, const S* B,
                   Int ldb, S beta, S* C, Int ldc) {
  for (; M >= R; M -= R, A += R * row, C += R * ldc)
    strip<S, widest<S>, R, std::max<Int>(2, tile_vectors / R)>(
        N, K, A, row, column, B, ldb, beta, C, ldc);
  if constexpr (R > 1)
    small_product<S, R == tile_rows ? 4 : R / 2>(M, N, K, A, row, column, B, ldb,
                                                 beta, C, ldc);
}

// Whether `small_product` is faster than BLAS, which copies A and B [K, N] first. The
// limits were measured with MKL on a Zen 4.
template <class S> bool is_small(Int M, Int N, Int K) {
  const Int bytes = K * N * static_cast<Int>(sizeof(S));
  return bytes <= (M <= few_rows ? 1 << 20 : 1 << 17);
}

// C [M, N] = beta C + A [M, K] B [K, N], with rows `ld` apart. BLAS is column-major,
// hence A and B are swapped.
template <class S>
void product(Int M, Int N, Int K, const S* A, Int lda, const S* B, Int ldb, S beta,
             S* C, Int ldc) {
  if (is_small<S>(M, N, K))
    return small_product<S>(M, N, K, A, lda, 1, B, ldb, beta, C, ldc);
  blas('N', 'N', N, M, K, B, ldb, A, lda, beta, C, ldc);
}

// C [M, N] += A^T B, for A [K, M] and B [K, N].
template <class S>
void add_transposed(Int M, Int N, Int K, const S* A, Int lda, const S* B, Int ldb,
                    S* C, Int ldc) {
  if (is_small<S>(M, N, K))
    return small_product<S>(M, N, K, A, 1, lda, B, ldb, S(1), C, ldc);
  blas('N', 'T', N, M, K, B, ldb, A, lda, S(1), C, ldc);
}

// Small functions -------------------------------------------------------------------

// Call work(i) for every i < count, in parallel if a group has several threads.
template <class F> void parallel_for(Int threads, Int count, F work) {
  if (threads == 1) {
    for (Int i = 0; i < count; i++) work(i);
  } else {
#pragma omp taskloop num_tasks(threads)
    for (Int i = 0; i < count; i++) work(i);
  }
}

// Products in bfloat16 --------------------------------------------------------------
//
// Both factors are rounded, sums are in float32. oneDNN inside torch multiplies, with
// the instructions for bfloat16 (AVX512-BF16 or AMX) that the processor has.

using BFloat16 = uint16_t;
constexpr Int panel = 64;  // columns that oneDNN multiplies in one call

Int even(Int K) { return K + K % 2; }

// To the nearest, and to the even one of two.
inline BFloat16 rounded(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const BFloat16 nearest = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return x == x ? nearest : 0x7fc0;  // NaN
}

// Round the columns of w [K, N] from `from` on, one panel, to [even(K) / 2, columns,
// 2]: pairs of rows interleaved, as the instructions take them. Panels follow each
// other in `out`.
void pack_panel(Int K, Int N, Int from, const float* w, BFloat16* out) {
  const Int columns = std::min(panel, N - from);
  out += from * even(K);
  for (Int k = 0; k < K; k += 2, out += 2 * columns) {
    const float *row = w + k * N + from, *next = k + 1 < K ? row + N : nullptr;
    for (Int i = 0; i < columns; i++)
      out[2 * i] = rounded(row[i]), out[2 * i + 1] = next ? rounded(next[i]) : 0;
  }
}

// C [M, columns from `from` on] += A [M, even(K)] B [K, N], for packed B.
void add_packed(Int M, Int N, Int K, Int from, Int columns, const void* A,
                const BFloat16* B, float* C) {
#ifdef __AVX512BF16__  // which `has_bfloat16` asks for
  for (Int j = from; j < from + columns; j += panel) {
    const Int width = std::min(panel, N - j);
    at::native::cpublas::brgemm(
        M, width, even(K), even(K), width, N, true,
        static_cast<const c10::BFloat16*>(A),
        reinterpret_cast<const c10::BFloat16*>(B + j * even(K)), C + j, true);
  }
  at::native::cpublas::brgemm_release(true);
#endif
}

// out [n, N] += in [n, K] w, for packed w [K, N]. Several threads share the columns.
void add_bfloat16(Int threads, Int n, Int K, Int N, const float* in, const float* w,
                  float* out) {
  static thread_local std::vector<BFloat16> buffer;
  buffer.resize(n * even(K));
  BFloat16* rows = buffer.data();
  for (Int b = 0; b < n; b++) {
    BFloat16* row = rows + b * even(K);
    row[even(K) - 1] = 0;
    for (Int k = 0; k < K; k++) row[k] = rounded(in[b * K + k]);
  }
  const Int panels = (N + panel - 1) / panel,
            blocks = K * N < 65536 ? 1 : std::min(threads, panels),
            width = (panels + blocks - 1) / blocks * panel;
  std::exception_ptr error;  // an exception must not leave a task
  parallel_for(blocks, (N + width - 1) / width, [&](Int i) {
    try {
      add_packed(n, N, K, i * width, std::min(width, N - i * width), rows,
                 reinterpret_cast<const BFloat16*>(w), out);
    } catch (...) {
#pragma omp critical
      error = std::current_exception();
    }
  });
  if (error) std::rethrow_exception(error);
}

// Round the columns [from, from + count) of rows [R, N] and transpose them, to
// [count, even(R)], as pairs of numbers.
void transpose(Int R, Int N, Int from, Int count, const float* rows, uint32_t* out) {
  constexpr Int tile = 16;
  uint32_t pairs[tile][panel];
  const Int length = even(R) / 2;
  for (Int r = 0; r < length; r += tile) {
    const Int height = std::min(tile, length - r);
    for (Int i = 0; i < height; i++) {
      const float* row = rows + 2 * (r + i) * N + from;
      const float* next = 2 * (r + i) + 1 < R ? row + N : nullptr;
      for (Int c = 0; c < count; c++)
        pairs[i][c] = rounded(row[c]) | (next ? rounded(next[c]) : 0u) << 16;
    }
    for (Int c = 0; c < count; c++)
      for (Int i = 0; i < height; i++) out[c * length + r + i] = pairs[i][c];
  }
}

// Products with weights -------------------------------------------------------------

// out [n, N] = bias + in [n, K] w [K, N]. If w is large enough to be worth starting
// threads, each one computes some of the columns.
template <class S>
void affine(const ChunkLayout& z, Int threads, Int n, Int K, Int N, const S* in,
            const S* w, const S* bias, S* out) {
  for (Int b = 0; b < n; b++) std::memcpy(out + b * N, bias, N * sizeof(S));
  if constexpr (std::is_same_v<S, float>)
    if (z.bfloat16) return add_bfloat16(threads, n, K, N, in, w, out);
  const Int blocks = K * N < 65536 ? 1 : std::min(threads, N);
  const Int width = (N + blocks - 1) / blocks;
  parallel_for(blocks, (N + width - 1) / width, [&](Int i) {
    const Int from = i * width, columns = std::min(width, N - from);
    product(n, columns, K, in, K, w + from, N, S(1), out + from, N);
  });
}

// out [n, N] = in [n, K] w [K, N].
template <class S>
void linear(const ChunkLayout& z, Int n, Int K, Int N, const S* in, const S* w,
            S* out) {
  if constexpr (std::is_same_v<S, float>)
    if (z.bfloat16) {
      std::fill(out, out + n * N, 0.0f);
      return add_bfloat16(1, n, K, N, in, w, out);
    }
  product(n, N, K, in, K, w, N, S(0), out, N);
}

// z = n(x): subtract the mean of a row of d numbers, divide by their standard
// deviation. Returns 1 / standard deviation.
template <class S> S norm_row(Int d, const S* x, S* z) {
  S sum = 0, square = 0;
#pragma omp simd reduction(+ : sum)
  for (Int i = 0; i < d; i++) sum += x[i];
  const S mean = sum / d;
#pragma omp simd reduction(+ : square)
  for (Int i = 0; i < d; i++) square += (x[i] - mean) * (x[i] - mean);
  const S rstd = 1 / std::sqrt(square / d + S(1e-5));
#pragma omp simd
  for (Int i = 0; i < d; i++) z[i] = (x[i] - mean) * rstd;
  return rstd;
}

template <class S> void norm(Int n, Int d, const S* x, S* z) {
  for (Int b = 0; b < n; b++) norm_row(d, x + b * d, z + b * d);
}

// g += N(v; x), the gradient of x from that of z = n(x), for n rows of d numbers.
// Also computes z.
template <class S>
void norm_backward(Int n, Int d, const S* v, const S* x, S* g, S* z) {
  for (Int b = 0; b < n; b++, v += d, x += d, g += d, z += d) {
    const S rstd = norm_row(d, x, z);
    S mean = 0, slope = 0;
#pragma omp simd reduction(+ : mean, slope)
    for (Int i = 0; i < d; i++) mean += v[i], slope += v[i] * z[i];
    mean /= d, slope /= d;
#pragma omp simd
    for (Int i = 0; i < d; i++) g[i] += rstd * (v[i] - mean - z[i] * slope);
  }
}

// e^x for x <= 0 and NaN, in a form that compilers vectorise: 2^n times a polynomial
// on [-ln 2 / 2, ln 2 / 2]. Subnormal results are 0. A NaN has no integer part; n is
// then that of -87, and r is NaN.
inline float exponential(float x) {
  const float bounded = x > -87.0f ? x : -87.0f;
  const float n = std::nearbyint(bounded * 1.44269504f);
  const float r = x - n * 0.693359375f + n * 2.12194440e-4f;
  float y = 1.98756915e-4f;
  for (float c :
       {1.39819995e-3f, 8.33345190e-3f, 4.16657959e-2f, 1.66666655e-1f, 0.5f})
    y = y * r + c;
  const uint32_t bits = static_cast<uint32_t>(static_cast<int32_t>(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return x < -87.0f ? 0.0f : (y * r * r + r + 1) * power;
}
inline double exponential(double x) { return std::exp(x); }

// Phi(a) of the normal distribution, from bell = e^(-a^2 / 2). In float by 7.1.26 of
// Abramowitz and Stegun, to 1e-7.
inline float cumulative(float a, float bell) {
  const float t = 1 / (1 + 0.3275911f * 0.70710678f * std::fabs(a));
  float y = 1.061405429f;
  for (float c : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f})
    y = y * t + c;
  const float tail = 0.5f * y * t * bell;
  return a > 0 ? 1 - tail : tail;
}
inline double cumulative(double a, double) {
  return 0.5 * std::erfc(-a * 0.70710678118654752);
}

template <class S> void gelu(Int n, const S* a, S* out) {
#pragma omp simd
  for (Int i = 0; i < n; i++)
    out[i] = a[i] * cumulative(a[i], exponential(S(-0.5) * a[i] * a[i]));
}

// g *= gelu'(a). Also computes out = gelu(a).
template <class S> void gelu_backward(Int n, const S* a, S* g, S* out) {
#pragma omp simd
  for (Int i = 0; i < n; i++) {
    const S bell = exponential(S(-0.5) * a[i] * a[i]), phi = cumulative(a[i], bell);
    out[i] = a[i] * phi, g[i] *= phi + a[i] * bell * S(0.39894228040143268);
  }
}

template <class S> void relu(Int n, S* a) {
  for (Int i = 0; i < n; i++) a[i] = a[i] < 0 ? 0 : a[i];  // keeps NaN
}

template <class S> void relu_backward(Int n, const S* a, S* g) {
  for (Int i = 0; i < n; i++) g[i] = a[i] <= 0 ? 0 : g[i];  // like torch if a is NaN
}

template <class S> void multiply(Int n, const S* factor, S* x) {
  if (factor)
    for (Int i = 0; i < n; i++) x[i] *= factor[i];
}

template <class S> void add(Int n, S scale, const S* x, S* y) {
  for (Int i = 0; i < n; i++) y[i] += scale * x[i];
}

// y += the sum of n rows of x.
template <class S> void add_rows(Int n, Int d, const S* x, S* y) {
  for (Int b = 0; b < n; b++) add(d, S(1), x + b * d, y);
}

// Lanes of a and b are rows of N numbers. Returns the rows of a and b in turn, each
// with N / 2 numbers: the sums of its halves.
template <class S, Int W, Int N, size_t... K>
typename Vector<S, W>::type fold_pair(typename Vector<S, W>::type a,
                                      typename Vector<S, W>::type b,
                                      std::index_sequence<K...>) {
  constexpr auto lane = [](Int k) {
    return k / (N / 2) % 2 * W + k / N * N + k % (N / 2);
  };
#ifdef __clang__
  return __builtin_shufflevector(a, b, lane(K)...) +
         __builtin_shufflevector(a, b, lane(K) + N / 2 ...);
#else
  using Index = typename Vector<S, W>::Index;
  return __builtin_shuffle(a, b, Index{lane(K)...}) +
         __builtin_shuffle(a, b, Index{lane(K) + N / 2 ...});
#endif
}

// Lane k of the result is the sum of the lanes of rows[k].
template <class S, Int W, Int N = W>
typename Vector<S, W>::type fold(typename Vector<S, W>::type* rows) {
  if constexpr (N == 1) {
    return rows[0];
  } else {
#pragma GCC unroll 8
    for (Int i = 0; i < N / 2; i++)
      rows[i] = fold_pair<S, W, N>(rows[i], rows[i + N / 2],
                                   std::make_index_sequence<W>());
    return fold<S, W, N / 2>(rows);
  }
}

// Scores of a query and n keys of D numbers, in N vectors each: out[j] = q . keys[j],
// plus r . table[j] + bias[j] if there is a table. Row j of the table belongs to key
// j.
template <class S, Int W, Int N>
void score_vectors(Int n, const S* q, const S* keys, const S* r, const S* table,
                   const S* bias, S* out) {
  using V = typename Vector<S, W>::type;
  auto vectors = [](const S* x) { return reinterpret_cast<const V*>(x); };
  const V *query = vectors(q), *key = vectors(keys);
  const V *relative = vectors(r), *row = vectors(table);
  auto dot = [&](Int j) {
    V sum = query[0] * key[j * N];
    for (Int i = 1; i < N; i++) sum += query[i] * key[j * N + i];
    if (table)
      for (Int i = 0; i < N; i++) sum += relative[i] * row[j * N + i];
    return sum;
  };
  Int j = 0;
  V sums[W];
  for (; j + W <= n; j += W) {
#pragma GCC unroll 16
    for (Int k = 0; k < W; k++) sums[k] = dot(j + k);
    const V sum = fold<S, W>(sums);
    *reinterpret_cast<V*>(out + j) = table ? sum + *vectors(bias + j) : sum;
  }
  if (j == n) return;
  for (Int k = 0; k < W; k++) sums[k] = j + k < n ? dot(j + k) : V{};
  const V sum = fold<S, W>(sums);
  for (Int k = 0; j + k < n; k++) out[j + k] = table ? sum[k] + bias[j + k] : sum[k];
}

// out = sum_j p[j * step] values[j] over n rows of D numbers, in N vectors each. If
// there is a table, table[j] is added to values[j].
template <class S, Int W, Int N>
void weighted_sum_vectors(Int n, const S* p, Int step, const S* values,
                          const S* table, S* out) {
  using V = typename Vector<S, W>::type;
  constexpr Int U = N <= 2 ? 4 : 2;  // several sums hide the latency of an addition
  const V *value = reinterpret_cast<const V*>(values),
          *row = reinterpret_cast<const V*>(table);
  V sum[U][N] = {};
  auto add = [&](Int k, Int j) {
    const S scale = p[j * step];
    for (Int i = 0; i < N; i++)
      sum[k][i] +=
          scale * (table ? value[j * N + i] + row[j * N + i] : value[j * N + i]);
  };
  Int j = 0;
  for (; j + U <= n; j += U)
    for (Int k = 0; k < U; k++) add(k, j + k);
  for (; j < n; j++) add(0, j);
  for (Int k = 1; k < U; k++)
    for (Int i = 0; i < N; i++) sum[0][i] += sum[k][i];
  for (Int i = 0; i < N; i++) reinterpret_cast<V*>(out)[i] = sum[0][i];
}

// `score_vectors` for any D.
template <class S, Int W = widest<S>>
void score(Int D, Int n, const S* q, const S* keys, const S* r, const S* table,
           const S* bias, S* out) {
  if (D == W) return score_vectors<S, W, 1>(n, q, keys, r, table, bias, out);
  if (D == 2 * W) return score_vectors<S, W, 2>(n, q, keys, r, table, bias, out);
  if (D == 4 * W) return score_vectors<S, W, 4>(n, q, keys, r, table, bias, out);
  if (D == 8 * W) return score_vectors<S, W, 8>(n, q, keys, r, table, bias, out);
  if constexpr (W > 4) return score<S, W / 2>(D, n, q, keys, r, table, bias, out);
  for (Int j = 0; j < n; j++) {
    S sum = table ? bias[j] : 0;
    for (Int c = 0; c < D; c++)
      sum += q[c] * keys[j * D + c] + (table ? r[c] * table[j * D + c] : 0);
    out[j] = sum;
  }
}

// `weighted_sum_vectors` for any D.
template <class S, Int W = widest<S>>
void weighted_sum(Int D, Int n, const S* p, Int step, const S* rows, const S* table,
                  S* out) {
  if (D == W) return weighted_sum_vectors<S, W, 1>(n, p, step, rows, table, out);
  if (D == 2 * W) return weighted_sum_vectors<S, W, 2>(n, p, step, rows, table, out);
  if (D == 4 * W) return weighted_sum_vectors<S, W, 4>(n, p, step, rows, table, out);
  if (D == 8 * W) return weighted_sum_vectors<S, W, 8>(n, p, step, rows, table, out);
  if constexpr (W > 4) return weighted_sum<S, W / 2>(D, n, p, step, rows, table, out);
  std::fill(out, out + D, S(0));
  for (Int j = 0; j < n; j++)
    for (Int c = 0; c < D; c++)
      out[c] += p[j * step] * (rows[j * D + c] + (table ? table[j * D + c] : 0));
}

template <class S> S dot(Int n, const S* x, const S* y) {
  S sum = 0;
#pragma omp simd reduction(+ : sum)
  for (Int i = 0; i < n; i++) sum += x[i] * y[i];
  return sum;
}

// The largest of some scores s, and the sum of e^(s - top).
template <class S> struct PartialSoftmax {
  S top = -std::numeric_limits<S>::infinity(), sum = 0;
};

// Replace n scores s by e^(s - top).
template <class S> PartialSoftmax<S> exponentials(Int n, S* s) {
  S top = PartialSoftmax<S>().top, sum = 0;
#pragma omp simd reduction(max : top)
  for (Int j = 0; j < n; j++) top = s[j] > top ? s[j] : top;
  const S shift =
      top > PartialSoftmax<S>().top ? top : 0;  // 0 if biases of -inf hide all keys
#pragma omp simd
  for (Int j = 0; j < n; j++) s[j] = exponential(s[j] - shift);
#pragma omp simd reduction(+ : sum)
  for (Int j = 0; j < n; j++) sum += s[j];
  return {top, sum};
}

// Forward ---------------------------------------------------------------------------

// Attention of head h of sequence b at step t, layer l, to the keys [from, to).
// Writes the exponentials of the scores in place of the attention weights, and o, the
// sum of the values weighted by them. `scratch` has space for D + to - from numbers.
template <class S>
PartialSoftmax<S> attend_keys(const ChunkLayout& z, const Forward<S>& f, Int t, Int l,
                              Int h, Int b, Int from, Int to, S* o, S* scratch) {
  const Int count = to - from, lh = l * z.H + h, hb = h * z.B + b;
  const Int newest = lh * z.R + z.R - (z.past + t - from),
            key = (hb * z.capacity + from) * z.D;
  const Int scores = z.row(t, l, hb) * z.width + from - z.low;
  const S *q = f.chunk.q + z.at(t, l, b) * z.d() + h * z.D, *none = nullptr;
  S *p = f.chunk.p + scores, *with_u = scratch, *dropped = scratch + z.D;
  for (Int c = 0; c < z.D; c++) with_u[c] = q[c] + f.w.u[lh * z.D + c];
  score(z.D, count, with_u, f.out.keys + key, q, f.w.table + newest * z.D,
        f.w.s + newest, p);
  const PartialSoftmax<S> softmax = exponentials(count, p);
  if (f.chunk.attention_dropout) {
    const S* mask = f.chunk.attention_dropout + scores;
    for (Int j = 0; j < count; j++) dropped[j] = p[j] * mask[j];
    p = dropped;
  }
  weighted_sum(z.D, count, p, 1, f.out.values + key, none, o);
  return softmax;
}

// The queries of the first layer are known before the steps, so all of them attend to
// the keys before the chunk one after another, while those are in the cache.
template <class S>
void attend_earlier_keys(const ChunkLayout& z, const Forward<S>& f, Int h, Int b0,
                         Int n, PartialSoftmax<S>* earlier, S* scratch) {
  earlier += h * n * z.steps();
  for (Int b = b0; b < b0 + n; b++)
    for (Int t = z.first; t < z.stop; t++) {
      const Int to = z.past + z.first, from = std::min(z.oldest(t, b), to);
      S* o = f.chunk.o + z.at(t, 0, b) * z.d() + h * z.D;
      *earlier++ = attend_keys(z, f, t, 0, h, b, from, to, o, scratch);
    }
}

// Attention weights and attended values of head h at step t, layer l, for the
// sequences b0 to b0 + n.
template <class S>
void attend(const ChunkLayout& z, const Forward<S>& f, Int t, Int l, Int h, Int b0,
            Int n, const PartialSoftmax<S>* earlier, S* scratch) {
  for (Int b = 0; b < n; b++) {
    const Int low = z.oldest(t, b0 + b), to = z.past + t,
              from = l ? low : std::max(low, z.past + z.first);
    S* p = f.chunk.p + z.row(t, l, h * z.B + b0 + b) * z.width - z.low;
    S *o = f.chunk.o + z.at(t, l, b0 + b) * z.d() + h * z.D, *new_o = l ? o : scratch;
    if (low == to) {
      std::fill(o, o + z.D, S(0));
      continue;
    }
    const PartialSoftmax<S> part =
        attend_keys(z, f, t, l, h, b0 + b, from, to, new_o, scratch + z.D);
    S old_scale = 0, new_scale = 1 / part.sum;
    if (l == 0) {  // one softmax from its two parts
      const PartialSoftmax<S> before = earlier[(h * n + b) * z.steps() + t - z.first];
      const S top = std::max(before.top, part.top);
      old_scale = exponential(before.top - top),
      new_scale = exponential(part.top - top);
      const S scale = 1 / (old_scale * before.sum + new_scale * part.sum);
      old_scale *= scale, new_scale *= scale;
      for (Int j = low; j < from; j++) p[j] *= old_scale;
    }
    for (Int j = from; j < to; j++) p[j] *= new_scale;
    for (Int c = 0; c < z.D; c++)
      o[c] = (l ? 0 : old_scale * o[c]) + new_scale * new_o[c];
  }
}

// Memory, key and value of step t of the sequences b0 to b0 + n.
template <class S>
void remember(const ChunkLayout& z, const Forward<S>& f, Int threads, Int t, Int b0,
              Int n, S* normed, S* key_value) {
  const Int d = z.d(), now = z.past + t;
  S* memory = f.out.m + (t * z.B + b0) * d;
  std::fill(memory, memory + n * d, S(0));
  for (Int l = 0; l <= z.L; l++)
    add(n * d, f.w.mix[l], f.out.x + z.x_row(t, l, b0) * d, memory);
  if (z.norm_memory) {
    norm(n, d, memory, normed);
    memory = normed;
  }
  affine(z, threads, n, d, 2 * d, memory, f.w.w_kv, f.w.b_kv, key_value);
  for (Int b = 0; b < n; b++)
    for (Int h = 0; h < z.H; h++) {
      const Int row = ((h * z.B + b0 + b) * z.capacity + now) * z.D;
      const S *key = key_value + b * 2 * d + h * z.D, *value = key + d;
      std::memcpy(f.out.keys + row, key, z.D * sizeof(S));
      std::memcpy(f.out.values + row, value, z.D * sizeof(S));
    }
}

template <class S>
void forward_group(const ChunkLayout& z, const Forward<S>& f, Int b0, Int n) {
  const Int d = z.d(), m = z.steps(), wide = std::max(2 * d, z.F);
  const Int threads = std::max<Int>(1, z.threads / z.groups()),
            head = 2 * z.D + z.width;
  std::vector<S> normed(n * d), inner(n * wide), scratch(z.H * head);
  std::vector<PartialSoftmax<S>> earlier(z.H * n * m);
  parallel_for(threads, z.H, [&](Int h) {
    attend_earlier_keys(z, f, h, b0, n, earlier.data(), scratch.data() + h * head);
  });
  const S* attention_mask = f.chunk.output_dropout;
  const S* feed_forward_mask =
      attention_mask ? attention_mask + z.L * m * z.B * d : nullptr;
  for (Int t = z.first; t < z.stop; t++) {
    for (Int l = 0; l < z.L; l++) {
      const Int at = z.at(t, l, b0) * d, inner_at = z.at(t, l, b0) * z.F;
      const S* x = f.out.x + z.x_row(t, l, b0) * d;
      S *next_x = f.out.x + z.x_row(t, l + 1, b0) * d, *y = f.chunk.y + at;
      S *o = f.chunk.o + at, *a = f.chunk.a + inner_at;
      if (l > 0) {
        norm(n, d, x, normed.data());
        affine(z, threads, n, d, d, normed.data(), f.w.w_q + l * d * d,
               f.w.b_q + l * d, f.chunk.q + at);
      }
      if (z.past + t > 0) {
        parallel_for(threads, z.H, [&](Int h) {
          attend(z, f, t, l, h, b0, n, earlier.data(), scratch.data() + h * head);
        });
        affine(z, threads, n, d, d, o, f.w.w_o + l * d * d, f.w.b_o + l * d, y);
        multiply(n * d, attention_mask ? attention_mask + at : nullptr, y);
        for (Int b = 0; z.border && b < n; b++)  // a row without keys skips attention
          if (z.begins(t, b0 + b)) std::fill(y + b * d, y + (b + 1) * d, S(0));
        add(n * d, S(1), x, y);
      } else {  // the very first step has no keys
        std::memcpy(y, x, n * d * sizeof(S));
        std::fill(o, o + n * d, S(0));
      }
      norm(n, d, y, normed.data());
      affine(z, threads, n, d, z.F, normed.data(), f.w.w_1 + l * d * z.F,
             f.w.b_1 + l * z.F, a);
      z.gelu ? gelu(n * z.F, a, inner.data()) : relu(n * z.F, a);
      const S* active = z.gelu ? inner.data() : a;
      affine(z, threads, n, z.F, d, active, f.w.w_2 + l * z.F * d, f.w.b_2 + l * d,
             next_x);
      multiply(n * d, feed_forward_mask ? feed_forward_mask + at : nullptr, next_x);
      add(n * d, S(1), y, next_x);
    }
    remember(z, f, threads, t, b0, n, normed.data(), inner.data());
  }
}

// Backward --------------------------------------------------------------------------

// Gradients of the scores of head h of sequence b at step t, layer l, from d_o, that
// of the attended values.
template <class S>
void score_gradients(const ChunkLayout& z, const Backward<S>& f, Int t, Int l, Int h,
                     Int b, const S* d_o) {
  const Int low = z.oldest(t, b), count = z.past + t - low, hb = h * z.B + b;
  const Int scores = z.row(t, l, hb) * z.width + low - z.low;
  const S *p = f.chunk.p + scores, *mask = f.chunk.attention_dropout, *none = nullptr;
  S* ds = f.grads.scores + scores;
  score(z.D, count, d_o, f.out.values + (hb * z.capacity + low) * z.D, none, none,
        none, ds);
  if (mask) multiply(count, mask + scores, ds);
  // d_o . o is the same number up to rounding. But if one weight is 1, p . dp leaves
  // 0 and not a rounding error, which large weights would multiply from step to step
  // until it is infinite.
  const S mean = dot(count, p, ds);
  for (Int j = 0; j < count; j++) ds[j] = p[j] * (ds[j] - mean);
}

// From the gradients of scores to those of queries and relative tables: head h at
// step t, layer l, of the sequences b0 to b0 + n. Those of keys that a sequence does
// not see are 0.
template <class S>
void query_gradients(const ChunkLayout& z, const Backward<S>& f, Int t, Int l, Int h,
                     Int b0, Int n) {
  const Int low = z.oldest(t), count = z.past + t - low,
            next = z.steps() * z.L * z.width;
  const Int lh = l * z.H + h, newest = lh * z.R + z.R - count;
  const Int at = z.at(t, l, b0) * z.d() + h * z.D;
  const S* ds = f.grads.scores + z.row(t, l, h * z.B + b0) * z.width + low - z.low;
  for (Int b = 0; b < n; b++) {
    const S* keys = f.out.keys + ((h * z.B + b0 + b) * z.capacity + low) * z.D;
    weighted_sum(z.D, count, ds + b * next, 1, keys, f.w.table + newest * z.D,
                 f.grads.q + at + b * z.d());
  }
  if (!f.total.table) return;
  const Int sum = omp_get_thread_num() * z.L * z.H * z.R + newest;
  add_transposed(count, z.D, n, ds, next, f.chunk.q + at, z.d(),
                 f.total.table + sum * z.D, z.D);
  for (Int b = 0; b < n; b++) add(count, S(1), ds + b * next, f.total.s + sum);
}

// From d_o, the gradient of the attended values of step t, layer l, to those of
// scores, queries and tables. Nothing in the loop depends on the queries of the first
// layer, so theirs are left for the end of the chunk.
template <class S>
void attend_backward(const ChunkLayout& z, const Backward<S>& f, Int t, Int l, Int b0,
                     Int n, const S* d_o) {
  for (Int h = 0; h < z.H; h++) {
    const S* u = f.w.u + (l * z.H + h) * z.D;
    for (Int b = 0; b < n; b++) {
      const Int row = z.row(t, l, h * z.B + b0 + b),
                at = z.at(t, l, b0 + b) * z.d() + h * z.D;
      const S *d_head = d_o + b * z.d() + h * z.D, *q = f.chunk.q + at;
      S *with_u = f.grads.with_u + row * z.D,
        *attended = f.grads.attended + row * z.D;
      for (Int c = 0; c < z.D; c++) with_u[c] = q[c] + u[c], attended[c] = d_head[c];
      score_gradients(z, f, t, l, h, b0 + b, d_head);
    }
    if (l) query_gradients(z, f, t, l, h, b0, n);
  }
}

// Adds to g the gradient of the inputs of layer l at step t, from that of its
// queries.
template <class S>
void query_backward(const ChunkLayout& z, const Backward<S>& f, Int t, Int l, Int b0,
                    Int n, S* g, S* dz) {
  const Int d = z.d(), at = z.at(t, l, b0) * d,
            sum = (omp_get_thread_num() * z.L + l) * d;
  add_rows(n, d, f.grads.q + at, f.total.b_q + sum);
  linear(z, n, d, d, f.grads.q + at, f.w.w_q + l * d * d, dz);
  norm_backward(n, d, dz, f.out.x + z.x_row(t, l, b0) * d, g, f.inputs.w_q + at);
}

// The gradient of step t's memory, from those of its key and its value.
template <class S>
S* remember_backward(const ChunkLayout& z, const Backward<S>& f, Int t, Int b0, Int n,
                     S* dz, S* normed) {
  const Int d = z.d(), now = z.past + t, at = (t - z.first) * z.B + b0;
  S *d_kv = f.grads.kv + at * 2 * d, *dm = f.grads.m + at * d;
  for (Int b = 0; b < n; b++)
    for (Int h = 0; h < z.H; h++) {  // later steps of this chunk read this key too
      const Int hb = h * z.B + b0 + b, row = z.row(t + 1, 0, hb);
      const Int column = row * z.width + now - z.low, count = (z.stop - 1 - t) * z.L;
      const Int key_row = (hb * z.capacity + now) * z.D;
      S *key = d_kv + b * 2 * d + h * z.D, *value = key + d;
      const S *none = nullptr, *with_u = f.grads.with_u + row * z.D;
      const S* attended = f.grads.attended + row * z.D;
      weighted_sum(z.D, count, f.grads.scores + column, z.width, with_u, none, key);
      weighted_sum(z.D, count, f.grads.p + column, z.width, attended, none, value);
      add(z.D, S(1), f.total.keys + key_row, key);
      add(z.D, S(1), f.total.values + key_row, value);
    }
  linear(z, n, 2 * d, d, d_kv, f.w.w_kv, dm);
  if (z.norm_memory) {
    std::memcpy(dz, dm, n * d * sizeof(S));
    std::fill(dm, dm + n * d, S(0));
    norm_backward(n, d, dz, f.out.m + (t * z.B + b0) * d, dm, normed);
  }
  return dm;
}

// Adds what the steps of a chunk contribute to the gradients of the keys before it.
template <class S>
void push(const ChunkLayout& z, const Backward<S>& f, Int b0, Int n) {
  const Int count = z.past + z.first - z.low, rows = z.steps() * z.L;
  if (count == 0) return;
  for (Int h = 0; h < z.H; h++)
    for (Int hb = h * z.B + b0; hb < h * z.B + b0 + n; hb++) {
      const Int key = (hb * z.capacity + z.low) * z.D, row = hb * rows * z.D;
      const Int scores = hb * rows * z.width;
      const S *ds = f.grads.scores + scores, *p = f.grads.p + scores;
      const S *with_u = f.grads.with_u + row, *attended = f.grads.attended + row;
      add_transposed(count, z.D, rows, ds, z.width, with_u, z.D, f.total.keys + key,
                     z.D);
      add_transposed(count, z.D, rows, p, z.width, attended, z.D,
                     f.total.values + key, z.D);
    }
}

template <class S>
void backward_group(const ChunkLayout& z, const Backward<S>& f, Int b0, Int n) {
  const Int d = z.d(), m = z.steps();
  const Int first_with_keys = std::max<Int>(z.first, z.past ? z.first : 1);
  std::vector<S> g_buffer(n * d), dz_buffer(n * d), normed(n * d);
  S *g = g_buffer.data(), *dz = dz_buffer.data();
  const S* attention_mask = f.chunk.output_dropout;
  const S* feed_forward_mask =
      attention_mask ? attention_mask + z.L * m * z.B * d : nullptr;
  for (Int t = z.stop - 1; t >= z.first; t--) {
    const Int top = (t * z.B + b0) * d;
    const S* dm = remember_backward(z, f, t, b0, n, dz, normed.data());
    std::memcpy(g, f.total.top + top, n * d * sizeof(S));
    add(n * d, f.w.mix[z.L], dm, g);
    for (Int l = z.L - 1; l >= 0; l--) {
      const Int at = z.at(t, l, b0) * d, inner_at = z.at(t, l, b0) * z.F;
      const Int sum = omp_get_thread_num() * z.L + l;
      S *df = f.grads.f + at, *da = f.grads.a + inner_at, *dy = f.grads.y + at;
      const S* a = f.chunk.a + inner_at;
      std::memcpy(df, g, n * d * sizeof(S));
      multiply(n * d, feed_forward_mask ? feed_forward_mask + at : nullptr, df);
      add_rows(n, d, df, f.total.b_2 + sum * d);
      linear(z, n, d, z.F, df, f.w.w_2 + l * z.F * d, da);
      z.gelu ? gelu_backward(n * z.F, a, da, f.inputs.w_2 + inner_at)
             : relu_backward(n * z.F, a, da);
      add_rows(n, z.F, da, f.total.b_1 + sum * z.F);
      linear(z, n, z.F, d, da, f.w.w_1 + l * z.F * d, dz);
      norm_backward(n, d, dz, f.chunk.y + at, g, f.inputs.w_1 + at);
      if (t >= first_with_keys) {
        std::memcpy(dy, g, n * d * sizeof(S));
        multiply(n * d, attention_mask ? attention_mask + at : nullptr, dy);
        for (Int b = 0; z.border && b < n; b++)
          if (z.begins(t, b0 + b)) std::fill(dy + b * d, dy + (b + 1) * d, S(0));
        add_rows(n, d, dy, f.total.b_o + sum * d);
        S* d_o = dz;
        linear(z, n, d, d, dy, f.w.w_o + l * d * d, d_o);
        attend_backward(z, f, t, l, b0, n, d_o);
        if (l) query_backward(z, f, t, l, b0, n, g, dz);
      } else {  // the gradient that this is multiplied by is 0
        std::fill(f.inputs.w_q + at, f.inputs.w_q + at + n * d, S(0));
      }
      add(n * d, f.w.mix[l], dm, g);
    }
    std::memcpy(f.total.x + top, g, n * d * sizeof(S));
  }
  for (Int h = 0; h < z.H; h++)
    for (Int t = first_with_keys; t < z.stop; t++)
      query_gradients(z, f, t, 0, h, b0, n);
  for (Int t = first_with_keys; t < z.stop; t++)
    query_backward(z, f, t, 0, b0, n, f.total.x + (t * z.B + b0) * d, dz);
  push(z, f, b0, n);
}

// Threads ---------------------------------------------------------------------------

// Call work(first sequence, count) for group g; set `failed` if it runs out of
// memory.
template <class F> void run_group(const ChunkLayout& z, Int g, bool& failed, F work) {
  try {
    work(g * z.group, std::min(z.group, z.B - g * z.group));
  } catch (const std::exception&) {
#pragma omp atomic write
    failed = true;
  }
}

// A thread without a group helps with the products of others.
template <class S> Status forward(const ChunkLayout* z, const Forward<S>* f) {
  if (!fits(*z)) return too_large;
  bool failed = false;
#pragma omp parallel num_threads(z->threads) if (z -> threads > 1)
#pragma omp single
#pragma omp taskloop grainsize(1)
  for (Int g = 0; g < z->groups(); g++)
    run_group(*z, g, failed, [&](Int b0, Int n) { forward_group(*z, *f, b0, n); });
  return failed ? out_of_memory : done;
}

// Each thread always has the same groups, so its sums are the same bits in every run.
template <class S> Status backward(const ChunkLayout* z, const Backward<S>* f) {
  if (!fits(*z)) return too_large;
  bool failed = false;
#pragma omp parallel for schedule(static) num_threads(z->threads) if (z->threads > 1)
  for (Int g = 0; g < z->groups(); g++)
    run_group(*z, g, failed, [&](Int b0, Int n) { backward_group(*z, *f, b0, n); });
  return failed ? out_of_memory : done;
}

// Sizes of `pack` and `products`.
struct MatrixLayout {
  Int matrices, rows, height, width, threads;
};

// Round and pack each of the matrices w [matrices, rows, width]. Packed ones begin
// where they did, in a tensor of the same shape.
void pack(const MatrixLayout& z, const float* w, float* packed) {
#pragma omp parallel for num_threads(z.threads) if (z.threads > 1)
  for (Int l = 0; l < z.matrices; l++)
    for (Int j = 0; j < z.width; j += panel) {
      const Int matrix = l * z.rows * z.width;
      pack_panel(z.rows, z.width, j, w + matrix,
                 reinterpret_cast<BFloat16*>(packed + matrix));
    }
}

// C [matrices, height, width] += A^T B, for A [matrices, rows, height] and B
// [matrices, rows, width]: the gradients of matrices. Threads share the rows of C.
Status products(const MatrixLayout& z, const float* A, const float* B, float* C) {
  bool failed = false;
  const Int pairs = even(z.rows) / 2;
  std::vector<uint32_t> left;
  std::vector<BFloat16> right;
  try {
    left.resize(pairs * z.height), right.resize(2 * pairs * z.width);
  } catch (const std::exception&) {
    return out_of_memory;
  }
  for (Int l = 0; l < z.matrices; l++) {
#pragma omp parallel num_threads(z.threads) if (z.threads > 1)
    {
#pragma omp for
      for (Int j = 0; j < z.width; j += panel)
        pack_panel(z.rows, z.width, j, B + l * z.rows * z.width, right.data());
#pragma omp for
      for (Int i = 0; i < z.height; i += panel) {
        const Int count = std::min(panel, z.height - i);
        uint32_t* rows = left.data() + i * pairs;
        transpose(z.rows, z.height, i, count, A + l * z.rows * z.height, rows);
        try {
          add_packed(count, z.width, z.rows, 0, z.width, rows, right.data(),
                     C + (l * z.height + i) * z.width);
        } catch (const std::exception&) {
#pragma omp atomic write
          failed = true;
        }
      }
    }
  }
  return failed ? out_of_memory : done;
}

// Whether torch multiplies in bfloat16 here, and the processor has instructions for
// it. Without those, oneDNN takes several for one.
bool multiplies_bfloat16() {
#ifdef __AVX512BF16__
  using namespace at::native::cpublas;
  if (!brgemm || !brgemm_release) return false;
  const BFloat16 a[2] = {}, b[2] = {};
  float c = 0;
  try {
    add_packed(1, 1, 2, 0, 1, a, b, &c);
    return true;
  } catch (const std::exception&) {  // oneDNN is turned off
  }
#endif
  return false;
}

}  // namespace

extern "C" {
int forward_float32(const ChunkLayout* z, const Forward<float>* f) {
  return forward(z, f);
}
int forward_float64(const ChunkLayout* z, const Forward<double>* f) {
  return forward(z, f);
}
int backward_float32(const ChunkLayout* z, const Backward<float>* f) {
  return backward(z, f);
}
int backward_float64(const ChunkLayout* z, const Backward<double>* f) {
  return backward(z, f);
}
int pack_float32(const MatrixLayout* z, float* const* f) {
  pack(*z, f[0], f[1]);
  return done;
}
int products_float32(const MatrixLayout* z, float* const* f) {
  return products(*z, f[0], f[1], f[2]);
}
int has_bfloat16() { return multiplies_bfloat16(); }

// For a test: the number of fields that each call reads, in words of 8 bytes.
int64_t layout_fields() { return sizeof(ChunkLayout) / sizeof(Int); }
int64_t forward_fields() { return sizeof(Forward<float>) / sizeof(float*); }
int64_t backward_fields() { return sizeof(Backward<float>) / sizeof(float*); }
}
