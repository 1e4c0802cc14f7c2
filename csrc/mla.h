// Latent attention over 64-token pages, with an online softmax.
//
// Both forms compute with panels (outer.h). Per query, key and head the expanded form costs nope + rope + v products,
// the absorbed one rank + rope + rank (Kimi-Linear: 320 and 1,088), but keys and values must first be expanded, which
// costs rank (nope + v) per key and head. So prefill expands and decode absorbs.
//
// Prefill works head by head: a span of keys is expanded into the second-level cache and every query meets it there.
// Scores stand with queries across the vectors: maximum and sum need no steps across lanes, and what leaves one product
// is what the next one takes.
// Decode cuts each context into spans at fixed positions, each with its own running softmax, which are then joined in
// order: long contexts use every thread, and the result does not depend on how many there are.
#pragma once
#include "outer.h"
#include "weighted.h"
#include "weights.h"

namespace perilune {
namespace PERILUNE_VARIANT {
namespace {

constexpr int64_t kPage = 64;
constexpr int64_t kSpan = 2 * kPage;        // keys that are expanded together
constexpr int64_t kDecodeSpan = 4 * kPage;  // context of one piece of work
constexpr int64_t kNear = 96;               // units of a panel that stay in the first-level cache
constexpr int64_t kSlice = 32;               // rows of a product before they are packed
constexpr float kNone = -3.0e38f;  // below every score; not -inf, whose difference with itself is NaN
constexpr float kLog2E = 1.44269504088896341f;

// 2^x for x <= 0 to 3 parts in a million (minimax polynomial), far beyond what a bf16 weight keeps. 0 below -126.
inline vf exp2_of(vf x) {
  const vf shifted = vmax(x, splat(-126.0f)) + 12582912.0f;  // the nearest whole number in the low bits
  const vf r = vmax(x, splat(-126.0f)) - (shifted - 12582912.0f);
  vf p = splat(9.58285e-3f);
  p = p * r + 5.590642e-2f;
  p = p * r + 2.4024099e-1f;
  p = p * r + 6.9312419e-1f;
  p = p * r + 1.0f;
  const vf y = (vf)((vi)p + ((vi)shifted << 23));
  return x < -126.0f ? vf{} : y;
}

// The rows of one head's part of kv_b as Elem, ld apart: where they lie, or unpacked into `to`.
template <class Rows>
inline const Elem* head_rows(const Rows& w, int64_t first, int64_t count, Elem* to, int64_t* ld) {
  if constexpr (Rows::kDense && sizeof(Elem) == 2) {
    *ld = w.k;
    if (w.k % kPer == 0) return w.row(first);
  }
  *ld = padded(w.k);
  for (int64_t n = 0; n < count; n++)
    for (int64_t k = 0; k < *ld; k += 32) w.run(first + n, k, to + n * *ld + k);
  return to;
}

// ---- prefill

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

// ---- decode

// Latent sums are padded to whole panels.
inline int64_t sums_ld(const MlaDecodeArgs& a) { return (a.rank + kWide - 1) / kWide * kWide; }

struct DecodeScratch {
  Buffer<Elem> panel, pairs, p;
  Buffer<float> scores;
  explicit DecodeScratch(const MlaDecodeArgs& a)
      : panel(units_of(a.rank + a.rope) * kPanelRow),
        pairs(kPage * sums_ld(a)),
        p(a.heads * kPage),
        scores(a.heads * kPage) {}
};

// kLanes units of an even and an odd token; null is a token of zeros.
#if defined(__AVX512BF16__)
inline void join_tokens(Elem* to, const bf16* even, const bf16* odd) {
  const auto wide = [](const bf16* p) {
    return p ? _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)) : _mm512_setzero_si512();
  };
  _mm512_storeu_si512(to, _mm512_or_si512(wide(even), _mm512_slli_epi32(wide(odd), 16)));
}
#else
inline void join_tokens(Elem* to, const bf16* even, const bf16*) { store(to, even ? load(even) : vf{}); }
#endif

// Latents [count, rank] as panels of kWide ranks whose units are two tokens: to [ld / kWide][kPage / kPer, kWide];
// zeros behind count and rank.
inline void pair_tokens(const bf16* rows, int64_t step, int64_t count, int64_t rank, Elem* to, int64_t ld) {
  for (int64_t r = 0; r < ld; r += kLanes)
    for (int64_t u = 0; u < kPage / kPer; u++) {
      const bf16* even = u * kPer < count ? rows + u * kPer * step + r : nullptr;
      const bf16* odd = kPer == 2 && u * kPer + 1 < count ? even + step : nullptr;
      Elem* at = to + r / kWide * kWide * kPage + u * kPanelRow + r % kWide * kPer;
      if (r + kLanes <= rank) {
        join_tokens(at, even, odd);
        continue;
      }
      memset(at, 0, size_t(kLanes * kPer) * sizeof(Elem));
      for (int64_t l = 0; r + l < rank; l++) {
        if (even) to_elem(even + l, 1, at + l * kPer);
        if (odd) to_elem(odd + l, 1, at + l * kPer + 1);
      }
    }
}

inline float top_of(vf x) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps((__m512)x);
#else
  float most = x[0];
  for (int l = 1; l < kLanes; l++) most = x[l] > most ? x[l] : most;
  return most;
#endif
}

