// Activations as rows of words, and panels of them: what a tile of weights is multiplied with.
//
// For weights of 4 or 8 bits a row is rounded to int8 per 32 inputs (the largest value becomes 127), an error of about
// 0.5 % of its length. 32 inputs are ten words: eight of four bytes, the fp32 scale, and where the sum of products
// starts. Weights are unsigned codes there, w = scale * (code - zero), so it starts at -zero * (sum of the bytes), and
// is exact. For weights of bf16 and fp8 a row is its bf16 values: sixteen words per 32 inputs.
//
// A panel holds 1 to kPanel rows word by word, so that a tile reads it front to back.
#pragma once
#include "dots.h"

namespace perilune {
namespace PERILUNE_VARIANT {
namespace {

constexpr int64_t kRun = 32;         // inputs per scale
constexpr int64_t kByteWords = 10;   // words per run
constexpr int64_t kPairWords = 16;
constexpr int64_t kPanel = kLanes == 16 ? 16 : 4;  // rows per panel: as many sums as registers hold
constexpr int64_t kBlockRows = 128;  // rows whose panels stay in the second-level cache while weights pass

// What the tiles of a weight want from a row: words per run, and the code that means zero.
struct RowForm {
  int64_t runs, per_run;
  int32_t zero;
  RowForm(const Weight& w) : runs(w.k / kRun) {
    zero = w.format == kInt4 ? (w.zero ? 15 : 8) : w.format == kMxfp4 ? 12 : w.format == kInt8 ? 128 : 0;
    per_run = zero ? kByteWords : kPairWords;
  }
  int64_t words() const { return runs * per_run; }
  bool operator==(const RowForm& other) const { return zero == other.zero && runs == other.runs; }
};

typedef int8_t i8x16 __attribute__((vector_size(16)));
typedef int8_t i8x16_unaligned __attribute__((vector_size(16), aligned(1), may_alias));

// 32 values -> ten words; values below 1e-36 count as 0. Bytes lie as a word of nibbles unpacks: of each eight inputs first the even, then the odd ones.
inline void quantise_run(const float* x, int32_t zero, word* to) {
  vf top{};
  for (int i = 0; i < kRun; i += kLanes) {
    vf v = load(x + i);
    top = vmax(top, v > 0 ? v : -v);
  }
  const float most = largest(top);
  const float inverse = most > 1e-36f ? 127.0f / most : 0.0f, scale = most / 127.0f;
  int8_t bytes[kRun];
  for (int i = 0; i < kRun; i += kLanes) store_bytes(bytes + i, nearest(load(x + i) * inverse));
  for (int i = 0; i < kRun; i += 16) {
    i8x16 b = *(const i8x16_unaligned*)(bytes + i);
    b = __builtin_shufflevector(b, b, 0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
    *(i8x16_unaligned*)(bytes + i) = b;
  }
  const int32_t total = -zero * sum_of_bytes(bytes);
  memcpy(to, bytes, sizeof bytes);
  memcpy(to + 8, &scale, 4);
  memcpy(to + 9, &total, 4);
}

// 32 values -> the words of a run in that form.
inline void take_run(const float* x, const RowForm& form, word* to) {
  if (form.zero) return quantise_run(x, form.zero, to);
  for (int i = 0; i < kRun; i += kLanes) store((bf16*)to + i, load(x + i));
}

inline void take_row(const bf16* x, const RowForm& form, word* to) {
  if (!form.zero) {
    memcpy(to, x, size_t(form.runs * kRun) * sizeof(bf16));
    return;
  }
  float values[kRun];
  for (int64_t run = 0; run < form.runs; run++) {
    for (int i = 0; i < kRun; i += kLanes) store(values + i, load(x + run * kRun + i));
    quantise_run(values, form.zero, to + run * kByteWords);
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

// The size of the next panel of that many rows: sizes there is a tile for.
inline int64_t panel_rows(int64_t rows) {
  if (rows >= kPanel) return kPanel;
  return rows >= 12 ? 12 : rows > 8 ? 8 : rows;
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
