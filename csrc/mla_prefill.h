// Latent attention of a sequence's new tokens over 64-token pages, expanded, with an online softmax.
//
// Per query, key and head the expanded form costs nope + rope + v products, the absorbed one (mla_decode.h) rank + rope +
// rank (Kimi-Linear: 320 and 1,088), but keys and values must first be expanded, which costs rank (nope + v) per key and
// head. So prefill expands and decode absorbs.
//
// Work goes head by head: a span of keys is expanded into the second-level cache and every query meets it there. Scores
// stand with queries across the vectors: maximum and sum need no steps across lanes, and what leaves one product is what
// the next one takes.
#pragma once
#include "outer.h"
#include "softmax.h"
#include "weights.h"

namespace perilune {
namespace PERILUNE_VARIANT {
namespace {

constexpr int64_t kSpan = 2 * kPage;  // keys that are expanded together
constexpr int64_t kSlice = 32;        // rows of a product before they are packed

// The rows of one head's part of kv_b as Elem, ld apart: where they lie, or unpacked into `to`.
template <class Rows>
inline const Elem* head_rows(const Rows& w, int64_t first, int64_t count, Elem* to, int64_t* ld) {
  if constexpr (Rows::kDense && sizeof(Elem) == 2) {
    *ld = w.k;
    if (w.k % kPer == 0) return w.row(first);
  }
  *ld = padded(w.k);
  for (int64_t n = 0; n < count; n++)
    for (int64_t k = 0; k < *ld; k += 32) unpack(w, first + n, k, to + n * *ld + k);
  return to;
}

// What a thread works with; panels are [units, kWide].
struct PrefillScratch {
  Buffer<Elem> weights, latent, rope, keys, values, q, p;
  Buffer<float> band, scores, o, best, total;
  PrefillScratch(const MlaPrefillArgs& a, int64_t blocks)
      : weights((a.nope + a.v_dim) * padded(a.rank)),
        latent(units_of(a.rank) * kPanelRow),
        rope(kSpan / kPage * units_of(a.rope) * kPanelRow),
        keys(kSpan / kPage * units_of(a.nope) * kPanelRow),
        values(a.v_dim * kSpan),
        q(blocks * (units_of(a.nope) + units_of(a.rope)) * kPanelRow),
        p(kSpan / kPer * kPanelRow),
        band(kSlice * kWide),
        scores(kSpan * kWide),
        o(blocks * a.v_dim * kWide),
        best(blocks * kWide),
        total(blocks * kWide) {}
};

// Keys and values of `count` tokens of a page, from the rows w of one head.
inline void expand_page(const MlaPrefillArgs& a, int64_t page, int64_t first, int64_t count, const Elem* w, int64_t ld,
                        PrefillScratch& s) {
  const int64_t width = a.rank + a.rope, nope_units = units_of(a.nope);
  const bf16* tokens = a.pages + a.table[(first + page * kPage) / kPage] * a.page_stride;
  pack_panel(tokens, width, count, a.rank, s.latent);
  pack_panel(tokens + a.rank, width, count, a.rope, s.rope + page * units_of(a.rope) * kPanelRow);
  for (int64_t d = 0; d < a.nope; d += kSlice) {
    const int64_t m = at_most(kSlice, a.nope - d);
    outer(by_rows(w + d * ld, ld), m, s.latent, kPanelRow, units_of(a.rank), kWide, s.band, kWide, false);
    sums_to_panel(s.band, m, s.keys + (page * nope_units + d / kPer) * kPanelRow);
  }
  for (int64_t d = 0; d < a.v_dim; d += kSlice) {
    const int64_t m = at_most(kSlice, a.v_dim - d);
    outer(by_rows(w + (a.nope + d) * ld, ld), m, s.latent, kPanelRow, units_of(a.rank), kWide, s.band, kWide, false);
    for (int64_t r = 0; r < m; r++) to_elem(s.band + r * kWide, kWide, s.values + (d + r) * kSpan + page * kPage);
  }
}

// The lane's own position hides the keys behind it: scores [count, kWide] of keys first .. and queries from position q.
inline void hide_later(float* scores, int64_t count, int64_t first, int64_t q) {
  alignas(64) int32_t lane[kWide];
  for (int64_t i = 0; i < kWide; i++) lane[i] = int32_t(q - first + i);
  for (int64_t t = 0; t < count; t++)
    for (int64_t i = 0; i < kWide; i += kLanes) {
      vi position;
      memcpy(&position, lane + i, sizeof position);
      float* p = scores + t * kWide + i;
      store(p, position < int32_t(t) ? splat(-__builtin_inff()) : load(p));
    }
}

// Scores [count, kWide] join the running softmax of kWide queries: weights to the panel p, o [v, kWide] rescaled.
inline void join_scores(const float* scores, int64_t count, float factor, float* best, float* total, float* o,
                        int64_t v_dim, Elem* p) {
  for (int64_t i = 0; i < kWide; i += kLanes) {
    vf top = splat(-__builtin_inff());
    for (int64_t t = 0; t < count; t++) top = vmax(top, load(scores + t * kWide + i));
    const vf before = load(best + i), now = vmax(before, top * factor);
    const vf kept = exp2_of(before - now);
    vf added{};
    if (sum(now - before) > 0)
      for (int64_t d = 0; d < v_dim; d++) store(o + d * kWide + i, load(o + d * kWide + i) * kept);
    for (int64_t t = 0; t < count; t += kPer) {
      const vf even = exp2_of(load(scores + t * kWide + i) * factor - now);
      vf odd{};
      if (kPer == 2) odd = exp2_of(load(scores + (t + 1) * kWide + i) * factor - now);
      added += even + odd;
      store_units(p + t / kPer * kPanelRow + i * kPer, even, odd);
    }
    store(total + i, load(total + i) * kept + added);
    store(best + i, now);
  }
}

// One head's queries t0 .. t1 over the whole context.
template <class Rows>
inline void prefill_head(const MlaPrefillArgs& a, const Rows& kv_b, int64_t h, int64_t t0, int64_t t1,
                         PrefillScratch& s) {
  const int64_t qk = a.nope + a.rope, nope_units = units_of(a.nope), rope_units = units_of(a.rope);
  const int64_t each = (nope_units + rope_units) * kPanelRow, blocks = (t1 - t0 + kWide - 1) / kWide;
  int64_t ld;
  const Elem* w = head_rows(kv_b, h * (a.nope + a.v_dim), a.nope + a.v_dim, s.weights, &ld);
  for (int64_t b = 0; b < blocks; b++) {
    const bf16* q = a.q + ((t0 + b * kWide) * a.heads + h) * qk;
    const int64_t m = at_most(kWide, t1 - t0 - b * kWide);
    pack_panel(q, a.heads * qk, m, a.nope, s.q + b * each);
    pack_panel(q + a.nope, a.heads * qk, m, a.rope, s.q + b * each + nope_units * kPanelRow);
  }
  memset(s.o.p, 0, size_t(blocks * a.v_dim * kWide) * sizeof(float));
  memset(s.total.p, 0, size_t(blocks * kWide) * sizeof(float));
  for (int64_t i = 0; i < blocks * kWide; i++) s.best[i] = kNone;

  const int64_t end = a.start + t1;
  for (int64_t first = 0; first < end; first += kSpan) {
    for (int64_t page = 0; page < kSpan / kPage && first + page * kPage < end; page++)
      expand_page(a, page, first, at_most(kPage, end - first - page * kPage), w, ld, s);
    for (int64_t b = 0; b < blocks; b++) {
      const int64_t position = a.start + t0 + b * kWide;  // of the block's first query
      const int64_t count = at_most(kSpan, position + kWide - first);  // a multiple of 64: start is one
      if (count <= 0) continue;
      const Elem* q = s.q + b * each;
      for (int64_t page = 0; page < count / kPage; page++) {
        float* scores = s.scores + page * kPage * kWide;
        outer(by_units(s.keys + page * nope_units * kPanelRow, kPanelRow), kPage, q, kPanelRow, nope_units, kWide,
              scores, kWide, false);
        outer(by_units(s.rope + page * rope_units * kPanelRow, kPanelRow), kPage, q + nope_units * kPanelRow, kPanelRow,
              rope_units, kWide, scores, kWide, true);
      }
      if (first + count > position) hide_later(s.scores, count, first, position);
      join_scores(s.scores, count, a.scale * kLog2E, s.best + b * kWide, s.total + b * kWide, s.o + b * a.v_dim * kWide,
                  a.v_dim, s.p);
      outer(by_rows(s.values.p, kSpan), a.v_dim, s.p, kPanelRow, count / kPer, kWide, s.o + b * a.v_dim * kWide, kWide,
            true);
    }
  }
  for (int64_t t = t0; t < t1; t++) {
    const int64_t b = (t - t0) / kWide, i = (t - t0) % kWide;
    const float by = 1.0f / s.total[b * kWide + i];
    float* out = a.out + (t * a.heads + h) * a.v_dim;
    for (int64_t d = 0; d < a.v_dim; d++) out[d] = s.o[(b * a.v_dim + d) * kWide + i] * by;
  }
}

inline void mla_prefill(const MlaPrefillArgs& a) {
  // With more threads than heads a head's queries are shared out too, at the price of expanding its keys again.
  const int64_t blocks = (a.tokens + kWide - 1) / kWide;
  const int64_t parts = at_most(blocks, (a.threads + a.heads - 1) / a.heads), each = (blocks + parts - 1) / parts;
#pragma omp parallel num_threads(a.threads)
  {
    PrefillScratch scratch(a, each);
#pragma omp for schedule(dynamic, 1)
    for (int64_t item = 0; item < a.heads * parts; item++) {
      const int64_t t0 = item / a.heads * each * kWide, t1 = at_most(a.tokens, t0 + each * kWide);
      if (t0 < t1)
        with_rows(a.kv_b, 0, [&](auto w) { prefill_head(a, w, item % a.heads, t0, t1, scratch); });
    }
  }
}

}  // namespace
}  // namespace PERILUNE_VARIANT
}  // namespace perilune
