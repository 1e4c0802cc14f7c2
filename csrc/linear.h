// y = x W^T, any format. Floor for few rows: the bytes of W; for many: 2 T N K operations.
#pragma once
#include "matmul.h"

namespace perilune {
namespace PERILUNE_VARIANT {
namespace {

inline void linear(const LinearArgs& a) {
  const int64_t n = a.w.n;
  const RowShape shape(a.w.k, wants_bytes(a.w) && a.tokens <= kPackedRows);
  Buffer<Elem> x(a.tokens * shape.stride);
  take_rows(a.x, a.tokens, a.w.k, shape, x, a.threads);
  const int64_t size = a.tokens > (shape.quantised ? kPackedRows : kFewRows) ? kBlock : kFewBlock;
  with_rows(a.w, 0, [&](auto w) {
#pragma omp parallel num_threads(a.threads)
    {
      Buffer<Work> work(1);
#pragma omp for schedule(dynamic, 8)
      for (int64_t n0 = 0; n0 < n; n0 += size) {
        int64_t nb = at_most(size, n - n0);
        for (int64_t t0 = 0; t0 < a.tokens; t0 += kRows) {
          int64_t m = at_most(kRows, a.tokens - t0);
          for (int64_t t = 0; t < m; t++) work.p->x[t] = x.p + (t0 + t) * shape.stride;
          block(work.p->x, m, w, n0, nb, work.p->c[0], work.p->scratch, shape.quantised);
          for (int64_t t = 0; t < m; t++)
            for (int64_t j = 0; j < nb; j++) a.out[(t0 + t) * n + n0 + j] = narrow(work.p->c[0][t * kBlock + j]);
        }
      }
    }
  });
}

}  // namespace
}  // namespace PERILUNE_VARIANT
}  // namespace perilune
