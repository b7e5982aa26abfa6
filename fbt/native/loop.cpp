// The steps of one chunk in C++: `Forward.steps` and `Backward.steps` of fbt/sequence, without a call per operation.
//
// Symbols and layouts are those of fbt/sequence/parts.py; the equations stand in fbt/sequence/__init__.py. The fields
// of the structs below are pointers in the order in which fbt/sequence/native.py passes them.
//
// The batch is cut into groups of sequences. A thread takes a group through all steps and layers of the chunk: groups
// share nothing but weights, so threads meet only at the chunk's end. Where a batch is smaller than the number of
// threads, a group's forward pass shares its products and heads among several. Matrix products go to the BLAS inside
// torch, everything else is in this file. What limits it where d is small is not arithmetic: each layer of each step
// reads all keys and values, which no cache near a core holds.

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
void sgemm_(const char*, const char*, const int*, const int*, const int*, const float*, const float*, const int*,
            const float*, const int*, const float*, float*, const int*);
void dgemm_(const char*, const char*, const int*, const int*, const int*, const double*, const double*, const int*,
            const double*, const int*, const double*, double*, const int*);
}

namespace {

using Int = int64_t;

struct Sizes {
  Int T, B, H, D, L, F;      // steps, sequences, heads, head width, layers, feed-forward width
  Int R;                     // rows of the relative tables
  Int room;                  // keys the buffers have room for
  Int past, span;            // keys carried in; how many keys a step sees
  Int norm_memory, gelu;     // options, 0 or 1
  Int first, stop;           // the chunk's steps
  Int low, width;            // the chunk's oldest key, and how many it keeps scores for
  Int group;                 // sequences per group
  Int threads;
  Int d() const { return H * D; }
  Int groups() const { return (B + group - 1) / group; }
  Int steps() const { return stop - first; }
  Int oldest(Int t) const { return std::max<Int>(0, past + t - span); }
  Int at(Int t, Int l, Int b) const { return (l * steps() + t - first) * B + b; }     // in [L, m, B]
  Int row(Int hb, Int t, Int l) const { return (hb * steps() + t - first) * L + l; }  // in [HB, m L]
};

template <class S> struct Weights {  // matrices lie as [in, out] in forward, as [out, in] in backward
  const S *w_q, *b_q, *u, *table, *s, *w_o, *b_o, *w_1, *b_1, *w_2, *b_2, *mix, *w_kv, *b_kv;
};

template <class S> struct Chunk {
  S *q, *o, *y, *a, *p, *noise, *drops;
};

template <class S> struct ChunkGradients {
  S *p, *with_u, *scores, *attended, *f, *y, *q, *a, *kv, *m;
};

template <class S> struct Forward {
  Weights<S> w;
  S *x, *m, *keys, *values;  // keys and values [HB, room, D]
  Chunk<S> chunk;
};

template <class S> struct Backward {
  Weights<S> w;
  const S *x, *m, *keys, *values;
  Chunk<S> chunk;
  ChunkGradients<S> grads;
  S *in_2, *in_1, *in_q;  // what W_2, W_1 and W_q multiplied in the chunk; with a ReLU in_2 is a
  const S* d_top;
  S *d_keys, *d_values, *d_x;
  S *d_b_2, *d_b_1, *d_b_o, *d_b_q;  // [threads, L, d], that of b_1 [threads, L, F]
  S *d_table, *d_s;  // [threads, L, H, R, D] and [threads, L, H, R], or null where nobody wants them
};

// What a call returns. An exception must leave neither a parallel region nor this file:
// it would end the process.
enum Status : int { done, out_of_memory, too_large };

// Small pieces --------------------------------------------------------------------------------------------------------

void blas(char ta, char tb, int m, int n, int k, const float* a, int lda, const float* b, int ldb, float beta, float* c,
          int ldc) {
  const float one = 1;
  sgemm_(&ta, &tb, &m, &n, &k, &one, a, &lda, b, &ldb, &beta, c, &ldc);
}

void blas(char ta, char tb, int m, int n, int k, const double* a, int lda, const double* b, int ldb, double beta,
          double* c, int ldc) {
  const double one = 1;
  dgemm_(&ta, &tb, &m, &n, &k, &one, a, &lda, b, &ldb, &beta, c, &ldc);
}

// Whether all sizes of the products below fit in an int, the integer type of BLAS. The
// largest distance between rows is that in `ask`.
bool fits(const Sizes& z) {
  const Int rows = z.steps() * z.L * std::max<Int>(1, z.width);
  return std::max({2 * z.d(), z.F, z.group, rows}) <= INT_MAX;
}

// C [M, N] = beta C + A [M, K] B [K, N], rows `ld` apart. BLAS counts columns first, hence the swap.
template <class S> void product(Int M, Int N, Int K, const S* A, Int lda, const S* B, Int ldb, S beta, S* C, Int ldc) {
  blas('N', 'N', N, M, K, B, ldb, A, lda, beta, C, ldc);
}

// C [M, N] += A' B for A [K, M], B [K, N].
template <class S> void add_transposed(Int M, Int N, Int K, const S* A, Int lda, const S* B, Int ldb, S* C, Int ldc) {
  blas('N', 'T', N, M, K, B, ldb, A, lda, S(1), C, ldc);
}

// work(i) for every i < count, side by side where a group has several threads.
template <class F> void share(Int threads, Int count, F work) {
  if (threads == 1) {
    for (Int i = 0; i < count; i++) work(i);
  } else {
#pragma omp taskloop num_tasks(threads)
    for (Int i = 0; i < count; i++) work(i);
  }
}

// out [n, N] = bias + in [n, K] w [K, N]. Where w is worth the meeting of threads, each takes some of its columns.
template <class S> void affine(Int threads, Int n, Int K, Int N, const S* in, const S* w, const S* bias, S* out) {
  for (Int b = 0; b < n; b++) std::memcpy(out + b * N, bias, N * sizeof(S));
  const Int parts = K * N < 65536 ? 1 : std::min(threads, N), part = (N + parts - 1) / parts;
  share(parts, (N + part - 1) / part, [&](Int i) {
    product(n, std::min(part, N - i * part), K, in, K, w + i * part, N, S(1), out + i * part, N);
  });
}

// z = n(x), a row of d numbers less their mean, over their standard deviation; returns 1 / the latter.
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

// g += N(dz; x), the gradient of z = n(x), over rows of d numbers; also z.
template <class S> void norm_backward(Int n, Int d, const S* dz, const S* x, S* g, S* z) {
  for (Int b = 0; b < n; b++, dz += d, x += d, g += d, z += d) {
    const S rstd = norm_row(d, x, z);
    S sum = 0, along = 0;
#pragma omp simd reduction(+ : sum, along)
    for (Int i = 0; i < d; i++) sum += dz[i], along += dz[i] * z[i];
    sum /= d, along /= d;
#pragma omp simd
    for (Int i = 0; i < d; i++) g[i] += rstd * (dz[i] - sum - z[i] * along);
  }
}

// exp for arguments <= 0 and NaN, in a form that compilers turn into vector code: 2^n
// times a polynomial on [-ln 2 / 2, ln 2 / 2]. What would be subnormal is 0. No integer n
// can be computed from a NaN: n is then that of -87, and r is NaN.
inline float exponential(float given) {
  const float x = given > -87.0f ? given : -87.0f;
  const float n = std::nearbyint(x * 1.44269504f);
  const float r = given - n * 0.693359375f + n * 2.12194440e-4f;
  float y = 1.98756915e-4f;
  for (float c : {1.39819995e-3f, 8.33345190e-3f, 4.16657959e-2f, 1.66666655e-1f, 0.5f}) y = y * r + c;
  const uint32_t bits = static_cast<uint32_t>(static_cast<int32_t>(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return given < -87.0f ? 0.0f : (y * r * r + r + 1) * power;
}
inline double exponential(double x) { return std::exp(x); }

// The normal distribution: Phi(a) from bell = e^(-a^2 / 2). For float by 7.1.26 of Abramowitz and Stegun, to 1e-7.
inline float cumulative(float a, float bell) {
  const float t = 1 / (1 + 0.3275911f * 0.70710678f * std::fabs(a));
  float y = 1.061405429f;
  for (float c : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f}) y = y * t + c;
  const float tail = 0.5f * y * t * bell;
  return a > 0 ? 1 - tail : tail;
}
inline double cumulative(double a, double) { return 0.5 * std::erfc(-a * 0.70710678118654752); }

template <class S> void gelu(Int n, const S* a, S* out) {
#pragma omp simd
  for (Int i = 0; i < n; i++) out[i] = a[i] * cumulative(a[i], exponential(S(-0.5) * a[i] * a[i]));
}

// g *= gelu'(a); also out = gelu(a).
template <class S> void gelu_backward(Int n, const S* a, S* g, S* out) {
#pragma omp simd
  for (Int i = 0; i < n; i++) {
    const S bell = exponential(S(-0.5) * a[i] * a[i]), phi = cumulative(a[i], bell);
    out[i] = a[i] * phi, g[i] *= phi + a[i] * bell * S(0.39894228040143268);
  }
}

template <class S> void relu(Int n, S* a) {
  for (Int i = 0; i < n; i++) a[i] = a[i] < 0 ? 0 : a[i];  // NaN stays NaN
}

template <class S> void relu_backward(Int n, const S* a, S* g) {
  for (Int i = 0; i < n; i++) g[i] = a[i] <= 0 ? 0 : g[i];  // as torch where a is NaN
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

// As many numbers as a register of the processor holds, at any address.
template <class S> struct Vector {
#ifdef __AVX512F__
  static constexpr Int bytes = 64;
#else
  static constexpr Int bytes = 32;
#endif
  static constexpr Int size = bytes / sizeof(S);
  typedef S type __attribute__((vector_size(bytes), aligned(sizeof(S)), may_alias));
  typedef std::conditional_t<sizeof(S) == 4, int32_t, int64_t> Index __attribute__((vector_size(bytes)));
};

// Of a and b, in which every row of a matrix has N lanes: the rows of both in turn, each folded to N / 2 lanes.
template <class S, Int N, size_t... K>
typename Vector<S>::type fold_pair(typename Vector<S>::type a, typename Vector<S>::type b, std::index_sequence<K...>) {
  constexpr Int W = Vector<S>::size;
  constexpr auto lane = [](Int k) { return k / (N / 2) % 2 * W + k / N * N + k % (N / 2); };
#ifdef __clang__
  return __builtin_shufflevector(a, b, lane(K)...) + __builtin_shufflevector(a, b, lane(K) + N / 2 ...);
#else
  using Index = typename Vector<S>::Index;
  return __builtin_shuffle(a, b, Index{lane(K)...}) + __builtin_shuffle(a, b, Index{lane(K) + N / 2 ...});
#endif
}

// Lane k of the result is the sum over the lanes of rows[k].
template <class S, Int N = Vector<S>::size> typename Vector<S>::type fold(typename Vector<S>::type* rows) {
  if constexpr (N == 1) {
    return rows[0];
  } else {
#pragma GCC unroll 8
    for (Int i = 0; i < N / 2; i++)
      rows[i] = fold_pair<S, N>(rows[i], rows[i + N / 2], std::make_index_sequence<Vector<S>::size>());
    return fold<S, N / 2>(rows);
  }
}

// One query against n keys with D = N vectors each: out[j] = q . keys[j] (+ r . table[j] + bias[j], where there is a
// table). The tables are those of relative positions, of which the last n rows belong to the n keys.
template <class S, Int N>
void score_vectors(Int n, const S* q, const S* keys, const S* r, const S* table, const S* bias, S* out) {
  using V = typename Vector<S>::type;
  constexpr Int W = Vector<S>::size;
  const V *query = reinterpret_cast<const V*>(q), *key = reinterpret_cast<const V*>(keys);
  const V *relative = reinterpret_cast<const V*>(r), *row = reinterpret_cast<const V*>(table);
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
    const V sum = fold<S>(sums);
    *reinterpret_cast<V*>(out + j) = table ? sum + *reinterpret_cast<const V*>(bias + j) : sum;
  }
  if (j == n) return;
  for (Int k = 0; k < W; k++) sums[k] = j + k < n ? dot(j + k) : V{};
  const V sum = fold<S>(sums);
  for (Int k = 0; j + k < n; k++) out[j + k] = table ? sum[k] + bias[j + k] : sum[k];
}

// out = sum_j p[j * step] (values[j] (+ table[j], where there is one)) over n rows with D = N vectors each.
template <class S, Int N>
void mix_vectors(Int n, const S* p, Int step, const S* values, const S* table, S* out) {
  using V = typename Vector<S>::type;
  constexpr Int U = N <= 2 ? 4 : 2;  // several sums at once hide the latency of an addition
  const V *value = reinterpret_cast<const V*>(values), *row = reinterpret_cast<const V*>(table);
  V sum[U][N] = {};
  auto add = [&](Int k, Int j) {
    const S scale = p[j * step];
    for (Int i = 0; i < N; i++) sum[k][i] += scale * (table ? value[j * N + i] + row[j * N + i] : value[j * N + i]);
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
template <class S>
void score(Int D, Int n, const S* q, const S* keys, const S* r, const S* table, const S* bias, S* out) {
  constexpr Int W = Vector<S>::size;
  if (D == W) return score_vectors<S, 1>(n, q, keys, r, table, bias, out);
  if (D == 2 * W) return score_vectors<S, 2>(n, q, keys, r, table, bias, out);
  if (D == 4 * W) return score_vectors<S, 4>(n, q, keys, r, table, bias, out);
  if (D == 8 * W) return score_vectors<S, 8>(n, q, keys, r, table, bias, out);
  for (Int j = 0; j < n; j++) {
    S sum = table ? bias[j] : 0;
    for (Int c = 0; c < D; c++) sum += q[c] * keys[j * D + c] + (table ? r[c] * table[j * D + c] : 0);
    out[j] = sum;
  }
}

// `mix_vectors` for any D.
template <class S> void mix(Int D, Int n, const S* p, Int step, const S* values, const S* table, S* out) {
  constexpr Int W = Vector<S>::size;
  if (D == W) return mix_vectors<S, 1>(n, p, step, values, table, out);
  if (D == 2 * W) return mix_vectors<S, 2>(n, p, step, values, table, out);
  if (D == 4 * W) return mix_vectors<S, 4>(n, p, step, values, table, out);
  if (D == 8 * W) return mix_vectors<S, 8>(n, p, step, values, table, out);
  std::fill(out, out + D, S(0));
  for (Int j = 0; j < n; j++)
    for (Int c = 0; c < D; c++) out[c] += p[j * step] * (values[j * D + c] + (table ? table[j * D + c] : 0));
}

template <class S> S dot(Int n, const S* x, const S* y) {
  S sum = 0;
#pragma omp simd reduction(+ : sum)
  for (Int i = 0; i < n; i++) sum += x[i] * y[i];
  return sum;
}

// A softmax over some of the keys: where their scores s stood stands e^(s - top), and `sum` is the sum of these.
template <class S> struct Part {
  S top = -std::numeric_limits<S>::infinity(), sum = 0;
};

template <class S> Part<S> exponentials(Int n, S* s) {
  S top = Part<S>().top, sum = 0;
#pragma omp simd reduction(max : top)
  for (Int j = 0; j < n; j++) top = s[j] > top ? s[j] : top;
  const S from = top > Part<S>().top ? top : 0;  // keys that are all hidden by biases of -inf weigh nothing
#pragma omp simd
  for (Int j = 0; j < n; j++) s[j] = exponential(s[j] - from);
#pragma omp simd reduction(+ : sum)
  for (Int j = 0; j < n; j++) sum += s[j];
  return {top, sum};
}

// Forward -------------------------------------------------------------------------------------------------------------

// Head h of sequence b at step t, layer l, and its keys [from, to): the exponentials of their scores, in the place of
// the attention weights, and o, the values mixed by them. `scratch` has room for D + to - from numbers.
template <class S>
Part<S> read(const Sizes& z, const Forward<S>& f, Int t, Int l, Int h, Int b, Int from, Int to, S* o, S* scratch) {
  const Int count = to - from, lh = l * z.H + h, hb = h * z.B + b, newest = lh * z.R + z.R - (z.past + t - from);
  const Int place = z.row(hb, t, l) * z.width + from - z.low, memory = (hb * z.room + from) * z.D;
  const S *q = f.chunk.q + z.at(t, l, b) * z.d() + h * z.D, *none = nullptr;
  S *p = f.chunk.p + place, *with_u = scratch, *dropped = scratch + z.D;
  for (Int c = 0; c < z.D; c++) with_u[c] = q[c] + f.w.u[lh * z.D + c];
  score(z.D, count, with_u, f.keys + memory, q, f.w.table + newest * z.D, f.w.s + newest, p);
  const Part<S> part = exponentials(count, p);
  if (f.chunk.noise) {
    for (Int j = 0; j < count; j++) dropped[j] = p[j] * f.chunk.noise[place + j];
    p = dropped;
  }
  mix(z.D, count, p, 1, f.values + memory, none, o);
  return part;
}

// The first layer's queries are known before the steps: a key older than the chunk is read for all its steps at once.
template <class S>
void read_ahead(const Sizes& z, const Forward<S>& f, Int h, Int b0, Int n, Part<S>* ahead, S* scratch) {
  ahead += h * n * z.steps();
  for (Int b = b0; b < b0 + n; b++)
    for (Int t = z.first; t < z.stop; t++) {
      const Int to = z.past + z.first, from = std::min(z.oldest(t), to);
      S* o = f.chunk.o + z.at(t, 0, b) * z.d() + h * z.D;
      *ahead++ = read(z, f, t, 0, h, b, from, to, o, scratch);
    }
}

// Step t, layer l, head h of the sequences b0 to b0 + n: attention weights and attended values.
template <class S>
void attend(const Sizes& z, const Forward<S>& f, Int t, Int l, Int h, Int b0, Int n, const Part<S>* ahead, S* scratch) {
  const Int low = z.oldest(t), to = z.past + t, from = l ? low : std::max(low, z.past + z.first);
  for (Int b = 0; b < n; b++) {
    S *p = f.chunk.p + z.row(h * z.B + b0 + b, t, l) * z.width - z.low;
    S *o = f.chunk.o + z.at(t, l, b0 + b) * z.d() + h * z.D, *now = l ? o : scratch;
    const Part<S> part = read(z, f, t, l, h, b0 + b, from, to, now, scratch + z.D);
    S old = 0, fresh = 1 / part.sum;
    if (l == 0) {  // one softmax from its two parts
      const Part<S> before = ahead[(h * n + b) * z.steps() + t - z.first];
      const S top = std::max(before.top, part.top);
      old = exponential(before.top - top), fresh = exponential(part.top - top);
      const S scale = 1 / (old * before.sum + fresh * part.sum);
      old *= scale, fresh *= scale;
      for (Int j = low; j < from; j++) p[j] *= old;
    }
    for (Int j = from; j < to; j++) p[j] *= fresh;
    for (Int c = 0; c < z.D; c++) o[c] = (l ? 0 : old * o[c]) + fresh * now[c];
  }
}

template <class S> void forward_group(const Sizes& z, const Forward<S>& f, Int b0, Int n) {
  const Int d = z.d(), m = z.steps(), wide = std::max(2 * d, z.F);
  const Int threads = std::max<Int>(1, z.threads / z.groups()), room = 2 * z.D + z.width;
  std::vector<S> normed(n * d), inner(n * wide), scratch(z.H * room);
  std::vector<Part<S>> ahead(z.H * n * m);
  share(threads, z.H, [&](Int h) { read_ahead(z, f, h, b0, n, ahead.data(), scratch.data() + h * room); });
  for (Int t = z.first; t < z.stop; t++) {
    const bool reads = z.past + t > 0;  // the first step of all has nothing to read
    for (Int l = 0; l < z.L; l++) {
      const Int at = z.at(t, l, b0);
      S *x = f.x + ((l * z.T + t) * z.B + b0) * d, *out = x + z.T * z.B * d, *y = f.chunk.y + at * d;
      S* a = f.chunk.a + at * z.F;
      const Int next = z.L * m * z.B;  // from one of a layer's two outputs to the other
      if (l > 0) {
        norm(n, d, x, normed.data());
        affine(threads, n, d, d, normed.data(), f.w.w_q + l * d * d, f.w.b_q + l * d, f.chunk.q + at * d);
      }
      if (reads) {
        share(threads, z.H, [&](Int h) {
          attend(z, f, t, l, h, b0, n, ahead.data(), scratch.data() + h * room);
        });
        affine(threads, n, d, d, f.chunk.o + at * d, f.w.w_o + l * d * d, f.w.b_o + l * d, y);
        multiply(n * d, f.chunk.drops ? f.chunk.drops + at * d : nullptr, y);
        add(n * d, S(1), x, y);
      } else {
        std::memcpy(y, x, n * d * sizeof(S));
        std::fill(f.chunk.o + at * d, f.chunk.o + (at + n) * d, S(0));
      }
      norm(n, d, y, normed.data());
      affine(threads, n, d, z.F, normed.data(), f.w.w_1 + l * d * z.F, f.w.b_1 + l * z.F, a);
      z.gelu ? gelu(n * z.F, a, inner.data()) : relu(n * z.F, a);
      affine(threads, n, z.F, d, z.gelu ? inner.data() : a, f.w.w_2 + l * z.F * d, f.w.b_2 + l * d, out);
      multiply(n * d, f.chunk.drops ? f.chunk.drops + (next + at) * d : nullptr, out);
      add(n * d, S(1), y, out);
    }
    S *memory = f.m + (t * z.B + b0) * d, *key_value = inner.data();
    std::fill(memory, memory + n * d, S(0));
    for (Int l = 0; l <= z.L; l++) add(n * d, f.w.mix[l], f.x + ((l * z.T + t) * z.B + b0) * d, memory);
    if (z.norm_memory) {
      norm(n, d, memory, normed.data());
      memory = normed.data();
    }
    affine(threads, n, d, 2 * d, memory, f.w.w_kv, f.w.b_kv, key_value);
    for (Int b = 0; b < n; b++)
      for (Int h = 0; h < z.H; h++) {
        const Int hb = h * z.B + b0 + b, now = z.past + t;
        const S *key = key_value + b * 2 * d + h * z.D, *value = key + d;
        std::memcpy(f.keys + (hb * z.room + now) * z.D, key, z.D * sizeof(S));
        std::memcpy(f.values + (hb * z.room + now) * z.D, value, z.D * sizeof(S));
      }
  }
}

// Backward ------------------------------------------------------------------------------------------------------------

// Head h of sequence b at step t, layer l: the gradients of its scores from `given`, that of the attended values.
template <class S> void answer(const Sizes& z, const Backward<S>& f, Int t, Int l, Int h, Int b, const S* given) {
  const Int low = z.oldest(t), count = z.past + t - low, hb = h * z.B + b;
  const Int place = z.row(hb, t, l) * z.width + low - z.low;
  const S *p = f.chunk.p + place, *none = nullptr;
  S* ds = f.grads.scores + place;
  score(z.D, count, given, f.values + (hb * z.room + low) * z.D, none, none, none, ds);
  if (f.chunk.noise) multiply(count, f.chunk.noise + place, ds);
  // given . o is the same number, rounded otherwise. But where one weight is 1, this leaves 0 and not a rounding error,
  // which large weights would multiply from step to step until it is infinite.
  const S along = dot(count, p, ds);
  for (Int j = 0; j < count; j++) ds[j] = p[j] * (ds[j] - along);
}

// What the scores of step t, layer l, head h of the sequences b0 to b0 + n owe to its queries and to the tables.
template <class S> void ask(const Sizes& z, const Backward<S>& f, Int t, Int l, Int h, Int b0, Int n) {
  const Int low = z.oldest(t), count = z.past + t - low, next = z.steps() * z.L * z.width;
  const Int table = (l * z.H + h) * z.R + z.R - count, at = z.at(t, l, b0) * z.d() + h * z.D;
  const S* ds = f.grads.scores + z.row(h * z.B + b0, t, l) * z.width + low - z.low;
  for (Int b = 0; b < n; b++) {
    const S* keys = f.keys + ((h * z.B + b0 + b) * z.room + low) * z.D;
    mix(z.D, count, ds + b * next, 1, keys, f.w.table + table * z.D, f.grads.q + at + b * z.d());
  }
  if (!f.d_table) return;
  const Int into = omp_get_thread_num() * z.L * z.H * z.R + table;
  add_transposed(count, z.D, n, ds, next, f.chunk.q + at, z.d(), f.d_table + into * z.D, z.D);
  for (Int b = 0; b < n; b++) add(count, S(1), ds + b * next, f.d_s + into);
}

// From d_o, the gradient of the attention's output of step t, layer l, to those of its scores, queries and tables. Of
// the first layer only the scores: nothing in the loop waits for the rest.
template <class S>
void attend_backward(const Sizes& z, const Backward<S>& f, Int t, Int l, Int b0, Int n, const S* d_o) {
  for (Int h = 0; h < z.H; h++) {
    for (Int b = 0; b < n; b++) {
      const Int row = z.row(h * z.B + b0 + b, t, l), at = z.at(t, l, b0 + b) * z.d() + h * z.D;
      const S *given = d_o + b * z.d() + h * z.D, *q = f.chunk.q + at, *u = f.w.u + (l * z.H + h) * z.D;
      S *with_u = f.grads.with_u + row * z.D, *attended = f.grads.attended + row * z.D;
      for (Int c = 0; c < z.D; c++) with_u[c] = q[c] + u[c], attended[c] = given[c];
      answer(z, f, t, l, h, b0 + b, given);
    }
    if (l) ask(z, f, t, l, h, b0, n);
  }
}

// The gradient of the inputs of layer l at step t, from that of its queries, added to g.
template <class S>
void query_backward(const Sizes& z, const Backward<S>& f, Int t, Int l, Int b0, Int n, S* g, S* through) {
  const Int d = z.d(), at = z.at(t, l, b0);
  const S* x = f.x + ((l * z.T + t) * z.B + b0) * d;
  add_rows(n, d, f.grads.q + at * d, f.d_b_q + (omp_get_thread_num() * z.L + l) * d);
  product(n, d, d, f.grads.q + at * d, d, f.w.w_q + l * d * d, d, S(0), through, d);
  norm_backward(n, d, through, x, g, f.in_q + at * d);
}

template <class S> void backward_group(const Sizes& z, const Backward<S>& f, Int b0, Int n) {
  const Int d = z.d(), m = z.steps(), rows = m * z.L, next = z.L * m * z.B;
  const Int reading = std::max(z.first, z.past ? z.first : 1);  // the first step of all has nothing to read
  std::vector<S> g(n * d), through(n * d), scratch(n * d);
  for (Int t = z.stop - 1; t >= z.first; t--) {
    const Int now = z.past + t;
    const bool reads = t >= reading;
    const Int here = (t - z.first) * z.B + b0;
    S *d_kv = f.grads.kv + here * 2 * d, *dm = f.grads.m + here * d;
    for (Int b = 0; b < n; b++)
      for (Int h = 0; h < z.H; h++) {  // later steps of this chunk read this key too
        const Int hb = h * z.B + b0 + b, from = z.row(hb, t + 1, 0), place = from * z.width + now - z.low;
        const Int count = (z.stop - 1 - t) * z.L, owed = (hb * z.room + now) * z.D;
        S *key = d_kv + b * 2 * d + h * z.D, *value = key + d;
        const S* none = nullptr;
        mix(z.D, count, f.grads.scores + place, z.width, f.grads.with_u + from * z.D, none, key);
        mix(z.D, count, f.grads.p + place, z.width, f.grads.attended + from * z.D, none, value);
        add(z.D, S(1), f.d_keys + owed, key);
        add(z.D, S(1), f.d_values + owed, value);
      }
    product(n, d, 2 * d, d_kv, 2 * d, f.w.w_kv, d, S(0), dm, d);
    if (z.norm_memory) {
      std::memcpy(through.data(), dm, n * d * sizeof(S));
      std::fill(dm, dm + n * d, S(0));
      norm_backward(n, d, through.data(), f.m + (t * z.B + b0) * d, dm, scratch.data());
    }
    std::memcpy(g.data(), f.d_top + (t * z.B + b0) * d, n * d * sizeof(S));
    add(n * d, f.w.mix[z.L], dm, g.data());
    for (Int l = z.L - 1; l >= 0; l--) {
      const Int at = z.at(t, l, b0), share = omp_get_thread_num() * z.L + l;
      S *df = f.grads.f + at * d, *da = f.grads.a + at * z.F, *dy = f.grads.y + at * d;
      std::memcpy(df, g.data(), n * d * sizeof(S));
      multiply(n * d, f.chunk.drops ? f.chunk.drops + (next + at) * d : nullptr, df);
      add_rows(n, d, df, f.d_b_2 + share * d);
      product(n, z.F, d, df, d, f.w.w_2 + l * z.F * d, z.F, S(0), da, z.F);
      const S* a = f.chunk.a + at * z.F;
      z.gelu ? gelu_backward(n * z.F, a, da, f.in_2 + at * z.F) : relu_backward(n * z.F, a, da);
      add_rows(n, z.F, da, f.d_b_1 + share * z.F);
      product(n, d, z.F, da, z.F, f.w.w_1 + l * z.F * d, d, S(0), through.data(), d);
      norm_backward(n, d, through.data(), f.chunk.y + at * d, g.data(), f.in_1 + at * d);
      if (reads) {
        std::memcpy(dy, g.data(), n * d * sizeof(S));
        multiply(n * d, f.chunk.drops ? f.chunk.drops + at * d : nullptr, dy);
        add_rows(n, d, dy, f.d_b_o + share * d);
        product(n, d, d, dy, d, f.w.w_o + l * d * d, d, S(0), through.data(), d);
        attend_backward(z, f, t, l, b0, n, through.data());
        if (l) query_backward(z, f, t, l, b0, n, g.data(), through.data());
      } else {
        std::fill(f.in_q + at * d, f.in_q + (at + n) * d, S(0));  // times a gradient that is zero
      }
      add(n * d, f.w.mix[l], dm, g.data());
    }
    std::memcpy(f.d_x + (t * z.B + b0) * d, g.data(), n * d * sizeof(S));
  }
  for (Int h = 0; h < z.H; h++)  // the first layer's queries
    for (Int t = reading; t < z.stop; t++) ask(z, f, t, 0, h, b0, n);
  for (Int t = reading; t < z.stop; t++)
    query_backward(z, f, t, 0, b0, n, f.d_x + (t * z.B + b0) * d, through.data());
  const Int earlier = z.past + z.first - z.low;  // what the chunk owes to keys before it
  for (Int h = 0; earlier && h < z.H; h++)
    for (Int hb = h * z.B + b0; hb < h * z.B + b0 + n; hb++) {
      const Int into = (hb * z.room + z.low) * z.D, from = hb * rows * z.D, place = hb * rows * z.width;
      const S *ds = f.grads.scores + place, *p = f.grads.p + place;
      add_transposed(earlier, z.D, rows, ds, z.width, f.grads.with_u + from, z.D, f.d_keys + into, z.D);
      add_transposed(earlier, z.D, rows, p, z.width, f.grads.attended + from, z.D, f.d_values + into, z.D);
    }
}

// Threads -------------------------------------------------------------------------------------------------------------

// work(first sequence, count) for group g; sets `failed` if memory runs out.
template <class F> void take(const Sizes& z, Int g, bool& failed, F work) {
  try {
    work(g * z.group, std::min(z.group, z.B - g * z.group));
  } catch (const std::exception&) {
#pragma omp atomic write
    failed = true;
  }
}

// A thread that finds no group helps with the products of others.
template <class S> Status forward(const Sizes* z, const Forward<S>* f) {
  if (!fits(*z)) return too_large;
  bool failed = false;
#pragma omp parallel num_threads(z->threads) if (z->threads > 1)
#pragma omp single
#pragma omp taskloop grainsize(1)
  for (Int g = 0; g < z->groups(); g++) take(*z, g, failed, [&](Int b0, Int n) { forward_group(*z, *f, b0, n); });
  return failed ? out_of_memory : done;
}

// Each thread always has the same groups, so that what it adds up is the same to the last bit in every run.
template <class S> Status backward(const Sizes* z, const Backward<S>* f) {
  if (!fits(*z)) return too_large;
  bool failed = false;
#pragma omp parallel for schedule(static) num_threads(z->threads) if (z->threads > 1)
  for (Int g = 0; g < z->groups(); g++) take(*z, g, failed, [&](Int b0, Int n) { backward_group(*z, *f, b0, n); });
  return failed ? out_of_memory : done;
}

}  // namespace

extern "C" {
int forward_float32(const Sizes* sizes, const Forward<float>* tensors) { return forward(sizes, tensors); }
int forward_float64(const Sizes* sizes, const Forward<double>* tensors) { return forward(sizes, tensors); }
int backward_float32(const Sizes* sizes, const Backward<float>* tensors) { return backward(sizes, tensors); }
int backward_float64(const Sizes* sizes, const Backward<double>* tensors) { return backward(sizes, tensors); }
}
