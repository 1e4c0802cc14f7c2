// Products of small numbers: four bytes or two bf16 of each 32-bit lane at a time, added up in that lane.
//
// A `word` is 32 bits: four int8 or two bf16 of consecutive inputs. Every form below gives the same sums: those of bytes
// are exact, those of bf16 are exact products added one after the other (x86's instruction flushes subnormals).
#pragma once
#include "simd.h"

namespace perilune {
namespace PERILUNE_VARIANT {
namespace {

typedef uint32_t word;
typedef word vu_unaligned __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

inline vu load_words(const void* p) { return *reinterpret_cast<const vu_unaligned*>(p); }
inline vu splat(word x) { return x - vu{}; }
inline vf splat_float(word bits) { return (vf)splat(bits); }
inline vf to_float(vi x) {
#if defined(__AVX512F__)
  return (vf)_mm512_cvtepi32_ps((__m512i)x);
#elif defined(__AVX2__)
  return (vf)_mm256_cvtepi32_ps((__m256i)x);
#else
  return __builtin_convertvector(x, vf);
#endif
}
inline vf fused(vf a, vf b, vf sum) {
#if defined(__AVX512F__)
  return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)sum);
#elif defined(__AVX2__)
  return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)sum);
#else
  return a * b + sum;
#endif
}

inline float largest(vf x) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps((__m512)x);
#else
  float lane[kLanes], most = x[0];
  memcpy(lane, &x, sizeof lane);
  for (int i = 1; i < kLanes; i++) most = lane[i] > most ? lane[i] : most;
  return most;
#endif
}
// The nearest whole number, ties to even, of values below 2^22; anything for NaN.
inline vi nearest(vf x) {
  const vf shift = splat(12582912.0f);  // 1.5 * 2^23: its last bit is worth one
  return (vi)((vu)(x + shift) - (vu)shift);
}
// kLanes whole numbers as bytes.
inline void store_bytes(int8_t* to, vi x) {
#if defined(__AVX512F__)
  _mm_storeu_si128((__m128i*)to, _mm512_cvtepi32_epi8((__m512i)x));
#elif defined(__AVX2__)
  const __m128i half = _mm_packs_epi32(_mm256_castsi256_si128((__m256i)x), _mm256_extracti128_si256((__m256i)x, 1));
  _mm_storel_epi64((__m128i*)to, _mm_packs_epi16(half, half));
#else
  for (int i = 0; i < kLanes; i++) to[i] = int8_t(x[i]);
#endif
}
// Of 32 bytes.
inline int32_t sum_of_bytes(const int8_t* p) {
#if defined(__AVX2__)
  const __m256i shifted = _mm256_xor_si256(_mm256_loadu_si256((const __m256i*)p), _mm256_set1_epi8(-128));
  const __m256i four = _mm256_sad_epu8(shifted, _mm256_setzero_si256());
  const __m128i two = _mm_add_epi64(_mm256_castsi256_si128(four), _mm256_extracti128_si256(four, 1));
  return int32_t(_mm_cvtsi128_si64(two) + _mm_extract_epi64(two, 1)) - 32 * 128;
#else
  int32_t total = 0;
  for (int i = 0; i < 32; i++) total += p[i];
  return total;
#endif
}

typedef uint8_t vb __attribute__((vector_size(4 * kLanes)));
typedef uint16_t vs __attribute__((vector_size(4 * kLanes)));

inline vu add_bytes(vu a, vu b) { return (vu)((vb)a + (vb)b); }
// table[byte & 15] of each byte below 128.
inline vu look_up_bytes(const uint8_t* table, vu index) {
#if defined(__AVX512F__)
  const __m512i all = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)table));
  return (vu)_mm512_shuffle_epi8(all, (__m512i)index);
#elif defined(__AVX2__)
  const __m256i all = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)table));
  return (vu)_mm256_shuffle_epi8(all, (__m256i)index);
#else
  vb bytes = (vb)index;
  for (int i = 0; i < 4 * kLanes; i++) bytes[i] = table[bytes[i] & 15];
  return (vu)bytes;
