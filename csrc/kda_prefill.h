// KDA over one sequence's new tokens, in chunks of 64, per head. The chunked delta rule of ops/kda/reference.py:
//
//   R_i = beta_i (v_i - (k_i exp G_i)^T S) - sum_{j<i} beta_i A_ij R_j      A_ij = sum_d k_id k_jd exp(G_id - G_jd)
//   O   = (Q exp G) S + M R                                                 M_ij the same with q_i, j <= i
//   S  <- diag(exp G_C) S + (K exp(G_C - G))^T R
//
// exp(-G) overflows, so A and M are formed in blocks of 16 tokens: between blocks both factors are taken relative to
// the sum before the later block, inside a block pair by pair. Every exponent is at most 0.
#pragma once
#include "kda.h"
#include "weighted.h"

namespace perilune {
namespace PERILUNE_VARIANT {
namespace {

constexpr int64_t kChunk = 64;
constexpr int64_t kSub = 16;

// What one head's chunk works with: rows of dim floats, and chunk x chunk matrices.
struct Chunk {
  float *q, *k, *v, *total, *o, *r, *rows, *columns, *out_t, *kk, *qk, *conv_w, *history;
  float beta[kChunk], decay[kMaxDim];
  static int64_t floats(int64_t dim, int64_t taps) {
    return 8 * kChunk * dim + dim * kChunk + 2 * kChunk * kChunk + 3 * (2 * taps) * dim;
  }
  Chunk(float* memory, int64_t dim, int64_t taps) {
    float** parts[] = {&q, &k, &v, &total, &o, &r, &rows, &columns, &out_t};
    for (float** part : parts) *part = memory, memory += kChunk * dim;
    kk = memory, memory += kChunk * kChunk;
    qk = memory, memory += kChunk * kChunk;
    conv_w = memory, memory += 3 * taps * dim;
    history = memory;
  }
};

// Convolution weights as [3][taps][dim], and the window as [3][taps - 1][dim]: along channels, for vectors.
inline void load_window(const KdaPrefillArgs& a, int64_t head, Chunk& c) {
  const int64_t dim = a.dim, taps = a.taps, kept = taps - 1;
  for (int64_t p = 0; p < 3; p++)
    for (int64_t d = 0; d < dim; d++) {
      const int64_t channel = (p * a.heads + head) * dim + d;
      for (int64_t j = 0; j < taps; j++) c.conv_w[(p * taps + j) * dim + d] = widen(a.conv_w[channel * taps + j]);
      for (int64_t j = 0; j < kept; j++)
        c.history[(p * kept + j) * dim + d] = widen(a.conv[a.slot * a.conv_stride + channel * kept + j]);
    }
}

// The window after `tokens` tokens, into slot `to`.
inline void store_window(const KdaPrefillArgs& a, int64_t head, int64_t tokens, int64_t to, const Chunk& c) {
  const int64_t dim = a.dim, kept = a.taps - 1;
  for (int64_t p = 0; p < 3; p++)
    for (int64_t d = 0; d < dim; d++) {
      const int64_t channel = (p * a.heads + head) * dim + d;
      for (int64_t j = 0; j < kept; j++) {
        const int64_t t = tokens - kept + j;  // before the first new token: still in the old window
        a.conv[to * a.conv_stride + channel * kept + j] =
            t >= 0 ? a.raw[t * 3 * a.heads * dim + channel] : narrow(c.history[(p * kept + kept + t) * dim + d]);
      }
    }
}

// Fill q, k, v, running decay and beta of tokens first .. first + n.
inline void load_chunk(const KdaPrefillArgs& a, int64_t head, int64_t first, int64_t n, Chunk& c) {
  const int64_t dim = a.dim, taps = a.taps, kept = taps - 1, row = 3 * a.heads * dim;
  const float rate = -__builtin_expf(a.a_log[head]);
  float* into[3] = {c.q, c.k, c.v};
  for (int64_t i = 0; i < n; i++) {
    const int64_t t = first + i;
    for (int64_t p = 0; p < 3; p++)
      for (int64_t d = 0; d < dim; d += kLanes) {
        vf y{};
        for (int64_t j = 0; j < taps; j++) {
          const int64_t from = t - kept + j;
          const vf x = from >= 0 ? load(a.raw + from * row + (p * a.heads + head) * dim + d)
                                 : load(c.history + (p * kept + kept + from) * dim + d);
          y += x * load(c.conv_w + (p * taps + j) * dim + d);
        }
        store(into[p] + i * dim + d, silu(y));
      }
    scale(c.q + i * dim, dim, 1.0f / __builtin_sqrtf((squares(c.q + i * dim, dim) + 1e-6f) * float(dim)));
    scale(c.k + i * dim, dim, 1.0f / __builtin_sqrtf(squares(c.k + i * dim, dim) + 1e-6f));
    const bf16* f = a.f + (t * a.heads + head) * dim;
    for (int64_t d = 0; d < dim; d += kLanes) {
      const vf g = rate * softplus(load(f + d) + load(a.dt_bias + head * dim + d));
      store(c.total + i * dim + d, i ? load(c.total + (i - 1) * dim + d) + g : g);
    }
    c.beta[i] = 1.0f / (1.0f + __builtin_expf(-widen(a.b[t * a.heads + head])));
  }
}

inline float dot_rows(const float* x, const float* y, int64_t dim) {
  vf s{};
  for (int64_t d = 0; d < dim; d += kLanes) s += load(x + d) * load(y + d);
  return sum(s);
}

// The pairs inside one block of 16: kk strictly below the diagonal, qk with it.
inline void pairs(const Chunk& c, int64_t first, int64_t last, int64_t dim) {
  for (int64_t i = first; i < last; i++) {
    for (int64_t j = first; j < i; j++) {
      vf kk{}, qk{};
      for (int64_t d = 0; d < dim; d += kLanes) {
        const vf k = load(c.k + j * dim + d) * vexp(load(c.total + i * dim + d) - load(c.total + j * dim + d));
        kk += k * load(c.k + i * dim + d);
        qk += k * load(c.q + i * dim + d);
      }
      c.kk[i * kChunk + j] = sum(kk);
      c.qk[i * kChunk + j] = sum(qk);
    }
    c.qk[i * kChunk + i] = dot_rows(c.q + i * dim, c.k + i * dim, dim);
    for (int64_t j = i + 1; j < last; j++) c.qk[i * kChunk + j] = 0;
  }
}

// One block of 16 against everything before it.
inline void rectangle(const Chunk& c, int64_t first, int64_t last, int64_t dim) {
  const float* base = c.total + (first - 1) * dim;
  for (int64_t j = 0; j < first; j++)
    for (int64_t d = 0; d < dim; d += kLanes)
      store(c.columns + j * dim + d, load(c.k + j * dim + d) * vexp(load(base + d) - load(c.total + j * dim + d)));
  for (int64_t i = first; i < last; i++) {
    float *k = c.rows, *q = c.rows + dim;
    for (int64_t d = 0; d < dim; d += kLanes) {
      const vf by = vexp(load(c.total + i * dim + d) - load(base + d));
      store(k + d, load(c.k + i * dim + d) * by);
      store(q + d, load(c.q + i * dim + d) * by);
    }
    for (int64_t j = 0; j < first; j++) {
      c.kk[i * kChunk + j] = dot_rows(k, c.columns + j * dim, dim);
      c.qk[i * kChunk + j] = dot_rows(q, c.columns + j * dim, dim);
    }
  }
}

// x [n, dim] times exp G, into c.rows.
inline const float* decayed(const Chunk& c, const float* x, int64_t n, int64_t dim) {
  for (int64_t i = 0; i < n * dim; i += kLanes) store(c.rows + i, load(x + i) * vexp(load(c.total + i)));
  return c.rows;
}

// Solve for R and form O, block by block.
inline void solve(const Chunk& c, int64_t n, int64_t dim) {
  for (int64_t i = 0; i < n; i++)  // c.r holds (k_i exp G_i)^T S
    for (int64_t d = 0; d < dim; d += kLanes)
      store(c.r + i * dim + d, c.beta[i] * (load(c.v + i * dim + d) - load(c.r + i * dim + d)));
  for (int64_t i = 0; i < n; i++)
    for (int64_t j = 0; j < i; j++) c.kk[i * kChunk + j] *= -c.beta[i];
  for (int64_t first = 0; first < n; first += kSub) {
    const int64_t last = at_most(first + kSub, n);
    const float* kk = c.kk + first * kChunk;
    add_weighted(last - first, kk, kChunk, first, c.r, dim, c.r + first * dim, dim, dim);
    for (int64_t i = first + 1; i < last; i++)
      add_weighted(1, c.kk + i * kChunk + first, kChunk, i - first, c.r + first * dim, dim, c.r + i * dim, dim, dim);
    add_weighted(last - first, c.qk + first * kChunk, kChunk, last, c.r, dim, c.o + first * dim, dim, dim);
  }
}

// S <- diag(exp G_C) S + (K exp(G_C - G))^T R.
inline void advance_state(Chunk& c, float* state, int64_t n, int64_t dim) {
  const float* end = c.total + (n - 1) * dim;
  for (int64_t d = 0; d < dim; d += kLanes) store(c.decay + d, vexp(load(end + d)));
  for (int64_t i = 0; i < n; i++)
    for (int64_t d = 0; d < dim; d += kLanes) {
      const vf k = load(c.k + i * dim + d) * vexp(load(end + d) - load(c.total + i * dim + d));
      for (int64_t l = 0; l < kLanes; l++) c.out_t[(d + l) * kChunk + i] = k[l];
    }
  for (int64_t d = 0; d < dim; d++) scale(state + d * dim, dim, c.decay[d]);
  add_weighted(dim, c.out_t, kChunk, n, c.r, dim, state, dim, dim);
}

inline void prefill_head(const KdaPrefillArgs& a, int64_t head, Chunk& c) {
  const int64_t dim = a.dim;
  float* state = a.state + a.slot * a.state_stride + head * dim * dim;
  load_window(a, head, c);
  for (int64_t first = 0; first < a.tokens; first += kChunk) {
    const int64_t n = at_most(kChunk, a.tokens - first);
    load_chunk(a, head, first, n, c);
    for (int64_t i = 0; i < n; i += kSub) {
      pairs(c, i, at_most(i + kSub, n), dim);
      if (i) rectangle(c, i, at_most(i + kSub, n), dim);
    }
    memset(c.r, 0, size_t(n * dim) * sizeof(float));
    memset(c.o, 0, size_t(n * dim) * sizeof(float));
    add_weighted(n, decayed(c, c.k, n, dim), dim, dim, state, dim, c.r, dim, dim);
    add_weighted(n, decayed(c, c.q, n, dim), dim, dim, state, dim, c.o, dim, dim);
    solve(c, n, dim);
    advance_state(c, state, n, dim);
    for (int64_t i = 0; i < a.exports; i++)
      if (a.export_after[i] == first + n) {
        const int64_t to = a.export_to[i];
        memcpy(a.state + to * a.state_stride + head * dim * dim, state, size_t(dim * dim) * sizeof(float));
        store_window(a, head, first + n, to, c);
      }
    for (int64_t i = 0; i < n; i++) {
      const int64_t at = ((first + i) * a.heads + head) * dim;
      gated_norm(c.o + i * dim, a.norm, a.out_gate + at, dim, a.eps, a.out + at);
    }
  }
  store_window(a, head, a.tokens, a.slot, c);
}

inline void kda_prefill(const KdaPrefillArgs& a) {
#pragma omp parallel num_threads(a.threads)
  {
    Buffer<float> memory(Chunk::floats(a.dim, a.taps));
    Chunk chunk(memory, a.dim, a.taps);
#pragma omp for schedule(dynamic, 1)
    for (int64_t head = 0; head < a.heads; head++) prefill_head(a, head, chunk);
  }
}

}  // namespace
}  // namespace PERILUNE_VARIANT
}  // namespace perilune
