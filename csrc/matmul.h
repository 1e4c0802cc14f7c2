// The one matrix product: a block of outputs, sums along k.
//
// Vectors run along k on both sides, so nothing is transposed: weights are unpacked row by row as they are stored, and
// the processor's bf16 dot products fit as they are. A tile keeps kTile x 4 sums in registers (12 on AVX2's 16
// registers, 24 on AVX-512's 32). Every output is summed in one order, whatever the tile, the number of rows and the
// number of threads: results do not depend on them.
#pragma once
#include "weights.h"

namespace perilune {
namespace PERILUNE_VARIANT {
namespace {

constexpr int kTile = kLanes == 8 ? 3 : 6;  // rows of x per tile
constexpr int kBand = 6;                    // rows of x that stay in the first-level cache while weights pass
constexpr int kFewRows = 6;                 // up to here weights pass once and dense ones are used where they lie
constexpr int kBlock = 32;                  // weight rows per block for many rows of x
constexpr int kFewBlock = 4;
constexpr int64_t kDepth = 512;             // k per pass: 4 rows of fp32 weights are 8 KB
constexpr int64_t kRows = 256;              // rows of x per pass over a block

// c[m][j] += sum_k x[m][k] w[j][k] for m < M, j < 4.
template <int M, class W>
inline void tile(const Elem* const* x, int64_t at, const W* const* w, int64_t count, float* c) {
  vf acc[M][4] = {};
  for (int64_t k = 0; k < count; k += kStep) {
    Operand b[4] = {operand(w[0] + k), operand(w[1] + k), operand(w[2] + k), operand(w[3] + k)};
    for (int m = 0; m < M; m++) {
      Operand a = operand(x[m] + at + k);
      for (int j = 0; j < 4; j++) acc[m][j] = multiply_add(acc[m][j], a, b[j]);
    }
  }
  for (int m = 0; m < M; m++)
    for (int j = 0; j < 4; j++) c[m * kBlock + j] += sum(acc[m][j]);
}

template <class W>
inline void tiles(const Elem* const* x, int64_t m, int64_t at, const W* const* w, int64_t count, float* c) {
  for (; m >= kTile; m -= kTile, x += kTile, c += kTile * kBlock) tile<kTile>(x, at, w, count, c);
  switch (m) {
    case 5: return tile<5>(x, at, w, count, c);
    case 4: return tile<4>(x, at, w, count, c);
    case 3: return tile<3>(x, at, w, count, c);
    case 2: return tile<2>(x, at, w, count, c);
    case 1: return tile<1>(x, at, w, count, c);
    default: return;
  }
}

// c [m, kBlock] = x [m, k] times rows n0 .. n0 + nb of w transposed. x: pointers to rows padded with zeros to kPad.
// m <= kRows; scratch [kBlock, kDepth]. Columns of c up to the next multiple of 4 are written too.
template <class Rows>
inline void block(const Elem* const* x, int64_t m, const Rows& w, int64_t n0, int64_t nb, float* c, Elem* scratch) {
  memset(c, 0, size_t(m) * kBlock * sizeof(float));
  for (int64_t at = 0; at < w.k; at += kDepth) {
    int64_t count = padded(at_most(kDepth, w.k - at));
    if constexpr (Rows::kDense) {
      // where bf16 is what is multiplied, or while a row is used only once, as it lies
      if (w.k % kPad == 0 && (sizeof(Elem) == 2 || m <= kFewRows)) {
        for (int64_t i = 0; i < m; i += kBand)
          for (int64_t j = 0; j < nb; j += 4) {
            const bf16* rows[4];
            for (int r = 0; r < 4; r++) rows[r] = w.row(n0 + at_most(j + r, nb - 1)) + at;
            tiles(x + i, at_most(kBand, m - i), at, rows, count, c + i * kBlock + j);
          }
        continue;
      }
    }
    for (int64_t j = 0; j < nb; j++)
      for (int64_t k = 0; k < count; k += 32) unpack(w, n0 + j, at + k, scratch + j * kDepth + k);
    for (int64_t i = 0; i < m; i += kBand)
      for (int64_t j = 0; j < nb; j += 4) {
        const Elem* rows[4];
        for (int r = 0; r < 4; r++) rows[r] = scratch + at_most(j + r, nb - 1) * kDepth;
        tiles(x + i, at_most(kBand, m - i), at, rows, count, c + i * kBlock + j);
      }
  }
}

// What one thread works with.
struct Work {
  Elem scratch[kBlock * kDepth];
  float c[2][kRows * kBlock];
  const Elem* x[kRows];
};

}  // namespace
}  // namespace PERILUNE_VARIANT
}  // namespace perilune
