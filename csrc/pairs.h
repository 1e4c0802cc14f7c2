// Rows of int4 as they are stored, times bf16: 128 codes of a row are one vector, and become bf16 by looking up.
//
// Lane l of the vector holds codes 8 l .. 8 l + 7. Shifted by i nibbles, its 16-bit halves look up codes 8 l + i and
// 8 l + 4 + i, a pair for one product; and where pairs must be of two rows, halves are exchanged first. Scales, one per
// four lanes, go to the sums (along a row) or to the inputs (across rows), so that codes are multiplied exactly.
#pragma once
#include "outer.h"
#include "weights.h"

namespace perilune {
namespace PERILUNE_VARIANT {
namespace {

constexpr int64_t kTall = 16;  // rows of weights that stay in the first-level cache

#if defined(__AVX512BF16__)
constexpr int64_t kCodes = 128;  // of one vector

struct PairRows {
  const uint8_t* data;
  const bf16* scale;
  int64_t k;
  explicit PairRows(const Weight& w) : data(w.data), scale((const bf16*)w.scale), k(w.k) {}
  static bool reads(const Weight& w) { return w.format == kInt4 && !w.zero && w.group == 32 && w.k % kCodes == 0; }
  // What the same step reads kTall rows later.
  void fetch_soon(int64_t n, int64_t at) const {
    __builtin_prefetch(data + ((n + kTall) * k + at) / 2);
    if (at == 0) __builtin_prefetch(scale + ((n + kTall) * k + at) / 32);
  }
  __m512i codes(int64_t n, int64_t at) const { return _mm512_loadu_si512(data + (n * k + at) / 2); }
  vf scales(int64_t n, int64_t at) const {
    alignas(16) static constexpr int8_t lane[4][16] = {
        {-1, -1, 0, 1, -1, -1, 0, 1, -1, -1, 0, 1, -1, -1, 0, 1}, {-1, -1, 2, 3, -1, -1, 2, 3, -1, -1, 2, 3, -1, -1, 2, 3},
        {-1, -1, 4, 5, -1, -1, 4, 5, -1, -1, 4, 5, -1, -1, 4, 5}, {-1, -1, 6, 7, -1, -1, 6, 7, -1, -1, 6, 7, -1, -1, 6, 7}};
    int64_t four;
    memcpy(&four, scale + (n * k + at) / 32, 8);
    return (vf)_mm512_shuffle_epi8(_mm512_set1_epi64(four), _mm512_loadu_si512(lane));
  }
};

// The lowest nibble of each 16-bit half, less 8, as bf16.
inline Operand pairs_of(__m512i codes) {
  alignas(64) static constexpr bf16 value[32] = {
      0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80, 0,      0x3f80, 0x4000,
      0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0, 0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040,
      0xc000, 0xbf80, 0,      0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0};
  return (Operand)_mm512_permutexvar_epi16(codes, _mm512_load_si512(value));  // its index is five bits: twice the same
}

// M rows of inputs, x_ld apart, times `count` rows of w, an even number, each with its own input: w transposed times x.
// sums [M, w.k]: of 128 outputs, number 8 l + i is at 16 i + l.
template <int M>
inline void across_rows(const PairRows& w, int64_t n0, int64_t count, const bf16* x, int64_t x_ld, float* sums) {
  for (int64_t at = 0; at < w.k; at += kCodes) {
    vf sum[M][8] = {};
    for (int64_t n = n0; n < n0 + count; n += 2) {
      const __m512i even = w.codes(n, at), odd = w.codes(n + 1, at);
      const vf even_scale = w.scales(n, at), odd_scale = w.scales(n + 1, at);
      __m512i low = _mm512_mask_blend_epi16(0xaaaaaaaa, even, _mm512_slli_epi32(odd, 16));
      __m512i high = _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(even, 16), odd);
      Operand input[M];
      for (int m = 0; m < M; m++) {
        const bf16* pair = x + m * x_ld + n - n0;
        input[m] = join_units(even_scale * widen(pair[0]), odd_scale * widen(pair[1]));
      }
      for (int i = 0; i < 4; i++) {
        for (int m = 0; m < M; m++) {
          sum[m][i] = multiply_add(sum[m][i], pairs_of(low), input[m]);
          sum[m][4 + i] = multiply_add(sum[m][4 + i], pairs_of(high), input[m]);
        }
        low = _mm512_srli_epi32(low, 4), high = _mm512_srli_epi32(high, 4);
      }
    }
    for (int m = 0; m < M; m++)
      for (int i = 0; i < 8; i++) store(sums + m * w.k + at + i * kLanes, sum[m][i]);
  }
}

// What across_rows left, in order.
inline void take_sums(const float* sums, int64_t k, bf16* to) {
  for (int64_t at = 0; at < k; at += kCodes) {
    alignas(64) bf16 pair[4][32];
    for (int i = 0; i < 4; i++) store_units(pair[i], load(sums + at + 2 * i * kLanes), load(sums + at + (2 * i + 1) * kLanes));
    for (int64_t l = 0; l < kLanes; l += 4) {
      u4 turned[4];
      for (int i = 0; i < 4; i++) memcpy(&turned[i], pair[i] + 2 * l, 16);
      turn_four(turned, to + at + 8 * l, 4);
    }
  }
}

// x [k] as what along_row multiplies: per 128 inputs and i < 4 the pairs (8 l + i, 8 l + 4 + i).
inline void pair_inputs(const float* x, int64_t k, bf16* to) {
  for (int64_t at = 0; at < k; at += kCodes) {
    alignas(64) float turned[8][kLanes];
    for (int64_t l = 0; l < kLanes; l += 4)
      for (int64_t half = 0; half < 2; half++) {
        u4 four[4];
        for (int64_t i = 0; i < 4; i++) memcpy(&four[i], x + at + (l + i) * 8 + half * 4, 16);
        turn_four(four, turned[half * 4] + l, kLanes);
      }
    for (int64_t i = 0; i < 4; i++) store_units(to + at + i * 32, load(turned[i]), load(turned[4 + i]));
  }
}

// out[m * out_ld + n] = row n0 + n of w times M rows that pair_inputs made, w.k apart.
template <int M>
inline void along_rows(const PairRows& w, int64_t n0, int64_t count, const bf16* x, float* out, int64_t out_ld) {
  for (int64_t n = 0; n < count; n++) {
    vf total[M] = {};
    for (int64_t at = 0; at < w.k; at += kCodes) {
      w.fetch_soon(n0 + n, at);
      __m512i codes = w.codes(n0 + n, at);
      vf dot[M] = {};
      for (int i = 0; i < 4; i++, codes = _mm512_srli_epi32(codes, 4))
        for (int m = 0; m < M; m++)
          dot[m] = multiply_add(dot[m], pairs_of(codes), operand(x + m * w.k + at + i * 32));
      const vf scale = w.scales(n0 + n, at);
      for (int m = 0; m < M; m++) total[m] = fused(dot[m], scale, total[m]);
    }
    for (int m = 0; m < M; m++) out[m * out_ld + n] = sum(total[m]);
  }
}
#endif

}  // namespace
}  // namespace PERILUNE_VARIANT
}  // namespace perilune
