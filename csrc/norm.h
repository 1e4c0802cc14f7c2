// x rsqrt(mean x^2 + eps) in fp32, to bf16, times weight: rounded where the reference rounds. And the sum before it.
#pragma once
#include "simd.h"

namespace perilune {
namespace PERILUNE_VARIANT {
namespace {

inline void norm_row(const bf16* x, const bf16* weight, int64_t dim, float eps, bf16* out) {
  vf squares{};
  int64_t i = 0;
  for (; i + kLanes <= dim; i += kLanes) squares += load(x + i) * load(x + i);
  float total = sum(squares);
  for (; i < dim; i++) total += widen(x[i]) * widen(x[i]);
  const float factor = 1.0f / __builtin_sqrtf(total / float(dim) + eps);
  for (i = 0; i + kLanes <= dim; i += kLanes) {
    store(out + i, load(x + i) * factor);
    store(out + i, load(out + i) * load(weight + i));
  }
  for (; i < dim; i++) out[i] = narrow(widen(narrow(widen(x[i]) * factor)) * widen(weight[i]));
}

// x += plus.
inline void add_row(bf16* x, const bf16* plus, int64_t dim) {
  int64_t i = 0;
  for (; i + kLanes <= dim; i += kLanes) store(x + i, load(x + i) + load(plus + i));
  for (; i < dim; i++) x[i] = narrow(widen(x[i]) + widen(plus[i]));
}

inline void rms_norm(const RmsNormArgs& a) {
#pragma omp parallel for num_threads(a.threads) if (a.rows > 16)
  for (int64_t t = 0; t < a.rows; t++) {
    if (a.plus) add_row(a.x + t * a.dim, a.plus + t * a.dim, a.dim);
    norm_row(a.x + t * a.dim, a.weight, a.dim, a.eps, a.out + t * a.dim);
  }
}

}  // namespace
}  // namespace PERILUNE_VARIANT
}  // namespace perilune
