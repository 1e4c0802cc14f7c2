// What precedes latent attention: latents are normed, keys and queries rotated, and both go where attention reads them.
#pragma once
#include "norm.h"

namespace perilune {
namespace PERILUNE_VARIANT {
namespace {

// Pairs (x0, x1), (x2, x3), ... turned by the angles of one position, in fp32.
inline void rotate(const bf16* x, int64_t pairs, const float* cosine, const float* sine, bf16* out) {
  for (int64_t i = 0; i < pairs; i++) {
    const float even = widen(x[2 * i]), odd = widen(x[2 * i + 1]);
    out[2 * i] = narrow(even * cosine[i] - odd * sine[i]);
    out[2 * i + 1] = narrow(even * sine[i] + odd * cosine[i]);
  }
}

inline void mla_store(const MlaStoreArgs& a) {
  const int64_t width = a.rank + a.rope, pairs = a.rope / 2;
#pragma omp parallel for num_threads(a.threads) if (a.tokens > 16)
  for (int64_t t = 0; t < a.tokens; t++) {
    const bf16* kv = a.kv + t * width;
    bf16* to = a.pages + a.page_ids[t] * a.page_stride + a.offsets[t] * width;
    norm_row(kv, a.norm, a.rank, a.eps, to);
    if (!a.cosine) {
      memcpy(to + a.rank, kv + a.rank, size_t(a.rope) * sizeof(bf16));
      continue;
    }
    const float *cosine = a.cosine + t * pairs, *sine = a.sine + t * pairs;
    rotate(kv + a.rank, pairs, cosine, sine, to + a.rank);
    for (int64_t h = 0; h < a.heads; h++) {
      bf16* q = a.q + (t * a.heads + h) * (a.nope + a.rope) + a.nope;
      rotate(q, pairs, cosine, sine, q);
    }
  }
}

}  // namespace
}  // namespace PERILUNE_VARIANT
}  // namespace perilune
