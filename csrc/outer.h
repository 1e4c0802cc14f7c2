// Products whose vectors run across columns: c [m, kWide] += a [m, units] b [units, kWide].
//
// A unit is 32 bits: one fp32, or the two bf16 that one instruction multiplies and adds. a's units are broadcast, b's
// lie lane by lane, 64 columns to a panel, and nothing is summed across a vector: unlike matmul.h this pays for short
// sums, where both sides are made for it (attention). Every sum runs along the units in order, whatever the tile.
#pragma once
#include "simd.h"

namespace perilune {
namespace PERILUNE_VARIANT {
namespace {

constexpr int64_t kWide = 64;                   // columns of a panel
constexpr int64_t kPer = 4 / sizeof(Elem);      // Elem per unit
constexpr int kAcross = kLanes == 8 ? 2 : 4;    // vectors of a tile: 12 sums on AVX2's 16 registers, 24 elsewhere
constexpr int kDown = 6;                        // rows of a tile
constexpr int64_t kPanelRow = kWide * kPer;     // Elem of one unit of a panel

inline int64_t units_of(int64_t n) { return (n + kPer - 1) / kPer; }

inline vf units_at(const float* p) { return load(p); }
inline vf broadcast(const float* p) { return splat(*p); }
inline vf join(vf acc, vf a, vf b) { return acc + a * b; }
#if defined(__AVX512BF16__)
inline __m512bh units_at(const bf16* p) { return (__m512bh)_mm512_loadu_si512(p); }
inline __m512bh broadcast(const bf16* p) {
  int32_t bits;
  memcpy(&bits, p, 4);
  return (__m512bh)_mm512_set1_epi32(bits);
}
inline vf join(vf acc, __m512bh a, __m512bh b) { return multiply_add(acc, a, b); }
#endif

// The left side: unit u of row m is at p + m * row + u * unit. E is float, or bf16 where that is Elem.
template <class E>
struct Left {
  typedef E Value;
  const E* p;
  int64_t row, unit;
};
template <class E>
inline Left<E> by_rows(const E* p, int64_t ld) {
  return {p, ld, int64_t(4 / sizeof(E))};
}
template <class E>
inline Left<E> by_units(const E* p, int64_t ld) {
  return {p, int64_t(4 / sizeof(E)), ld};
}

template <int M, int N, class E>
inline void outer_tile(Left<E> a, const E* b, int64_t ld, int64_t units, float* c, int64_t c_ld, bool add) {
  vf sum[M][N];
  for (int m = 0; m < M; m++)
    for (int i = 0; i < N; i++) sum[m][i] = add ? load(c + m * c_ld + i * kLanes) : vf{};
  for (int64_t u = 0; u < units; u++) {
    decltype(units_at(b)) right[N];
    for (int i = 0; i < N; i++) right[i] = units_at(b + i * kLanes * int(4 / sizeof(E)));
    for (int m = 0; m < M; m++) {
      const auto left = broadcast(a.p + m * a.row);
      for (int i = 0; i < N; i++) sum[m][i] = join(sum[m][i], left, right[i]);
    }
    a.p += a.unit;
    b += ld;
  }
  for (int m = 0; m < M; m++)
    for (int i = 0; i < N; i++) store(c + m * c_ld + i * kLanes, sum[m][i]);
}

template <int N, class E>
inline void outer_rows(Left<E> a, int64_t m, const E* b, int64_t ld, int64_t units, float* c, int64_t c_ld, bool add) {
  for (; m >= kDown; m -= kDown, a.p += kDown * a.row, c += kDown * c_ld)
    outer_tile<kDown, N>(a, b, ld, units, c, c_ld, add);
  switch (m) {
    case 5: return outer_tile<5, N>(a, b, ld, units, c, c_ld, add);
    case 4: return outer_tile<4, N>(a, b, ld, units, c, c_ld, add);
    case 3: return outer_tile<3, N>(a, b, ld, units, c, c_ld, add);
    case 2: return outer_tile<2, N>(a, b, ld, units, c, c_ld, add);
    case 1: return outer_tile<1, N>(a, b, ld, units, c, c_ld, add);
    default: return;
  }
}

// c [m, columns] (rows c_ld apart) = or += a times b, whose units are ld apart. columns: a multiple of kLanes.
template <class E>
inline void outer(Left<E> a, int64_t m, const typename Left<E>::Value* b, int64_t ld, int64_t units, int64_t columns, float* c, int64_t c_ld,
                  bool add) {
  int64_t i = 0;
  for (; i + kAcross * kLanes <= columns; i += kAcross * kLanes)
    outer_rows<kAcross>(a, m, b + i * int64_t(4 / sizeof(E)), ld, units, c + i, c_ld, add);
  for (; i < columns; i += kLanes)
    outer_rows<1>(a, m, b + i * int64_t(4 / sizeof(E)), ld, units, c + i, c_ld, add);
}

typedef uint32_t u4 __attribute__((vector_size(16)));

// Four units of a row.
inline u4 four_units(const bf16* p, const bf16*) {
  u4 x;
  memcpy(&x, p, 16);
  return x;
}
inline u4 four_units(const bf16* p, const float*) { return u4{p[0], p[1], p[2], p[3]} << 16; }

// Four rows of four units, turned: to rows ld units apart.
template <class E>
inline void turn_four(const u4* x, E* to, int64_t ld) {
  const u4 a = __builtin_shufflevector(x[0], x[1], 0, 4, 1, 5), b = __builtin_shufflevector(x[0], x[1], 2, 6, 3, 7);
  const u4 c = __builtin_shufflevector(x[2], x[3], 0, 4, 1, 5), d = __builtin_shufflevector(x[2], x[3], 2, 6, 3, 7);
  const u4 y[4] = {__builtin_shufflevector(a, c, 0, 1, 4, 5), __builtin_shufflevector(a, c, 2, 3, 6, 7),
                   __builtin_shufflevector(b, d, 0, 1, 4, 5), __builtin_shufflevector(b, d, 2, 3, 6, 7)};
  for (int64_t r = 0; r < 4; r++) memcpy(to + r * ld * int64_t(4 / sizeof(E)), &y[r], 16);
}

// The same from bf16 rows into a panel; `count` of the rows are there.
template <bool kAll>
inline void pack_four(const bf16* rows, int64_t ld, int64_t count, Elem* to) {
  const Elem* kind = nullptr;
  u4 x[4];
  for (int64_t r = 0; r < 4; r++) x[r] = kAll || r < count ? four_units(rows + r * ld, kind) : u4{};
  turn_four(x, to, kWide);
}

// Rows of bf16 turned into a panel: to [units_of(width), kWide], column i holding row i; zeros behind `count` rows, up to
// `columns`, a multiple of 16.
inline void pack_panel(const bf16* rows, int64_t ld, int64_t count, int64_t width, Elem* to, int64_t columns = kWide) {
  const int64_t whole = width / (4 * kPer) * 4;
  for (int64_t i = 0; i < columns; i += 16)  // 16 x 16 units: a cache line of each row becomes one of each unit
    for (int64_t u = 0; u < whole; u += 16) {
      const int64_t last = at_most(u + 16, whole);
      const bf16* from = rows + i * ld;
      Elem* at = to + i * kPer;
      if (i + 16 <= count)
        for (int64_t v = u; v < last; v += 4)
          for (int64_t j = 0; j < 16; j += 4)
            pack_four<true>(from + j * ld + v * kPer, ld, 4, at + v * kPanelRow + j * kPer);
      else
        for (int64_t v = u; v < last; v += 4)
          for (int64_t j = 0; j < 16; j += 4)
            pack_four<false>(from + j * ld + v * kPer, ld, count - i - j, at + v * kPanelRow + j * kPer);
    }
  for (int64_t u = whole; u < units_of(width); u++)
    for (int64_t i = 0; i < columns; i++)
      for (int64_t e = 0; e < kPer; e++) {
        const int64_t k = u * kPer + e;
        Elem* at = to + u * kPanelRow + i * kPer + e;
        if (i < count && k < width)
          to_elem(rows + i * ld + k, 1, at);
        else
          *at = 0;
      }
}

// Two vectors of sums as kLanes units: the even row's and the odd row's.
#if defined(__AVX512BF16__)
inline Operand join_units(vf even, vf odd) {
  alignas(64) static const uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)odd, (__m512)even);
  return (Operand)_mm512_permutexvar_epi16(_mm512_load_si512(order), both);
}
inline void store_units(Elem* to, vf even, vf odd) { _mm512_storeu_si512(to, (__m512i)join_units(even, odd)); }
#else
inline void store_units(Elem* to, vf even, vf) { store(to, even); }
#endif

// rows [count, kWide] of sums as a panel [units_of(count), kWide]; a missing odd row is zero.
inline void sums_to_panel(const float* rows, int64_t count, Elem* to) {
  for (int64_t u = 0; u < units_of(count); u++)
    for (int64_t i = 0; i < kWide; i += kLanes) {
      const float* even = rows + u * kPer * kWide + i;
      store_units(to + u * kPanelRow + i * kPer, load(even), u * kPer + 1 < count ? load(even + kWide) : vf{});
    }
}

}  // namespace
}  // namespace PERILUNE_VARIANT
}  // namespace perilune
