// Latent attention of one token per sequence over 64-token pages, absorbed: W_UK into the query, W_UV after the sums.
//
// Each context is cut into spans at fixed positions, each with its own running softmax, which are then joined in order:
// long contexts use every thread, and the result does not depend on how many there are. Floor: the bytes of kv_b and of
// the latents in short contexts, 2 H (2 rank + rope) operations per token of context in long ones.
#pragma once
#include "absorb.h"
#include "softmax.h"

namespace perilune {
namespace PERILUNE_VARIANT {
namespace {

constexpr int64_t kDecodeSpan = 4 * kPage;  // context of one piece of work
constexpr int64_t kNear = 96;               // units of a panel that stay in the first-level cache

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

// kLanes units of an even and an odd token; an odd one that is null is zeros.
#if defined(__AVX512BF16__)
inline void join_tokens(Elem* to, const bf16* even, const bf16* odd) {
  const auto wide = [](const bf16* p) { return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)); };
  const __m512i high = odd ? _mm512_slli_epi32(wide(odd), 16) : _mm512_setzero_si512();
  _mm512_storeu_si512(to, _mm512_or_si512(wide(even), high));
}
#else
inline void join_tokens(Elem* to, const bf16* even, const bf16*) { store(to, load(even)); }
#endif

// Latents [count, rank] as panels of kWide ranks whose units are two tokens: to [ld / kWide][kPage / kPer, kWide], of
// which units_of(count) rows are written; zeros behind count and rank.
inline void pair_tokens(const bf16* rows, int64_t step, int64_t count, int64_t rank, Elem* to, int64_t ld) {
  for (int64_t r = 0; r < ld; r += kLanes)
    for (int64_t u = 0; u < units_of(count); u++) {
      const bf16* even = rows + u * kPer * step + r;
      const bf16* odd = kPer == 2 && u * kPer + 1 < count ? even + step : nullptr;
      Elem* at = to + r / kWide * kWide * kPage + u * kPanelRow + r % kWide * kPer;
      if (r + kLanes <= rank) {
        join_tokens(at, even, odd);
        continue;
      }
      memset(at, 0, size_t(kLanes * kPer) * sizeof(Elem));
      for (int64_t l = 0; r + l < rank; l++) {
        to_elem(even + l, 1, at + l * kPer);
        if (odd) to_elem(odd + l, 1, at + l * kPer + 1);
      }
    }
}

// One head's scores [kPage] of `count` keys join its running softmax: weights to p, acc [ld] rescaled.
inline void join_row(float* scores, int64_t count, float factor, float* best, float* total, float* acc, int64_t ld,
                     Elem* p) {
  for (int64_t t = count; t < kPage; t++) scores[t] = -__builtin_inff();
  vf most = load(scores);
  for (int64_t t = kLanes; t < kPage; t += kLanes) most = vmax(most, load(scores + t));
  const float top = largest(most) * factor;
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
    const int64_t columns = (count + 15) / 16 * 16;
    pack_panel(latents, width, count, width, s.panel, columns);
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
            at_most(kNear, units_of(width) - u), columns, s.scores, kPage, u > 0);
    }
    for (int64_t h = 0; h < heads; h++)
      join_row(s.scores + h * kPage, count, a.scale * kLog2E, best + h, total + h, acc + h * ld, ld, s.p + h * kPage);
    for (int64_t r = 0; r < ld; r += kWide) {
      fetch();
      outer(by_rows(s.p.p, kPage), heads, s.pairs + r * kPage, kPanelRow, units_of(count), kWide, acc + r, ld, true);
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

inline void mla_decode(const MlaDecodeArgs& a) {
  const int64_t q_ld = padded(a.rank + a.rope), ld = sums_ld(a), part_size = a.heads * (2 + ld);
  Buffer<Elem> q(a.n * a.heads * q_ld);
  Buffer<int64_t> first_span(a.n + 1);
  first_span[0] = 0;
  for (int64_t i = 0; i < a.n; i++) first_span[i + 1] = first_span[i] + (a.lengths[i] + kDecodeSpan - 1) / kDecodeSpan;
  const int64_t spans = first_span[a.n];
  Buffer<float> parts(spans * part_size);
#pragma omp parallel num_threads(a.threads)
  {
    DecodeScratch scratch(a);
    Buffer<float> sums(a.n * ld), values(a.n * a.v_dim);
#pragma omp for schedule(dynamic, 1)
    for (int64_t h = 0; h < a.heads; h++) absorb_head(a, h, q, q_ld);
#pragma omp for schedule(dynamic, 1)
    for (int64_t span = 0; span < spans; span++) {
      int64_t row = 0;
      while (first_span[row + 1] <= span) row++;
      decode_span(a, q, q_ld, row, (span - first_span[row]) * kDecodeSpan, parts + span * part_size, ld, scratch);
    }
#pragma omp for schedule(dynamic, 1) nowait
    for (int64_t h = 0; h < a.heads; h++) {
      for (int64_t i = 0; i < a.n; i++)
        join_spans(parts + first_span[i] * part_size, first_span[i + 1] - first_span[i], part_size, a.heads, h, ld,
                   sums + i * ld);
      with_kv_b(a, [&](const auto& rows) { expand_head(a, h, rows, sums, ld, values); });
      for (int64_t i = 0; i < a.n; i++) to_elem(values + i * a.v_dim, a.v_dim, a.out + (i * a.heads + h) * a.v_dim);
    }
  }
}

}  // namespace
}  // namespace PERILUNE_VARIANT
}  // namespace perilune
