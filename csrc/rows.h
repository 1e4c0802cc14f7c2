// Activations as rows of words, and panels of them: what a tile of weights is multiplied with.
//
// For weights of 4 or 8 bits a row is rounded to int8 per 32 inputs (the largest value becomes 113 to 127, so that the
// scale has few digits: scales.h), an error of about 0.6 % of its length. 32 inputs are ten words: eight of four bytes,
// the scale, and where the sum of products starts. Weights are unsigned codes there, w = scale * (code - zero), so it starts at -zero * (sum of the bytes), and
// is exact. What experts multiply with `down` varies too much for that, so it has a second plane of bytes: what the
// first left over, in steps 256 times as fine: eight words more. For weights of bf16 and fp8 a row is its bf16 values:
// sixteen words per 32 inputs.
//
// A panel holds 1 to kPanel rows word by word, so that a tile reads it front to back.
#pragma once
#include "scales.h"

namespace perilune {
namespace PERILUNE_VARIANT {
namespace {

constexpr int64_t kRun = 32;         // inputs per scale
constexpr int64_t kByteWords = 8;    // words per run and plane
constexpr int64_t kSumWords = 2;     // behind them: the scale and where the sum starts
constexpr int64_t kPairWords = 16;
constexpr int64_t kPanel = kLanes == 16 ? 16 : 4;  // rows per panel: as many sums as registers hold
constexpr int64_t kBlockRows = 128;  // rows whose panels stay in the second-level cache while weights pass

// What the tiles of a weight want from a row: words per run, and the code that means zero.
struct RowForm {
  int64_t runs, per_run;
  int32_t zero;
  bool fine;  // two planes
  RowForm(const Weight& w, bool fine = false) : runs(w.k / kRun), fine(fine) {
    zero = w.format == kInt4 ? (w.zero ? 15 : 8) : w.format == kMxfp4 ? 12 : w.format == kInt8 ? 128 : 0;
    per_run = zero ? kByteWords * (fine ? 2 : 1) + kSumWords : kPairWords;
  }
  int64_t words() const { return runs * per_run; }
  bool operator==(const RowForm& other) const {
    return zero == other.zero && runs == other.runs && per_run == other.per_run;
  }
};

typedef int8_t i8x16 __attribute__((vector_size(16)));
typedef int8_t i8x16_unaligned __attribute__((vector_size(16), aligned(1), may_alias));

// Of each eight bytes first the even, then the odd ones: as a word of nibbles unpacks.
inline void even_first(int8_t* bytes) {
  for (int i = 0; i < kRun; i += 16) {
    i8x16 b = *(const i8x16_unaligned*)(bytes + i);
    b = __builtin_shufflevector(b, b, 0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
    *(i8x16_unaligned*)(bytes + i) = b;
  }
}

// 32 values -> the words of a run; values below 1e-33 count as 0.
template <bool Fine>
inline void quantise_run(const float* x, int32_t zero, word* to) {
  constexpr int kPlanes = Fine ? 2 : 1;
  vf top{};
  for (int i = 0; i < kRun; i += kLanes) {
    vf v = load(x + i);
    top = vmax(top, v > 0 ? v : -v);
  }
  const float most = largest(top);
  const bool any = !(most <= 1e-33f);  // a NaN stays in sight
  const float step = any ? scale_above(most * (1 / 127.0f)) : 1.0f, inverse = any ? 1.0f / step : 0.0f;
  int8_t bytes[kPlanes][kRun];
  for (int i = 0; i < kRun; i += kLanes) {
    const vf value = load(x + i) * inverse;
    const vi whole = nearest(value);
    store_bytes(bytes[0] + i, whole);
    if constexpr (Fine) {
      const vi rest = nearest((value - to_float(whole)) * 256.0f);
      store_bytes(bytes[1] + i, rest > 127 ? 127 + vi{} : rest);
    }
  }
  int32_t total = 0;
  for (int plane = 0; plane < kPlanes; plane++) {
    even_first(bytes[plane]);
    total = total * 256 - zero * sum_of_bytes(bytes[plane]);
  }
  memcpy(to, bytes, sizeof bytes);
  to[kPlanes * kByteWords] = scale_word(Fine ? step / 256 : step);
  to[kPlanes * kByteWords + 1] = word(total);
}

// 32 values -> the words of a run in that form.
inline void take_run(const float* x, const RowForm& form, word* to) {
  if (form.zero) return form.fine ? quantise_run<true>(x, form.zero, to) : quantise_run<false>(x, form.zero, to);
  for (int i = 0; i < kRun; i += kLanes) store((bf16*)to + i, load(x + i));
}

// A row in that form, of one plane.
inline void take_row(const bf16* x, const RowForm& form, word* to) {
  if (!form.zero) {
    memcpy(to, x, size_t(form.runs * kRun) * sizeof(bf16));
    return;
  }
  float values[kRun];
  for (int64_t run = 0; run < form.runs; run++) {
    for (int i = 0; i < kRun; i += kLanes) store(values + i, load(x + run * kRun + i));
    quantise_run<false>(values, form.zero, to + run * form.per_run);
  }
}

typedef word four __attribute__((vector_size(16)));
typedef word four_unaligned __attribute__((vector_size(16), aligned(4), may_alias));

// m rows of `words` words, word by word.
inline void pack_panel(const word* const* rows, int64_t m, int64_t words, word* to) {
  int64_t at = 0;
  if (m % 4 == 0)
    for (; at + 4 <= words; at += 4)
      for (int64_t i = 0; i < m; i += 4) {
        four a = *(const four_unaligned*)(rows[i] + at), b = *(const four_unaligned*)(rows[i + 1] + at);
        four c = *(const four_unaligned*)(rows[i + 2] + at), d = *(const four_unaligned*)(rows[i + 3] + at);
        four ab = __builtin_shufflevector(a, b, 0, 4, 1, 5), cd = __builtin_shufflevector(c, d, 0, 4, 1, 5);
        four AB = __builtin_shufflevector(a, b, 2, 6, 3, 7), CD = __builtin_shufflevector(c, d, 2, 6, 3, 7);
        *(four_unaligned*)(to + at * m + i) = __builtin_shufflevector(ab, cd, 0, 1, 4, 5);
        *(four_unaligned*)(to + (at + 1) * m + i) = __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
        *(four_unaligned*)(to + (at + 2) * m + i) = __builtin_shufflevector(AB, CD, 0, 1, 4, 5);
        *(four_unaligned*)(to + (at + 3) * m + i) = __builtin_shufflevector(AB, CD, 2, 3, 6, 7);
      }
  for (; at < words; at++)
    for (int64_t i = 0; i < m; i++) to[at * m + i] = rows[i][at];
}

// The size of the next panel of that many rows: sizes there is a tile for, and none so small that its weights cost more
// than its rows, where there are more.
inline int64_t panel_rows(int64_t rows) {
  if (kPanel < 16 || rows <= 8) return at_most(rows, kPanel);
  if (rows < 16) return rows == 12 ? 12 : (rows + 1) / 2;
  return rows > 16 && rows < 20 ? 12 : kPanel;
}

// Rows of words -> panels, one after the other; the panel of row i begins where row i would.
inline void pack_panels(const word* const* rows, int64_t count, int64_t words, word* to) {
  for (int64_t i = 0, m; i < count; i += m) {
    m = panel_rows(count - i);
    pack_panel(rows + i, m, words, to + i * words);
  }
}

}  // namespace
}  // namespace PERILUNE_VARIANT
}  // namespace perilune
