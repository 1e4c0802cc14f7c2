// One decode token of the KDA layer, everything between its projections, per (sequence, head).
//
//   conv + SiLU, unit q and k, log decay g and beta as in ops/kda/reference.py; then with S' = diag(exp g) S:
//     u = beta (v - S'^T k);  S <- S' + k u^T;  o = S^T q = S'^T q + (q . k) u
// so one pass reads S for both products, and a second, from cache, writes it: memory sees S once each way, which is
// the floor. While both run, the next head's state is fetched, so that memory never waits for arithmetic. Then the
// gated norm.
#pragma once
#include "simd.h"

namespace perilune {
namespace PERILUNE_VARIANT {
namespace {

constexpr int kMaxDim = 256;

struct Head {
  alignas(64) float q[kMaxDim], k[kMaxDim], v[kMaxDim], decay[kMaxDim], read[kMaxDim], o[kMaxDim];
};

// Sum of squares of x, in vectors.
inline float squares(const float* x, int64_t n) {
  vf s{};
  for (int64_t i = 0; i < n; i += kLanes) s += load(x + i) * load(x + i);
  return sum(s);
}

inline void scale(float* x, int64_t n, float by) {
  for (int64_t i = 0; i < n; i += kLanes) store(x + i, load(x + i) * by);
}

// RMSNorm of o, times weight, times sigmoid(gate).
inline void gated_norm(const float* o, const bf16* weight, const bf16* gate, int64_t dim, float eps, bf16* out) {
  const float norm = 1.0f / __builtin_sqrtf(squares(o, dim) / float(dim) + eps);
  for (int64_t d = 0; d < dim; d += kLanes)
    store(out + d, load(o + d) * norm * load(weight + d) * sigmoid(load(gate + d)));
}

// One channel group of the convolution, SiLU, and the window moved on by one token.
inline void convolve(const bf16* x, const bf16* w, bf16* window, int64_t dim, int64_t taps, float* y) {
  const int64_t kept = taps - 1;
  for (int64_t d = 0; d < dim; d++) {
    float s = 0;
    for (int64_t j = 0; j < kept; j++) s += widen(window[d * kept + j]) * widen(w[d * taps + j]);
    y[d] = s + widen(x[d]) * widen(w[d * taps + kept]);
    for (int64_t j = 0; j + 1 < kept; j++) window[d * kept + j] = window[d * kept + j + 1];
    if (kept) window[d * kept + kept - 1] = x[d];
  }
  for (int64_t d = 0; d < dim; d += kLanes) store(y + d, silu(load(y + d)));
}

// Asks for the next head's state bit by bit: half of its bytes during each pass over this one's.
struct Ahead {
  uintptr_t at, end;
  template <int N>
  void fetch() {
    const uintptr_t to = at + N * kLanes * 2;
    for (; at < to; at += 64)
      if (at < end) __builtin_prefetch((const char*)at, 1, 2);
  }
};

// Columns v0 .. v0 + N vectors of the state.
template <int N>
inline void advance(Head& h, float* state, int64_t dim, int64_t v0, float beta, float qk, Ahead& ahead) {
  vf read[N] = {}, o[N] = {};
  for (int64_t d = 0; d < dim; d++) {
    const float* row = state + d * dim + v0;
    const float k = h.k[d] * h.decay[d], q = h.q[d] * h.decay[d];
    ahead.fetch<N>();
    for (int i = 0; i < N; i++) {
      vf s = load(row + i * kLanes);
      read[i] += s * k;
      o[i] += s * q;
    }
  }
  vf u[N];
  for (int i = 0; i < N; i++) {
    u[i] = beta * (load(h.v + v0 + i * kLanes) - read[i]);
    store(h.o + v0 + i * kLanes, o[i] + qk * u[i]);
  }
  for (int64_t d = 0; d < dim; d++) {
    float* row = state + d * dim + v0;
    ahead.fetch<N>();
    for (int i = 0; i < N; i++) store(row + i * kLanes, load(row + i * kLanes) * h.decay[d] + h.k[d] * u[i]);
  }
}

inline float* state_of(const KdaDecodeArgs& a, int64_t item) {
  return a.state + a.slots[item / a.heads] * a.state_stride + item % a.heads * a.dim * a.dim;
}

inline void decode_head(const KdaDecodeArgs& a, int64_t item, Head& h) {
  const int64_t row = a.rows[item / a.heads], slot = a.slots[item / a.heads], head = item % a.heads;
  const int64_t dim = a.dim, heads = a.heads;
  float* qkv[3] = {h.q, h.k, h.v};
  for (int64_t c = 0; c < 3; c++) {
    const int64_t channel = (c * heads + head) * dim;
    convolve(a.raw + row * 3 * heads * dim + channel, a.conv_w + channel * a.taps,
             a.conv + slot * a.conv_stride + channel * (a.taps - 1), dim, a.taps, qkv[c]);
  }
  scale(h.q, dim, 1.0f / __builtin_sqrtf((squares(h.q, dim) + 1e-6f) * float(dim)));
  scale(h.k, dim, 1.0f / __builtin_sqrtf(squares(h.k, dim) + 1e-6f));
  const bf16* f = a.f + (row * heads + head) * dim;
  const float rate = -__builtin_expf(a.a_log[head]);
  vf qk{};
  for (int64_t d = 0; d < dim; d += kLanes) {
    store(h.decay + d, vexp(rate * softplus(load(f + d) + load(a.dt_bias + head * dim + d))));
    qk += load(h.q + d) * load(h.k + d);
  }
  const float beta = 1.0f / (1.0f + __builtin_expf(-widen(a.b[row * heads + head])));
  const float dot = sum(qk);
  float* state = state_of(a, item);
  Ahead ahead{};
  if (item + 1 < a.n * heads) {
    ahead.at = uintptr_t(state_of(a, item + 1));
    ahead.end = ahead.at + uintptr_t(dim * dim * 4);
  }
  constexpr int kWhole = kLanes == 16 ? 8 : 4;  // as many columns as have room in registers
  int64_t v0 = 0;
  for (; v0 + kWhole * kLanes <= dim; v0 += kWhole * kLanes) advance<kWhole>(h, state, dim, v0, beta, dot, ahead);
  for (; v0 < dim; v0 += kLanes) advance<1>(h, state, dim, v0, beta, dot, ahead);

  gated_norm(h.o, a.norm, a.out_gate + (row * heads + head) * dim, dim, a.eps, a.out + item * dim);
}

inline void kda_decode(const KdaDecodeArgs& a) {
#pragma omp parallel for num_threads(a.threads) schedule(static)
  for (int64_t item = 0; item < a.n * a.heads; item++) {
    Head h;
    decode_head(a, item, h);
  }
}

}  // namespace
}  // namespace PERILUNE_VARIANT
}  // namespace perilune
