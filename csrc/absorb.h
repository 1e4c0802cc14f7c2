// kv_b beside latent attention: W_UK^T times a query before it, W_UV times the latent sums behind it, for a few rows.
//
// Floor: the bytes of kv_b. Weights are unpacked in registers and used for every row; fp32 everywhere but in the path for
// int4 on processors that multiply bf16, whose operands are codes, exact in bf16, and inputs rounded to it.
#pragma once
#include "dots.h"
#include "pairs.h"

namespace perilune {
namespace PERILUNE_VARIANT {
namespace {

template <int N>
struct Count {
  static constexpr int value = N;
};

// f(first row, Count) over n rows, at most kMost at a time.
template <int kMost, class F>
inline void few_at_once(int64_t n, F&& f) {
  int64_t i = 0;
  if constexpr (kMost >= 8)
    for (; i + 8 <= n; i += 8) f(i, Count<8>());
  if constexpr (kMost >= 4)
    for (; i + 4 <= n; i += 4) f(i, Count<4>());
  for (; i + 2 <= n; i += 2) f(i, Count<2>());
  if (i < n) f(i, Count<1>());
}
constexpr int kRowsAtOnce = kLanes == 16 ? 8 : 2;  // as many as have room in registers

// acc [M, ld] += rows n0 .. n0 + count of w, each times x[m * x_ld + its number]: w transposed times x.
template <int M, class Rows>
inline void add_rows(const Rows w, int64_t n0, int64_t count, const float* x, int64_t x_ld, float* acc, int64_t ld) {
  for (int64_t first = 0; first < count; first += kTall) {
    for (int64_t n = first + kTall; n < at_most(first + 2 * kTall, count); n++) w.fetch_row(n0 + n);
    for (int64_t at = 0; at < w.k; at += 32) {
      vf sum[M][kUnpacked], value[kUnpacked];
      for (int m = 0; m < M; m++)
        for (int i = 0; i < kUnpacked; i++) sum[m][i] = load(acc + m * ld + at + i * kLanes);
      for (int64_t n = first; n < at_most(first + kTall, count); n++) {
        w.values(n0 + n, at, value);
        for (int m = 0; m < M; m++)
          for (int i = 0; i < kUnpacked; i++) sum[m][i] = fused(value[i], splat(x[m * x_ld + n]), sum[m][i]);
      }
      for (int m = 0; m < M; m++)
        for (int i = 0; i < kUnpacked; i++) store(acc + m * ld + at + i * kLanes, sum[m][i]);
    }
  }
}

// out[m * out_ld + n] = row n0 + n of w times x [M rows, x_ld apart, zeros behind w.k].
template <int M, class Rows>
inline void times_rows(const Rows w, int64_t n0, int64_t count, const float* x, int64_t x_ld, float* out, int64_t out_ld) {
  for (int64_t n = 0; n < count; n++) {
    if (n + kTall < count) w.fetch_row(n0 + n + kTall);
    vf total[M][kUnpacked] = {}, value[kUnpacked];
    for (int64_t at = 0; at < w.k; at += 32) {
      w.values(n0 + n, at, value);
      for (int m = 0; m < M; m++)
        for (int i = 0; i < kUnpacked; i++)
          total[m][i] = fused(value[i], load(x + m * x_ld + at + i * kLanes), total[m][i]);
    }
    for (int m = 0; m < M; m++) {
      for (int i = 1; i < kUnpacked; i++) total[m][0] += total[m][i];
      out[m * out_ld + n] = sum(total[m][0]);
    }
  }
}

// q~ = [W_UK^T q_nope, q_pe] of one head for every row, as Elem rows: the first part.
template <class Rows>
inline void absorb_latents(const MlaDecodeArgs& a, int64_t h, const Rows& w, Elem* q, int64_t ld) {
  const int64_t qk = a.nope + a.rope, sum_ld = padded(a.rank);
  Buffer<float> x(a.n * a.nope), acc(a.n * sum_ld);
  memset(acc.p, 0, size_t(a.n * sum_ld) * sizeof(float));
  for (int64_t i = 0; i < a.n; i++) widen_to(a.q + (i * a.heads + h) * qk, a.nope, x + i * a.nope);
  few_at_once<kRowsAtOnce>(a.n, [&](int64_t i, auto m) {
    add_rows<decltype(m)::value>(w, h * (a.nope + a.v_dim), a.nope, x + i * a.nope, a.nope, acc + i * sum_ld, sum_ld);
  });
  for (int64_t i = 0; i < a.n; i++) to_elem(acc + i * sum_ld, a.rank, q + (i * a.heads + h) * ld);
}

// out [n, v] = W_UV of one head times its latent sums, x [n, ld].
template <class Rows>
inline void expand_head(const MlaDecodeArgs& a, int64_t h, const Rows& w, const float* x, int64_t ld, float* out) {
  few_at_once<kRowsAtOnce>(a.n, [&](int64_t i, auto m) {
    times_rows<decltype(m)::value>(w, h * (a.nope + a.v_dim) + a.nope, a.v_dim, x + i * ld, ld, out + i * a.v_dim, a.v_dim);
  });
}

#if defined(__AVX512BF16__)
inline void absorb_latents(const MlaDecodeArgs& a, int64_t h, const PairRows& w, Elem* q, int64_t ld) {
  const int64_t qk = a.nope + a.rope;
  Buffer<float> sums(2 * a.rank);
  few_at_once<2>(a.n, [&](int64_t first, auto m) {
    constexpr int M = decltype(m)::value;
    across_rows<M>(w, h * (a.nope + a.v_dim), a.nope, a.q + (first * a.heads + h) * qk, a.heads * qk, sums);
    for (int64_t i = 0; i < M; i++) take_sums(sums + i * a.rank, a.rank, q + ((first + i) * a.heads + h) * ld);
  });
}

inline void expand_head(const MlaDecodeArgs& a, int64_t h, const PairRows& w, const float* x, int64_t ld, float* out) {
  Buffer<Elem> pairs(a.n * a.rank);
  for (int64_t i = 0; i < a.n; i++) pair_inputs(x + i * ld, a.rank, pairs + i * a.rank);
  few_at_once<8>(a.n, [&](int64_t i, auto m) {
    along_rows<decltype(m)::value>(w, h * (a.nope + a.v_dim) + a.nope, a.v_dim, pairs + i * a.rank, out + i * a.v_dim, a.v_dim);
  });
}
#endif

// f(rows) with the reader of kv_b.
template <class F>
inline void with_kv_b(const MlaDecodeArgs& a, F&& f) {
#if defined(__AVX512BF16__)
  if (PairRows::reads(a.kv_b) && a.nope % 2 == 0) return f(PairRows(a.kv_b));
#endif
  with_rows(a.kv_b, 0, f);
}

inline void absorb_head(const MlaDecodeArgs& a, int64_t h, Elem* q, int64_t ld) {
  with_kv_b(a, [&](const auto& w) { absorb_latents(a, h, w, q, ld); });
  for (int64_t i = 0; i < a.n; i++) {
    Elem* to = q + (i * a.heads + h) * ld + a.rank;
    to_elem(a.q + (i * a.heads + h) * (a.nope + a.rope) + a.nope, a.rope, to);
    memset(to + a.rope, 0, size_t(ld - a.rank - a.rope) * sizeof(Elem));
  }
}

}  // namespace
}  // namespace PERILUNE_VARIANT
}  // namespace perilune
