// KDA over one sequence's new tokens, in chunks of 64, per head. The chunked delta rule of ops/kda/reference.py:
//
//   R_i = beta_i (v_i - (k_i exp G_i)^T S) - sum_{j<i} beta_i A_ij R_j      A_ij = sum_d k_id k_jd exp(G_id - G_jd)
//   O   = (Q exp G) S + M R                                                 M_ij the same with q_i, j <= i
//   S  <- diag(exp G_C) S + (K exp(G_C - G))^T R
//
// exp(-G) overflows, so A and M are formed in blocks of 16 tokens, with all factors relative to the sum before the block
// at hand: rows exp(G_i - base), columns K_j exp(base - G_j), which move on with each block. Exponents are at most 0 but
// for a block's own columns; where a block decays too far for those, its pairs are formed one by one. What the columns
// are after the last block is what the state needs.
#pragma once
#include "kda.h"
#include "outer.h"

namespace perilune {
namespace PERILUNE_VARIANT {
namespace {

constexpr int64_t kChunk = 64;
constexpr int64_t kSub = 16;
constexpr float kDeepest = -80.0f;  // exp(80) times 256 products is still a float

// What one head's chunk works with: rows of dim floats, columns [dim, chunk], and chunk x chunk matrices.
struct Chunk {
  float *q, *k, *v, *total, *o, *r, *k_rows, *q_rows, *columns, *kk, *qk, *conv_w, *history;
  float beta[kChunk], decay[kMaxDim];
  static int64_t floats(int64_t dim, int64_t taps) {
    return 9 * kChunk * dim + 2 * kChunk * kChunk + 3 * (2 * taps) * dim;
  }
  Chunk(float* memory, int64_t dim, int64_t taps) {
    float** parts[] = {&q, &k, &v, &total, &o, &r, &k_rows, &q_rows, &columns};
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
  }
}

// Rows and columns of the block first .. last; `from` [dim]: the sum its columns are relative to.
inline void block_factors(const Chunk& c, int64_t first, int64_t last, int64_t dim, const float* base,
                          const float* from) {
  alignas(64) float column[4][kMaxDim];
  for (int64_t i = first; i < first + kSub; i += 4) {
    for (int64_t r = 0; r < 4; r++) {
      const int64_t t = (i + r) * dim;
      for (int64_t d = 0; d < dim; d += kLanes) {
        if (i + r >= last) {
          store(column[r] + d, vf{});
          continue;
        }
        const vf total = load(c.total + t + d), by = vexp(total - load(base + d));
        store(c.k_rows + t + d, load(c.k + t + d) * by);
        store(c.q_rows + t + d, load(c.q + t + d) * by);
        store(column[r] + d, load(c.k + t + d) * vexp(load(from + d) - total));
      }
    }
    for (int64_t d = 0; d < dim; d += 4) {
      u4 x[4];
      for (int64_t r = 0; r < 4; r++) memcpy(&x[r], column[r] + d, 16);
      turn_four(x, c.columns + d * kChunk + i, kChunk);
    }
  }
}

// A and M; rows become k_i exp(G_i) and q_i exp(G_i), columns k_j exp(G_C - G_j), decay exp(G_C).
inline void products(Chunk& c, int64_t n, int64_t dim) {
  alignas(64) float zero[kMaxDim] = {}, across[kMaxDim];
  for (int64_t d = 0; d < dim; d++) c.decay[d] = 1;
  for (int64_t first = 0; first < n; first += kSub) {
    const int64_t last = at_most(first + kSub, n), m = last - first;
    const float *base = first ? c.total + (first - 1) * dim : zero, *end = c.total + (last - 1) * dim;
    float deepest = 0;
    for (int64_t d = 0; d < dim; d++) deepest = end[d] - base[d] < deepest ? end[d] - base[d] : deepest;
    const bool deep = !(deepest > kDeepest);
    block_factors(c, first, last, dim, base, deep ? end : base);
    const int64_t columns = deep ? first : first + kSub;
    for (int64_t d = 0; d < dim; d += kLanes) store(across + d, vexp(load(end + d) - load(base + d)));
    outer(by_rows(c.k_rows + first * dim, dim), m, c.columns, kChunk, dim, columns, c.kk + first * kChunk, kChunk, false);
    outer(by_rows(c.q_rows + first * dim, dim), m, c.columns, kChunk, dim, columns, c.qk + first * kChunk, kChunk, false);
    if (deep) pairs(c, first, last, dim);
    for (int64_t i = first; i < last; i++)
      for (int64_t j = i + 1; j < last; j++) c.qk[i * kChunk + j] = 0;
    for (int64_t i = first; i < last; i++)
      for (int64_t d = 0; d < dim; d += kLanes) {
        store(c.k_rows + i * dim + d, load(c.k_rows + i * dim + d) * load(c.decay + d));
        store(c.q_rows + i * dim + d, load(c.q_rows + i * dim + d) * load(c.decay + d));
      }
    for (int64_t d = 0; d < dim; d++) {
      scale(c.columns + d * kChunk, columns, across[d]);
      c.decay[d] *= across[d];
    }
  }
}

// Solve for R and form O, block by block; c.r holds (k_i exp G_i)^T S, c.o (q_i exp G_i)^T S.
inline void solve(const Chunk& c, int64_t n, int64_t dim) {
  for (int64_t i = 0; i < n; i++) {
    for (int64_t d = 0; d < dim; d += kLanes)
      store(c.r + i * dim + d, c.beta[i] * (load(c.v + i * dim + d) - load(c.r + i * dim + d)));
    for (int64_t j = 0; j < i; j++) c.kk[i * kChunk + j] *= -c.beta[i];
  }
  for (int64_t first = 0; first < n; first += kSub) {
    const int64_t last = at_most(first + kSub, n), m = last - first;
    float* r = c.r + first * dim;
    outer(by_rows(c.kk + first * kChunk, kChunk), m, c.r, dim, first, dim, r, dim, true);
    for (int64_t i = 1; i < m; i++)
      outer(by_rows(c.kk + (first + i) * kChunk + first, kChunk), 1, r, dim, i, dim, r + i * dim, dim, true);
    outer(by_rows(c.qk + first * kChunk, kChunk), m, c.r, dim, last, dim, c.o + first * dim, dim, true);
  }
}

// S <- diag(exp G_C) S + (K exp(G_C - G))^T R.
inline void advance_state(const Chunk& c, float* state, int64_t n, int64_t dim) {
  for (int64_t d = 0; d < dim; d++) scale(state + d * dim, dim, c.decay[d]);
  outer(by_rows(c.columns, kChunk), dim, c.r, dim, n, dim, state, dim, true);
}

inline void prefill_head(const KdaPrefillArgs& a, int64_t head, Chunk& c) {
  const int64_t dim = a.dim;
  float* state = a.state + a.slot * a.state_stride + head * dim * dim;
  load_window(a, head, c);
  for (int64_t first = 0; first < a.tokens; first += kChunk) {
    const int64_t n = at_most(kChunk, a.tokens - first);
    load_chunk(a, head, first, n, c);
    products(c, n, dim);
    outer(by_rows(c.k_rows, dim), n, state, dim, dim, dim, c.r, dim, false);
    outer(by_rows(c.q_rows, dim), n, state, dim, dim, dim, c.o, dim, false);
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
