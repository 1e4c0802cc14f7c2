// Mixture of experts in two passes, each expert visited once per pass whatever the batch.
//
// 1. per (expert, stretch of its width): gate and up of the expert's tokens, SiLU(gate) * up -> hidden [slots, I];
// 2. per stretch of output columns, experts in ascending order: down, times the weight, added to the token's row.
// Pass 2 owns its columns, so no two threads add to one number, and the order of the sum is that of the reference.
// Floor for few tokens: the bytes of the experts in use.
#pragma once
#include "matmul.h"
#include "tiles.h"

namespace perilune {
namespace PERILUNE_VARIANT {
namespace {

// Columns n0 .. n1 of the sums [t, d] go out.
inline void finish(const ExpertsArgs& a, const float* sums, int64_t n0, int64_t n1) {
  const int64_t d = a.down.n;
  for (int64_t t = 0; t < a.tokens; t++) {
    int64_t at = t * d + n0;
    for (; at + kLanes <= t * d + n1; at += kLanes) store(a.out + at, a.plus ? load(sums + at) + load(a.plus + at) : load(sums + at));
    for (; at < t * d + n1; at++) a.out[at] = narrow(a.plus ? sums[at] + widen(a.plus[at]) : sums[at]);
  }
}

// Weights as they are stored.
inline void experts_plain(const ExpertsArgs& a) {
  const int64_t experts = a.gate.experts, width = a.gate.n, d = a.down.n;
  const int64_t ld = padded(a.gate.k), hidden_ld = padded(width);
  int64_t most = 0;
  for (int64_t e = 0; e < experts; e++) most = a.first[e + 1] - a.first[e] > most ? a.first[e + 1] - a.first[e] : most;
  const int64_t size = most > kFewRows ? kBlock : kFewBlock;
  const int64_t blocks = (width + size - 1) / size;
  Buffer<Elem> x(a.tokens * ld), hidden(a.first[experts] * hidden_ld);
  Buffer<float> sums(a.tokens * d);
  widen_rows(a.x, a.tokens, a.gate.k, ld, x);
  memset(sums.p, 0, size_t(a.tokens * d) * sizeof(float));
#pragma omp parallel num_threads(a.threads)
  {
    Buffer<Work> work(1);
    float(*c)[kRows * kBlock] = work.p->c;
#pragma omp for schedule(dynamic, 4)
    for (int64_t item = 0; item < experts * blocks; item++) {
      const int64_t e = item / blocks, n0 = item % blocks * size, nb = at_most(size, width - n0);
      for (int64_t s0 = a.first[e]; s0 < a.first[e + 1]; s0 += kRows) {
        const int64_t m = at_most(kRows, a.first[e + 1] - s0);
        for (int64_t s = 0; s < m; s++) work.p->x[s] = x.p + a.slot_token[s0 + s] * ld;
        with_rows(a.gate, e, [&](auto w) { block(work.p->x, m, w, n0, nb, c[0], work.p->scratch); });
        with_rows(a.up, e, [&](auto w) { block(work.p->x, m, w, n0, nb, c[1], work.p->scratch); });
        for (int64_t s = 0; s < m; s++) {
          float h[kBlock];
          for (int64_t j = 0; j < kBlock; j += kLanes)
            store(h + j, silu(load(c[0] + s * kBlock + j)) * load(c[1] + s * kBlock + j));
          Elem* row = hidden.p + (s0 + s) * hidden_ld;
          to_elem(h, nb, row + n0);
          if (n0 + nb == width) memset(row + width, 0, size_t(hidden_ld - width) * sizeof(Elem));
        }
      }
    }
#pragma omp for schedule(dynamic, 4)
    for (int64_t n0 = 0; n0 < d; n0 += size) {
      const int64_t nb = at_most(size, d - n0);
      for (int64_t e = 0; e < experts; e++)
        for (int64_t s0 = a.first[e]; s0 < a.first[e + 1]; s0 += kRows) {
          const int64_t m = at_most(kRows, a.first[e + 1] - s0);
          for (int64_t s = 0; s < m; s++) work.p->x[s] = hidden.p + (s0 + s) * hidden_ld;
          with_rows(a.down, e, [&](auto w) { block(work.p->x, m, w, n0, nb, c[0], work.p->scratch); });
          for (int64_t s = 0; s < m; s++) {
            float* out = sums + a.slot_token[s0 + s] * d + n0;
            for (int64_t j = 0; j < nb; j++) out[j] += a.slot_weight[s0 + s] * c[0][s * kBlock + j];
          }
        }
      finish(a, sums, n0, n0 + nb);
    }
  }
}

// One panel of an expert's rows times gate and up -> runs first .. last of hidden per row. All of gate comes first: memory
// is read in long stretches. scratch [last - first, 2, m, kStrip].
inline void gate_and_up(const ExpertsArgs& a, const word* const* panel, int64_t m, const RowForm* form, int64_t e,
                        int64_t first, int64_t last, float* scratch, const RowForm& hidden_form, word* hidden) {
  const int64_t size = m * kStrip;
  for (int64_t n = first * 2; n < last * 2; n++)
    times_strip(panel[0], m, form[0], a.gate, e, n, scratch + (n - first * 2) * size);
  float up[2][kPanel * kStrip], h[kRun];
  for (int64_t run = first; run < last; run++) {
    const float* gate = scratch + (run - first) * 2 * size;
    for (int64_t i = 0; i < 2; i++) times_strip(panel[1], m, form[1], a.up, e, run * 2 + i, up[i]);
    for (int64_t t = 0; t < m; t++) {
      for (int64_t i = 0; i < 2; i++)
        for (int64_t j = 0; j < kStrip; j += kLanes) {
          const int64_t at = t * kStrip + j;
          store(h + i * kStrip + j, silu(load(gate + i * size + at)) * load(up[i] + at));
        }
      take_run(h, hidden_form, hidden + t * hidden_form.words() + run * hidden_form.per_run);
    }
  }
}

// Weights in strips. x and hidden are rows of words; an expert's rows become panels when their weights pass.
inline void experts_tiled(const ExpertsArgs& a) {
  const int64_t experts = a.gate.experts, width = a.gate.n, d = a.down.n, slots = a.first[experts];
  const RowForm form[2] = {a.gate, a.up}, hidden_form(a.down, true);
  const bool alike = form[0] == form[1];  // gate and up read the same rows
  const int64_t words[2] = {form[0].words(), form[1].words()}, hidden_words = hidden_form.words();
  Buffer<int64_t> active(experts);
  int64_t used = 0;
  for (int64_t e = 0; e < experts; e++)
    if (a.first[e + 1] > a.first[e]) active[used++] = e;
  const int threads = slots * width * d < kWorthThreads ? 1 : a.threads;
  const int64_t runs = width / kRun, parts = at_most(runs, 1 + 32 * threads / (used + 1)), strips = d / kStrip;
  const int64_t chunk = (runs + parts - 1) / parts, columns = strips_at_once(strips, threads);
  Buffer<word> first(a.tokens * words[0]), second(alike ? 0 : a.tokens * words[1]), hidden(slots * hidden_words);
  Buffer<float> sums(a.tokens * d);
  word* x[2] = {first, alike ? first : second};
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static)
    for (int64_t t = 0; t < a.tokens; t++) {
      for (int i = 0; i < (alike ? 1 : 2); i++) take_row(a.x + t * a.gate.k, form[i], x[i] + t * words[i]);
      memset(sums + t * d, 0, size_t(d) * sizeof(float));
    }
    Buffer<word> packed_first(at_most(slots, kBlockRows) * words[0]);
    Buffer<word> packed_second(alike ? 0 : at_most(slots, kBlockRows) * words[1]);
    Buffer<float> gate(chunk * 2 * kPanel * kStrip);
    word* packed[2] = {packed_first, alike ? packed_first : packed_second};
    const word* rows[kBlockRows];
#pragma omp for schedule(dynamic)
    for (int64_t item = 0; item < used * parts; item++) {
      const int64_t e = active[item / parts], r0 = item % parts * chunk, r1 = at_most(runs, r0 + chunk);
      for (int64_t s0 = a.first[e]; s0 < a.first[e + 1]; s0 += kBlockRows) {
        const int64_t count = at_most(kBlockRows, a.first[e + 1] - s0);
        for (int i = 0; i < (alike ? 1 : 2); i++) {
          for (int64_t s = 0; s < count; s++) rows[s] = x[i] + a.slot_token[s0 + s] * words[i];
          pack_panels(rows, count, words[i], packed[i]);
        }
        const int64_t stretch = panel_rows(count) < count ? 1 : r1 - r0;  // for one panel strips pass once anyway
        for (int64_t run = r0; run < r1; run += stretch)
          for (int64_t s = 0, m; s < count; s += m) {
            m = panel_rows(count - s);
            const word* panel[2] = {packed[0] + s * words[0], packed[1] + s * words[1]};
            gate_and_up(a, panel, m, form, e, run, run + stretch, gate, hidden_form, hidden + (s0 + s) * hidden_words);
          }
      }
    }
    Buffer<word> panel(kPanel * hidden_words);
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < used; i++)
      for (int64_t e = active[i], s = a.first[e], m; s < a.first[e + 1]; s += m) {
        m = panel_rows(a.first[e + 1] - s);
        if (m == 1) continue;
        for (int64_t j = 0; j < m; j++) rows[j] = hidden + (s + j) * hidden_words;
        pack_panel(rows, m, hidden_words, panel);
        memcpy(hidden + s * hidden_words, panel, size_t(m * hidden_words) * sizeof(word));
      }
    float c[kPanel * kStrip];
#pragma omp for schedule(dynamic) nowait
    for (int64_t n0 = 0; n0 < strips; n0 += columns) {
      const int64_t n1 = at_most(strips, n0 + columns);
      for (int64_t i = 0; i < used; i++)
        for (int64_t n = n0; n < n1; n++)
          for (int64_t e = active[i], s = a.first[e], m; s < a.first[e + 1]; s += m) {
            m = panel_rows(a.first[e + 1] - s);
            times_strip(hidden + s * hidden_words, m, hidden_form, a.down, e, n, c);
            for (int64_t t = 0; t < m; t++) {
              float* out = sums + a.slot_token[s + t] * d + n * kStrip;
              const vf weight = splat(a.slot_weight[s + t]);
              for (int64_t j = 0; j < kStrip; j += kLanes)
                store(out + j, fused(weight, load(c + t * kStrip + j), load(out + j)));
            }
          }
      finish(a, sums, n0 * kStrip, n1 * kStrip);
    }
  }
}

inline void experts(const ExpertsArgs& a) {
  if (a.gate.tiled && a.up.tiled && a.down.tiled) return experts_tiled(a);
  experts_plain(a);
}

}  // namespace
}  // namespace PERILUNE_VARIANT
}  // namespace perilune
