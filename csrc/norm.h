// x rsqrt(mean x^2 + eps) in fp32, to bf16, times weight: rounded where the reference rounds.
#pragma once
#include "simd.h"

namespace perilune {
namespace PERILUNE_VARIANT {
namespace {

inline void rms_norm(const RmsNormArgs& a) {
#pragma omp parallel for num_threads(a.threads) if (a.rows > 16)
  for (int64_t t = 0; t < a.rows; t++) {
    const bf16* x = a.x + t * a.dim;
    bf16* out = a.out + t * a.dim;
    vf squares{};
    int64_t i = 0;
    for (; i + kLanes <= a.dim; i += kLanes) squares += load(x + i) * load(x + i);
    float total = sum(squares);
    for (; i < a.dim; i++) total += widen(x[i]) * widen(x[i]);
    const float factor = 1.0f / __builtin_sqrtf(total / float(a.dim) + a.eps);
    for (i = 0; i + kLanes <= a.dim; i += kLanes) {
      store(out + i, load(x + i) * factor);
      store(out + i, load(out + i) * load(a.weight + i));
    }
    for (; i < a.dim; i++) out[i] = narrow(widen(narrow(widen(x[i]) * factor)) * widen(a.weight[i]));
  }
}

}  // namespace
}  // namespace PERILUNE_VARIANT
}  // namespace perilune