// One head's scores [kPage] of `count` keys join its running softmax: weights to p, acc [ld] rescaled.
inline void join_row(float* scores, int64_t count, float factor, float* best, float* total, float* acc, int64_t ld,
                     Elem* p) {
  for (int64_t t = count; t < kPage; t++) scores[t] = -__builtin_inff();
  vf most = load(scores);
  for (int64_t t = kLanes; t < kPage; t += kLanes) most = vmax(most, load(scores + t));
  const float top = top_of(most) * factor;
  if (top > *best) {
    const vf kept = exp2_of(splat(*best - top));
    *total *= kept[0];
    for (int64_t r = 0; r < ld; r += kLanes) store(acc + r, load(acc + r) * kept);
    *best = top;
  }
  vf sums{};
  for (int64_t t = 0; t < kPage; t += kLanes) {
    const vf e = exp2_of(load(scores + t) * factor - *best);
    store(p + t, e);
    sums += e;
  }
  *total += sum(sums);
}

// part: maximum [H], total [H] and latent sums [H, ld] of one span of one row's context.
inline void decode_span(const MlaDecodeArgs& a, const Elem* q, int64_t q_ld, int64_t row, int64_t first, float* part,
                        int64_t ld, DecodeScratch& s) {
  const int64_t heads = a.heads, width = a.rank + a.rope, last = at_most(first + kDecodeSpan, a.lengths[row]);
  float *best = part, *total = part + heads, *acc = part + 2 * heads;
  for (int64_t h = 0; h < heads; h++) best[h] = kNone;
  memset(total, 0, size_t(heads * (1 + ld)) * sizeof(float));
  for (int64_t t0 = first; t0 < last; t0 += kPage) {
    const int64_t count = at_most(kPage, last - t0);
    const bf16* latents = a.pages + a.tables[row][t0 / kPage] * a.page_stride;
    pack_panel(latents, width, count, width, s.panel);
    pair_tokens(latents, width, count, a.rank, s.pairs, ld);
    const bool more = t0 + kPage < last;
    const bf16* next = more ? a.pages + a.tables[row][t0 / kPage + 1] * a.page_stride : latents;
    const int64_t bytes = more ? at_most(kPage, last - t0 - kPage) * width * 2 : 0, products = 12;
    int64_t fetched = 0;
    // a share of the next page, on its way while this one is multiplied
    const auto fetch = [&] {
      for (const int64_t to = fetched + bytes / products + 64; fetched < at_most(to, bytes); fetched += 64)
        __builtin_prefetch((const char*)next + fetched, 0, 2);
    };
    for (int64_t u = 0; u < units_of(width); u += kNear) {
      fetch();
      outer(by_rows(q + row * heads * q_ld + u * kPer, q_ld), heads, s.panel + u * kPanelRow, kPanelRow,
            at_most(kNear, units_of(width) - u), kPage, s.scores, kPage, u > 0);
    }
    for (int64_t h = 0; h < heads; h++)
      join_row(s.scores + h * kPage, count, a.scale * kLog2E, best + h, total + h, acc + h * ld, ld, s.p + h * kPage);
    for (int64_t r = 0; r < ld; r += kWide) {
      fetch();
      outer(by_rows(s.p.p, kPage), heads, s.pairs + r * kPage, kPanelRow, kPage / kPer, kWide, acc + r, ld, true);
    }
  }
}

// sums [ld] of one head: its spans joined in order.
inline void join_spans(const float* parts, int64_t spans, int64_t part_size, int64_t heads, int64_t h, int64_t ld,
                       float* sums) {
  float best = kNone, total = 0;
  for (int64_t s = 0; s < spans; s++) best = parts[s * part_size + h] > best ? parts[s * part_size + h] : best;
  memset(sums, 0, size_t(ld) * sizeof(float));
  for (int64_t s = 0; s < spans; s++) {
    const float* part = parts + s * part_size;
    const float weight = exp2_of(splat(part[h] - best))[0];
    total += weight * part[heads + h];
    const float* acc = part + 2 * heads + h * ld;
    for (int64_t r = 0; r < ld; r += kLanes) store(sums + r, load(sums + r) + weight * load(acc + r));
  }
  for (int64_t r = 0; r < ld; r += kLanes) store(sums + r, load(sums + r) / total);
}

