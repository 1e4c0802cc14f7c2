// y = x W^T, any format. Floor for few rows: the bytes of W; for many: 2 T N K operations.
#pragma once
#include "matmul.h"
#include "tiles.h"

namespace perilune {
namespace PERILUNE_VARIANT {
namespace {

// One matrix as it is stored: unpacked block by block to what the processor multiplies.
inline void linear_plain(const LinearArgs& a, const LinearPart& part) {
  const int64_t n = part.w.n, ld = padded(a.k), size = a.tokens > kFewRows ? kBlock : kFewBlock;
  Buffer<Elem> x(a.tokens * ld);
  widen_rows(a.x, a.tokens, a.k, ld, x);
  with_rows(part.w, 0, [&](auto w) {
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
            for (int64_t j = 0; j < nb; j++)
              part.out[(t0 + t) * part.ld + n0 + j] = narrow(work.p->c[0][t * kBlock + j]);
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
    take_row(a.x + (t0 + t) * a.k, form, scratch + t * words);
    rows[t] = scratch + t * words;
  }
  pack_panels(rows, count, words, to + t0 * words);
}

inline bool takes(const LinearPart& part, const RowForm& form) { return part.w.tiled && RowForm(part.w) == form; }

// All matrices in strips that want rows of this form, one after the other. Strips pass once per block of rows.
inline void linear_tiled(const LinearArgs& a, const RowForm& form) {
  int64_t strips = 0;
  for (int64_t p = 0; p < a.count; p++) strips += takes(a.parts[p], form) ? a.parts[p].w.n / kStrip : 0;
  const int threads = a.tokens * strips * kStrip * a.k < kWorthThreads ? 1 : a.threads;
  const int64_t chunk = strips_at_once(strips, threads), chunks = (strips + chunk - 1) / chunk;
  const int64_t blocks = (a.tokens + kBlockRows - 1) / kBlockRows, words = form.words();
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
      int64_t before = 0;  // strips of the matrices in front
      for (const LinearPart* part = a.parts; part < a.parts + a.count; part++) {
        if (!takes(*part, form)) continue;
        const int64_t end = at_most(s1 - before, part->w.n / kStrip);
        for (int64_t s = s0 > before ? s0 - before : 0; s < end; s++)
          for (int64_t t = t0, m; t < t1; t += m) {
            m = panel_rows(at_most(kPanel, t1 - t));  // as they were taken
            times_strip(panels + t * words, m, form, part->w, 0, s, c);
            for (int64_t i = 0; i < m; i++)
              for (int64_t j = 0; j < kStrip; j += kLanes)
                store(part->out + (t + i) * part->ld + s * kStrip + j, load(c + i * kStrip + j));
          }
        before += part->w.n / kStrip;
      }
    }
  }
}

inline void linear(const LinearArgs& a) {
  for (int64_t p = 0; p < a.count; p++) {
    if (!a.parts[p].w.tiled) {
      linear_plain(a, a.parts[p]);
      continue;
    }
    const RowForm form(a.parts[p].w);
    bool seen = false;
    for (int64_t earlier = 0; earlier < p; earlier++) seen = seen || takes(a.parts[earlier], form);
    if (!seen) linear_tiled(a, form);
  }
}

}  // namespace
}  // namespace PERILUNE_VARIANT
}  // namespace perilune
