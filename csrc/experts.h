// Mixture of experts in two passes, each expert visited once per pass whatever the batch.
//
// 1. per (expert, block of its width): gate and up of the expert's tokens, SiLU(gate) * up -> hidden [slots, I];
// 2. per block of output columns, experts in ascending order: down, times the weight, added to the token's row.
// Pass 2 owns its columns, so no two threads add to one number, and the order of the sum is that of the reference.
// Floor for few tokens: the bytes of the experts in use.
#pragma once
#include "matmul.h"

namespace perilune {
namespace PERILUNE_VARIANT {
namespace {

inline void experts(const ExpertsArgs& a) {
  const int64_t experts = a.gate.experts, width = a.gate.n, d = a.down.n;
  const int64_t slots = a.first[experts];
  const RowShape shape(a.gate.k, wants_bytes(a.gate) && wants_bytes(a.up)), hidden_shape(width, wants_bytes(a.down));
  int64_t most = 0;
  for (int64_t e = 0; e < experts; e++) most = a.first[e + 1] - a.first[e] > most ? a.first[e + 1] - a.first[e] : most;
  const int64_t size = most > (shape.quantised ? kPackedRows : kFewRows) ? kBlock : kFewBlock;
  const int64_t blocks = (width + size - 1) / size;
  Buffer<Elem> x(a.tokens * shape.stride), hidden(slots * hidden_shape.stride);
  take_rows(a.x, a.tokens, a.gate.k, shape, x, a.threads);
  memset(a.out, 0, size_t(a.tokens * d) * sizeof(float));
#pragma omp parallel num_threads(a.threads)
  {
    Buffer<Work> work(1);
    float(*c)[kRows * kBlock] = work.p->c;
#pragma omp for schedule(dynamic, 4)
    for (int64_t item = 0; item < experts * blocks; item++) {
      const int64_t e = item / blocks, n0 = item % blocks * size, nb = at_most(size, width - n0);
      for (int64_t s0 = a.first[e]; s0 < a.first[e + 1]; s0 += kRows) {
        const int64_t m = at_most(kRows, a.first[e + 1] - s0);
        for (int64_t s = 0; s < m; s++) work.p->x[s] = x.p + a.slot_token[s0 + s] * shape.stride;
        with_rows(a.gate, e, [&](auto w) { block(work.p->x, m, w, n0, nb, c[0], work.p->scratch, shape.quantised); });
        with_rows(a.up, e, [&](auto w) { block(work.p->x, m, w, n0, nb, c[1], work.p->scratch, shape.quantised); });
        for (int64_t s = 0; s < m; s++) {
          float h[kBlock];
          for (int64_t j = 0; j < kBlock; j += kLanes)
            store(h + j, silu(load(c[0] + s * kBlock + j)) * load(c[1] + s * kBlock + j));
          Elem* row = hidden.p + (s0 + s) * hidden_shape.stride;
          to_elem(h, nb, row + n0);
          if (n0 + nb == width) memset(row + width, 0, size_t(hidden_shape.ld - width) * sizeof(Elem));
        }
      }
    }
    if (hidden_shape.quantised) {
#pragma omp for schedule(static)
      for (int64_t s = 0; s < slots; s++) quantise_row(hidden.p + s * hidden_shape.stride, hidden_shape);
    }
#pragma omp for schedule(dynamic, 4)
    for (int64_t n0 = 0; n0 < d; n0 += size) {
      const int64_t nb = at_most(size, d - n0);
      for (int64_t e = 0; e < experts; e++)
        for (int64_t s0 = a.first[e]; s0 < a.first[e + 1]; s0 += kRows) {
          const int64_t m = at_most(kRows, a.first[e + 1] - s0);
          for (int64_t s = 0; s < m; s++) work.p->x[s] = hidden.p + (s0 + s) * hidden_shape.stride;
          with_rows(a.down, e, [&](auto w) {
            block(work.p->x, m, w, n0, nb, c[0], work.p->scratch, hidden_shape.quantised);
          });
          for (int64_t s = 0; s < m; s++) {
            float* out = a.out + a.slot_token[s0 + s] * d + n0;
            for (int64_t j = 0; j < nb; j++) out[j] += a.slot_weight[s0 + s] * c[0][s * kBlock + j];
          }
        }
    }
  }
}

}  // namespace
}  // namespace PERILUNE_VARIANT
}  // namespace perilune
