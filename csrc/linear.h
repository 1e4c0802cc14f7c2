// y = x W^T, any format. Floor for few rows: the bytes of W; for many: 2 T N K operations.
#pragma once
#include "matmul.h"
#include "tiles.h"

namespace perilune {
namespace PERILUNE_VARIANT {
namespace {

// Weights as they are stored: unpacked block by block to what the processor multiplies.
inline void linear_plain(const LinearArgs& a) {
  const int64_t n = a.w.n, ld = padded(a.w.k), size = a.tokens > kFewRows ? kBlock : kFewBlock;
  Buffer<Elem> x(a.tokens * ld);
  widen_rows(a.x, a.tokens, a.w.k, ld, x);
  with_rows(a.w, 0, [&](auto w) {
#pragma omp parallel num_threads(a.threads)
    {
      Buffer<Work> work(1);
#pragma omp for schedule(dynamic, 8)
      for (int64_t n0 = 0; n0 < n; n0 += size) {
        int64_t nb = at_most(size, n - n0);
        for (int64_t t0 = 0; t0 < a.tokens; t0 += kRows) {
          int64_t m = at_most(kRows, a.tokens - t0);
          for (int64_t t = 0; t < m; t++) work.p->x[t] = x.p + (t0 + t) * ld;
          block(work.p->x, m, w, n0, nb, work.p->c[0], work.p->scratch);
          for (int64_t t = 0; t < m; t++)
            for (int64_t j = 0; j < nb; j++) a.out[(t0 + t) * n + n0 + j] = narrow(work.p->c[0][t * kBlock + j]);
        }
      }
    }
  });
}

// Up to kPanel rows of x -> panels at `to`.
inline void take_panel(const LinearArgs& a, const RowForm& form, int64_t t0, word* scratch, word* to) {
  const word* rows[kPanel];
  const int64_t count = at_most(kPanel, a.tokens - t0), words = form.words();
  for (int64_t t = 0; t < count; t++) {
    take_row(a.x + (t0 + t) * a.w.k, form, scratch + t * words);
    rows[t] = scratch + t * words;
  }
  pack_panels(rows, count, words, to + t0 * words);
}

// Weights in strips. Strips pass once per block of rows.
inline void linear_tiled(const LinearArgs& a) {
  const RowForm form(a.w);
  const int64_t n = a.w.n, strips = n / kStrip, words = form.words();
  const int threads = a.tokens * n * a.w.k < kWorthThreads ? 1 : a.threads;
  const int64_t chunk = strips_at_once(strips, threads), chunks = (strips + chunk - 1) / chunk;
  const int64_t blocks = (a.tokens + kBlockRows - 1) / kBlockRows;
  Buffer<word> panels(a.tokens * words), first(kPanel * words);
  if (a.tokens <= kPanel) take_panel(a, form, 0, first, panels);
#pragma omp parallel num_threads(threads)
  {
    if (a.tokens > kPanel) {
      Buffer<word> scratch(kPanel * words);
#pragma omp for schedule(static)
      for (int64_t t = 0; t < a.tokens; t += kPanel) take_panel(a, form, t, scratch, panels);
    }
    float c[kPanel * kStrip];
#pragma omp for schedule(dynamic) nowait
    for (int64_t item = 0; item < blocks * chunks; item++) {
      const int64_t t0 = item / chunks * kBlockRows, t1 = at_most(a.tokens, t0 + kBlockRows);
      const int64_t s0 = item % chunks * chunk, s1 = at_most(strips, s0 + chunk);
      for (int64_t s = s0; s < s1; s++)
        for (int64_t t = t0, m; t < t1; t += m) {
          m = panel_rows(t1 - t);
          times_strip(panels + t * words, m, form, a.w, 0, s, c);
          for (int64_t i = 0; i < m; i++)
            for (int64_t j = 0; j < kStrip; j += kLanes)
              store(a.out + (t + i) * n + s * kStrip + j, load(c + i * kStrip + j));
        }
    }
  }
}

inline void linear(const LinearArgs& a) {
  if (a.w.tiled) return linear_tiled(a);
  linear_plain(a);
}

}  // namespace
}  // namespace PERILUNE_VARIANT
}  // namespace perilune