// q~ = [W_UK^T q_nope, q_pe] of one head for every row, as Elem rows.
inline void absorb_head(const MlaDecodeArgs& a, int64_t h, const Elem* w, int64_t w_ld, Elem* q, int64_t ld) {
  const int64_t qk = a.nope + a.rope, sum_ld = padded(a.rank);
  Buffer<float> p(a.n * a.nope), acc(a.n * sum_ld);
  memset(acc.p, 0, size_t(a.n * sum_ld) * sizeof(float));
  for (int64_t i = 0; i < a.n; i++) widen_to(a.q + (i * a.heads + h) * qk, a.nope, p + i * a.nope);
  add_weighted(a.n, p.p, a.nope, a.nope, w, w_ld, acc.p, sum_ld, a.rank);
  for (int64_t i = 0; i < a.n; i++) {
    Elem* to = q + (i * a.heads + h) * ld;
    to_elem(acc + i * sum_ld, a.rank, to);
    to_elem(a.q + (i * a.heads + h) * qk + a.nope, a.rope, to + a.rank);
    memset(to + a.rank + a.rope, 0, size_t(ld - a.rank - a.rope) * sizeof(Elem));
  }
}

// out [n, v] of one head = W_UV times its latent sums [n, H, ld].
inline void expand_head(const MlaDecodeArgs& a, int64_t h, const Elem* w, int64_t w_ld, const float* sums, int64_t ld) {
  for (int64_t d = 0; d < a.v_dim; d++) {
    const Elem* row = w + d * w_ld;
    for (int64_t i = 0; i < a.n; i++) {
      const float* x = sums + (i * a.heads + h) * ld;
      vf s[4] = {};
      int64_t r = 0;
      for (; r + 4 * kLanes <= a.rank; r += 4 * kLanes)
        for (int j = 0; j < 4; j++) s[j] += load(x + r + j * kLanes) * load(row + r + j * kLanes);
      for (; r + kLanes <= a.rank; r += kLanes) s[0] += load(x + r) * load(row + r);
      float dot = sum((s[0] + s[1]) + (s[2] + s[3]));
      for (; r < a.rank; r++) dot += x[r] * float_of(row[r]);
      a.out[(i * a.heads + h) * a.v_dim + d] = dot;
    }
  }
}

inline void mla_decode(const MlaDecodeArgs& a) {
  const int64_t q_ld = padded(a.rank + a.rope), ld = sums_ld(a), part_size = a.heads * (2 + ld);
  Buffer<Elem> q(a.n * a.heads * q_ld);
  Buffer<float> sums(a.n * a.heads * ld);
  Buffer<int64_t> first_span(a.n + 1);
  first_span[0] = 0;
  for (int64_t i = 0; i < a.n; i++) first_span[i + 1] = first_span[i] + (a.lengths[i] + kDecodeSpan - 1) / kDecodeSpan;
  const int64_t spans = first_span[a.n];
  Buffer<float> parts(spans * part_size);
#pragma omp parallel num_threads(a.threads)
  {
    Buffer<Elem> unpacked((a.nope + a.v_dim) * padded(a.rank));
    DecodeScratch scratch(a);
#pragma omp for schedule(static)
    for (int64_t h = 0; h < a.heads; h++)
      with_rows(a.kv_b, 0, [&](auto rows) {
        int64_t w_ld;
        const Elem* w = head_rows(rows, h * (a.nope + a.v_dim), a.nope, unpacked, &w_ld);
        absorb_head(a, h, w, w_ld, q, q_ld);
      });
#pragma omp for schedule(dynamic, 1)
    for (int64_t span = 0; span < spans; span++) {
      int64_t row = 0;
      while (first_span[row + 1] <= span) row++;
      decode_span(a, q, q_ld, row, (span - first_span[row]) * kDecodeSpan, parts + span * part_size, ld, scratch);
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < a.n * a.heads; i++) {
      const int64_t row = i / a.heads, count = first_span[row + 1] - first_span[row];
      join_spans(parts + first_span[row] * part_size, count, part_size, a.heads, i % a.heads, ld, sums + i * ld);
    }
#pragma omp for schedule(static)
    for (int64_t h = 0; h < a.heads; h++)
      with_rows(a.kv_b, 0, [&](auto rows) {
        int64_t w_ld;
        const Elem* w = head_rows(rows, h * (a.nope + a.v_dim) + a.nope, a.v_dim, unpacked, &w_ld);
        expand_head(a, h, w, w_ld, sums, ld);
      });
  }
}

}  // namespace
}  // namespace PERILUNE_VARIANT
}  // namespace perilune
