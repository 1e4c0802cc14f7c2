// 4-bit weights times 8-bit activations, for few rows: products of bytes, one scale per 32 inputs on either side.
//
// x is rounded to int8 per 32 inputs (largest value 127), an error of about 0.3 % of a row's length: that of bf16.
// Weights stay unsigned codes: w = scale * (code - zero), so
//     sum w x = sum_groups scale_w scale_x (sum code q) - sum_groups scale_w zero (scale_x sum q)
// and the second sum needs no weight bits. A group's 16 bytes become 32 codes by one mask and one shift: the low
// nibbles, inputs 0, 2, ..., then the high ones; q lies in that order. Sums of pairs stay below 24 * 127 * 2 < 2^15.
#pragma once
#include "weights.h"

namespace perilune {
namespace PERILUNE_VARIANT {
namespace {

inline int64_t eights(int64_t groups) { return (groups + 7) / 8 * 8; }

// A row of x is Elem [ld], and where the weights are packed also int8 [ld], scale [ld / 32] and scale * sum q, the last
// with zeros up to a multiple of 8.
struct RowShape {
  int64_t ld, groups, stride;  // stride in Elem
  bool quantised;
  RowShape(int64_t k, bool quantise) : ld(padded(k)), groups(ld / 32), quantised(quantise) {
    const int64_t extra = quantise ? ld + (groups + eights(groups)) * 4 : 0;
    stride = ld + (extra + int64_t(sizeof(Elem)) - 1) / int64_t(sizeof(Elem));
    stride = (stride + 31) / 32 * 32;
  }
};

struct Quantised {
  const int8_t* q;
  const float* scale;
  const float* sums;
  Quantised(const Elem* row, int64_t ld)
      : q((const int8_t*)(row + ld)), scale((const float*)(q + ld)), sums(scale + ld / 32) {}
};

#if defined(__AVX2__)
constexpr int64_t kPackedRows = 16;
constexpr int64_t kMaxGroups = 1024;  // inputs up to 32,768

// Fill the quantised part of a row from its Elem part.
inline void quantise_row(Elem* row, const RowShape& shape) {
  int8_t* q = (int8_t*)(row + shape.ld);
  float* scale = (float*)(q + shape.ld);
  float* sums = scale + shape.groups;
  for (int64_t g = 0; g < shape.groups; g++) {
    vf top{};
    for (int i = 0; i < 32; i += kLanes) {
      vf x = load(row + g * 32 + i);
      top = vmax(top, x > 0 ? x : -x);
    }
    float lane[kLanes], most = 0;
    memcpy(lane, &top, sizeof lane);
    for (int i = 0; i < kLanes; i++) most = lane[i] > most ? lane[i] : most;
    const float inverse = most > 0 ? 127.0f / most : 0.0f;
    int32_t whole[32], total = 0;
    for (int i = 0; i < 32; i += kLanes) {
      vf x = load(row + g * 32 + i) * inverse;
      vi n = __builtin_convertvector(x + (x > 0 ? splat(0.5f) : splat(-0.5f)), vi);
      memcpy(whole + i, &n, sizeof n);
    }
    for (int i = 0; i < 16; i++) {
      q[g * 32 + i] = int8_t(whole[2 * i]);
      q[g * 32 + 16 + i] = int8_t(whole[2 * i + 1]);
      total += whole[2 * i] + whole[2 * i + 1];
    }
    scale[g] = most / 127.0f;
    sums[g] = scale[g] * float(total);
  }
  for (int64_t g = shape.groups; g < eights(shape.groups); g++) sums[g] = 0;
}

inline __m256i codes(const uint8_t* bytes) {
  const __m128i b = _mm_loadu_si128((const __m128i*)bytes);
  return _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(b, 4), b), _mm256_set1_epi8(15));
}

// Codes and scales of one row, as the sum above wants them.
inline __m256i unsigned_codes(const Int4Rows&, __m256i code) { return code; }
inline __m256i unsigned_codes(const Mxfp4Rows&, __m256i code) {  // twice the value, plus 12
  const __m128i table = _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0);
  return _mm256_shuffle_epi8(_mm256_set_m128i(table, table), code);
}
inline void row_scales(const Int4Rows& w, int64_t n, int64_t groups, float* scale, float* offset) {
  const int64_t each = w.group / 32;
  for (int64_t g = 0; g < groups; g++) {
    const int64_t i = n * w.groups + g / each;
    scale[g] = widen(w.scale[i]);
    offset[g] = scale[g] * (w.zero ? 8.0f + w.zero[i] : 8.0f);
  }
}
inline void row_scales(const Mxfp4Rows& w, int64_t n, int64_t groups, float* scale, float* offset) {
  for (int64_t g = 0; g < groups; g++) {
    const uint8_t e = w.scale[n * w.groups + g];
    scale[g] = 0.5f * widen(e == 255 ? bf16(0x7fc0) : e == 0 ? bf16(0x0040) : bf16(e << 7));
    offset[g] = scale[g] * 12.0f;
  }
}

