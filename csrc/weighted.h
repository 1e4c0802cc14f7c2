// Sums of rows: acc[m] += sum_t p[m][t] values[t]. Vectors run along the row; a tile keeps M x 2 of them.
#pragma once
#include "simd.h"

namespace perilune {
namespace PERILUNE_VARIANT {
namespace {

template <int M, int N, class V>
inline void weighted_tile(const float* p, int64_t p_ld, int64_t count, const V* values, int64_t ld, float* acc,
                          int64_t acc_ld) {
  vf s[M][N];
  for (int m = 0; m < M; m++)
    for (int i = 0; i < N; i++) s[m][i] = load(acc + m * acc_ld + i * kLanes);
  for (int64_t t = 0; t < count; t++) {
    vf v[N];
    for (int i = 0; i < N; i++) v[i] = load(values + t * ld + i * kLanes);
    for (int m = 0; m < M; m++)
      for (int i = 0; i < N; i++) s[m][i] += p[m * p_ld + t] * v[i];
  }
  for (int m = 0; m < M; m++)
    for (int i = 0; i < N; i++) store(acc + m * acc_ld + i * kLanes, s[m][i]);
}

template <int M, class V>
inline void weighted_rows(const float* p, int64_t p_ld, int64_t count, const V* values, int64_t ld, float* acc,
                          int64_t acc_ld, int64_t width) {
  int64_t r = 0;
  for (; r + 2 * kLanes <= width; r += 2 * kLanes)
    weighted_tile<M, 2>(p, p_ld, count, values + r, ld, acc + r, acc_ld);
  for (; r + kLanes <= width; r += kLanes) weighted_tile<M, 1>(p, p_ld, count, values + r, ld, acc + r, acc_ld);
  for (; r < width; r++)
    for (int m = 0; m < M; m++)
      for (int64_t t = 0; t < count; t++) acc[m * acc_ld + r] += p[m * p_ld + t] * float_of(values[t * ld + r]);
}

// For m rows: p is p_ld apart, values ld, acc acc_ld. A row's sum runs over t in order whatever m is.
template <class V>
inline void add_weighted(int64_t m, const float* p, int64_t p_ld, int64_t count, const V* values, int64_t ld, float* acc,
                         int64_t acc_ld, int64_t width) {
  int64_t i = 0;
  for (; i + 4 <= m; i += 4) weighted_rows<4>(p + i * p_ld, p_ld, count, values, ld, acc + i * acc_ld, acc_ld, width);
  for (; i < m; i++) weighted_rows<1>(p + i * p_ld, p_ld, count, values, ld, acc + i * acc_ld, acc_ld, width);
}

}  // namespace
}  // namespace PERILUNE_VARIANT
}  // namespace perilune
