// Rows of a matrix -> strips of 16 outputs, where they lie: ops/linear/strips.py is the definition.
// Floor: every byte read and written once.
#pragma once
#include "rows.h"
#include "tiles.h"

namespace perilune {
namespace PERILUNE_VARIANT {
namespace {

// Each A x B block of bytes transposed.
template <int A, int B>
inline void swap_bytes(const uint8_t* from, int64_t bytes, uint8_t* to) {
  for (int64_t block = 0; block < bytes; block += A * B)
    for (int j = 0; j < B; j++)
      for (int i = 0; i < A; i++) to[block + j * A + i] = from[block + i * B + j];
}

inline void take_bytes(const StripsArgs& a, const uint8_t* from, uint8_t* to) {
  if (a.swap == kPairs) return swap_bytes<2, 2>(from, a.row_bytes, to);
  if (a.swap == kEvenFirst) return swap_bytes<4, 2>(from, a.row_bytes, to);
  memcpy(to, from, size_t(a.row_bytes));
}

// The elements of 16 rows side by side.
template <class T>
inline void transpose(const uint8_t* rows, int64_t columns, uint8_t* to) {
  for (int64_t c = 0; c < columns; c++)
    for (int64_t r = 0; r < kStrip; r++) ((T*)to)[c * kStrip + r] = ((const T*)rows)[r * columns + c];
}

inline void strips(const StripsArgs& a) {
  const int64_t size = kStrip * a.row_bytes, words = a.row_bytes / 4;
#pragma omp parallel num_threads(a.threads)
  {
    Buffer<uint8_t> copy(size);
    const word* rows[kStrip];
    for (int64_t r = 0; r < kStrip; r++) rows[r] = (const word*)(copy.p + r * a.row_bytes);
#pragma omp for schedule(static)
    for (int64_t s = 0; s < a.rows / kStrip; s++) {
      uint8_t* strip = a.data + s * size;
      for (int64_t r = 0; r < kStrip; r++) take_bytes(a, strip + r * a.row_bytes, copy + r * a.row_bytes);
      if (a.unit == 4) pack_panel(rows, kStrip, words, (word*)strip);
      if (a.unit == 2) transpose<uint16_t>(copy, a.row_bytes / 2, strip);
      if (a.unit == 1) transpose<uint8_t>(copy, a.row_bytes, strip);
    }
  }
}

}  // namespace
}  // namespace PERILUNE_VARIANT
}  // namespace perilune