#endif
}
// What the low four bits of each lane stand for in int4: their value less 8.
inline vf signed_nibbles(vi x) {
#if defined(__AVX512F__)
  alignas(64) static constexpr float value[16] = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
  return (vf)_mm512_permutexvar_ps((__m512i)x, _mm512_load_ps(value));
#else
  return to_float((x & 15) - 8);
#endif
}
// kLanes signed bytes as whole numbers.
inline vi whole_signed(const int8_t* p) { return ((whole((const uint8_t*)p) ^ 128) - 128); }
// e4m3 codes in 16-bit lanes -> bf16, exactly: fields move up by four bits and the exponent's bias from 7 to 127; the
// seven subnormals are looked up, 0x7f is NaN.
inline vu e4m3_pairs(vu codes) {
  alignas(16) static constexpr uint8_t high[16] = {0, 0x3b, 0x3b, 0x3b, 0x3c, 0x3c, 0x3c, 0x3c};
  alignas(16) static constexpr uint8_t low[16] = {0, 0x00, 0x80, 0xc0, 0x00, 0x20, 0x40, 0x60};
  const vs code = (vs)codes, f = code & 0x7f;
  const vs small = ((vs)look_up_bytes(high, (vu)f) << 8) | (vs)look_up_bytes(low, (vu)f);
  vs bits = f < 8 ? small : (f << 4) + 0x3c00;
  bits = f == 0x7f ? 0x7fc0 + vs{} : bits;
  return (vu)(bits | ((code & 0x80) << 8));
}

// sum + u0 s0 + u1 s1 + u2 s2 + u3 s3, u unsigned and s signed bytes. Without VNNI, sums of two products pass through 16
// bits: u <= 128 then, unless `wide` asks for the longer way.
template <bool wide>
inline vi dot4(vi sum, vu u, vu s) {
#if defined(__AVX512VNNI__)
  return (vi)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)u, (__m512i)s);
#else
  if constexpr (wide) {
    [[maybe_unused]] const vu even = u & 0x00ff00ff, odd = (u >> 8) & 0x00ff00ff;
#if defined(__AVX512F__)
    const __m512i low = _mm512_srai_epi16(_mm512_slli_epi16((__m512i)s, 8), 8), high = _mm512_srai_epi16((__m512i)s, 8);
    return sum + (vi)_mm512_madd_epi16((__m512i)even, low) + (vi)_mm512_madd_epi16((__m512i)odd, high);
#elif defined(__AVX2__)
    const __m256i low = _mm256_srai_epi16(_mm256_slli_epi16((__m256i)s, 8), 8), high = _mm256_srai_epi16((__m256i)s, 8);
    return sum + (vi)_mm256_madd_epi16((__m256i)even, low) + (vi)_mm256_madd_epi16((__m256i)odd, high);
#endif
  }
#if defined(__AVX512F__)
  return sum + (vi)_mm512_madd_epi16(_mm512_maddubs_epi16((__m512i)u, (__m512i)s), _mm512_set1_epi16(1));
#elif defined(__AVX2__)
  return sum + (vi)_mm256_madd_epi16(_mm256_maddubs_epi16((__m256i)u, (__m256i)s), _mm256_set1_epi16(1));
#else
  for (int i = 0; i < 32; i += 8) sum += (vi)((u >> i) & 255) * (((vi)s << (24 - i)) >> 24);
  return sum;
#endif
#endif
}

// The same with the bytes of one word against every lane. GCC 12 does not let the product read the word from memory by
// itself, and then has too few registers.
template <bool wide>
inline vi dot4(vi sum, vu u, const word* s) {
#if defined(__AVX512VNNI__)
  asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(u), "m"(*s));
  return sum;
#else
  return dot4<wide>(sum, u, splat(*s));
#endif
}

// sum + a0 b0 + a1 b1 of bf16.
inline vf dot2(vf sum, vu a, vu b) {
#if defined(__AVX512BF16__)
  return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
  sum = fused((vf)(a & 0xffff0000), (vf)(b & 0xffff0000), sum);
  return fused((vf)(a << 16), (vf)(b << 16), sum);
#endif
}

}  // namespace
}  // namespace PERILUNE_VARIANT
}  // namespace perilune