inline __m256i dot(__m256i code, __m256i q) {
#if defined(__AVX512VNNI__)
  return _mm256_dpbusd_epi32(_mm256_setzero_si256(), code, q);
#else
  return _mm256_madd_epi16(_mm256_maddubs_epi16(code, q), _mm256_set1_epi16(1));
#endif
}

// c[m][j] for M rows of x and 4 rows of weights.
template <int M, class Rows>
inline void packed_tile(const Quantised* x, const Rows& w, const int64_t* n, int64_t groups, float (*scale)[kMaxGroups],
                        float (*offset)[kMaxGroups], float* c, int64_t c_ld) {
  __m256 acc[M][4];
  for (int m = 0; m < M; m++)
    for (int j = 0; j < 4; j++) acc[m][j] = _mm256_setzero_ps();
  for (int64_t g = 0; g < groups; g++) {
    uint8_t tail[4][16] = {};
    const bool whole = (g + 1) * 16 <= w.bytes;
    for (int j = 0; j < 4; j++) {
      const uint8_t* bytes = w.data + n[j] * w.bytes + g * 16;
      if (__builtin_expect(!whole, 0)) bytes = (const uint8_t*)memcpy(tail[j], bytes, size_t(w.bytes - g * 16));
      const __m256i code = unsigned_codes(w, codes(bytes));
      const __m256 by = _mm256_set1_ps(scale[j][g]);
      for (int m = 0; m < M; m++) {
        const __m256i q = _mm256_loadu_si256((const __m256i*)(x[m].q + g * 32));
        const __m256 product = _mm256_cvtepi32_ps(dot(code, q));
        acc[m][j] = _mm256_fmadd_ps(product, _mm256_mul_ps(by, _mm256_set1_ps(x[m].scale[g])), acc[m][j]);
      }
    }
  }
  for (int m = 0; m < M; m++)
    for (int j = 0; j < 4; j++) {
      __m256 s = acc[m][j];
      for (int64_t g = 0; g < groups; g += 8)
        s = _mm256_fnmadd_ps(_mm256_loadu_ps(offset[j] + g), _mm256_loadu_ps(x[m].sums + g), s);
      float lane[8];
      _mm256_storeu_ps(lane, s);
      c[m * c_ld + j] = ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
    }
}

// c [m, c_ld] = x times rows n0 .. n0 + nb, with x in its quantised form.
template <class Rows>
inline void packed_block(const Elem* const* rows, int64_t m, const Rows& w, int64_t n0, int64_t nb, float* c,
                         int64_t c_ld) {
  const int64_t ld = padded(w.k), groups = ld / 32;
  float scale[4][kMaxGroups], offset[4][kMaxGroups];
  for (int64_t j = 0; j < nb; j += 4) {
    int64_t n[4];
    for (int r = 0; r < 4; r++) {
      n[r] = n0 + at_most(j + r, nb - 1);
      row_scales(w, n[r], groups, scale[r], offset[r]);
      for (int64_t g = groups; g < eights(groups); g++) offset[r][g] = 0;
    }
    int64_t i = 0;
    for (; i + 2 <= m; i += 2) {
      const Quantised x[2] = {{rows[i], ld}, {rows[i + 1], ld}};
      packed_tile<2>(x, w, n, groups, scale, offset, c + i * c_ld + j, c_ld);
    }
    if (i < m) {
      const Quantised x[1] = {{rows[i], ld}};
      packed_tile<1>(x, w, n, groups, scale, offset, c + i * c_ld + j, c_ld);
    }
  }
}
#else
constexpr int64_t kPackedRows = 0;  // no byte products here: the general path serves
constexpr int64_t kMaxGroups = 0;
inline void quantise_row(Elem*, const RowShape&) {}
template <class Rows>
inline void packed_block(const Elem* const*, int64_t, const Rows&, int64_t, int64_t, float*, int64_t) {}
#endif

// Whether products with this weight use byte products for few rows.
inline bool wants_bytes(const Weight& w) {
  return kPackedRows > 0 && (w.format == kInt4 || w.format == kMxfp4) && padded(w.k) / 32 <= kMaxGroups;
}

// x [rows, k] bf16 -> rows of that shape.
inline void take_rows(const bf16* x, int64_t rows, int64_t k, const RowShape& shape, Elem* to, int threads) {
#pragma omp parallel for num_threads(threads) if (rows > 64)
  for (int64_t t = 0; t < rows; t++) {
    Elem* row = to + t * shape.stride;
    widen_rows(x + t * k, 1, k, shape.ld, row);
    if (shape.quantised) quantise_row(row, shape);
  }
}

}  // namespace
}  // namespace PERILUNE_VARIANT
}  // namespace perilune
