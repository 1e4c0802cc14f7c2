// Vectors of the instruction set this file is compiled for, through GCC's and Clang's vector types.
//
// Elem is what a matrix product multiplies: bf16 where the processor multiplies bf16 (twice the rate and half the
// bytes), fp32 elsewhere. Sums are always fp32.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif
#include "kernels.h"

namespace perilune {
namespace PERILUNE_VARIANT {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float vf __attribute__((vector_size(4 * kLanes)));
typedef int32_t vi __attribute__((vector_size(4 * kLanes)));
typedef uint32_t vu __attribute__((vector_size(4 * kLanes)));
typedef uint16_t vh __attribute__((vector_size(2 * kLanes)));
typedef float vf_unaligned __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef uint16_t vh_unaligned __attribute__((vector_size(2 * kLanes), aligned(2), may_alias));

inline vf load(const float* p) { return *reinterpret_cast<const vf_unaligned*>(p); }
inline void store(float* p, vf x) { *reinterpret_cast<vf_unaligned*>(p) = x; }
// The general forms below say what is meant; x86 has an instruction for each, which GCC 12 does not find by itself.
inline vf load(const bf16* p) {
#if defined(__AVX512F__)
  return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16);
#elif defined(__AVX2__)
  return (vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16);
#else
  return (vf)(__builtin_convertvector((vh) * reinterpret_cast<const vh_unaligned*>(p), vu) << 16);
#endif
}
inline vf splat(float x) { return x - vf{}; }

inline float widen(bf16 x) {
  uint32_t bits = uint32_t(x) << 16;
  float y;
  memcpy(&y, &bits, 4);
  return y;
}
// Round to nearest even; NaN stays NaN.
inline bf16 narrow(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return (bits & 0x7fffffff) > 0x7f800000 ? bf16((bits >> 16) | 0x40) : bf16(rounded);
}
inline void store(bf16* p, vf x) {
#if defined(__AVX512BF16__)
  _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh((__m512)x));
#else
  vu bits = (vu)x;
  vu rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  vi nan = (vi)((bits & 0x7fffffff) > 0x7f800000);
  vu out = ((vu)nan & ((bits >> 16) | 0x40)) | (~(vu)nan & rounded);
  *reinterpret_cast<vh_unaligned*>(p) = __builtin_convertvector(out, vh);
#endif
}

// The order of additions is fixed: halves onto halves.
inline float sum(vf x) {
#if defined(__AVX2__)
#if defined(__AVX512F__)
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256((__m512)x), _mm512_extractf32x8_ps((__m512)x, 1));
#else
  const __m256 half = (__m256)x;
#endif
  __m128 q = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  q = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
#else
  float lane[kLanes];
  memcpy(lane, &x, sizeof lane);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; i++) lane[i] += lane[i + half];
  return lane[0];
#endif
}
inline vf vmax(vf a, vf b) { return a > b ? a : b; }
inline vf vmin(vf a, vf b) { return a < b ? a : b; }

// e^x to about 2 units in the last place; 0 below -87.3, x above 88.3 is taken as 88.3. Cody-Waite reduction, then a
// degree-6 polynomial (minimax coefficients as in Cephes' expf).
inline vf vexp(vf x) {
  vf clamped = vmax(vmin(x, splat(88.3f)), splat(-87.3f));
  vf n = clamped * 1.44269504088896341f;
  vi whole = __builtin_convertvector(n + (n > 0 ? splat(0.5f) : splat(-0.5f)), vi);
  vf k = __builtin_convertvector(whole, vf);
  vf r = clamped - k * 0.693359375f;
  r = r + k * 2.12194440e-4f;
  vf p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  vf y = (vf)((vi)p + (whole << 23));
  return x < -87.3f ? vf{} : y;
}
inline vf sigmoid(vf x) { return 1.0f / (1.0f + vexp(-x)); }
inline vf silu(vf x) { return x / (1.0f + vexp(-x)); }
// log(1 + e^x) = max(x, 0) + log1p(y), y = e^-|x|; log1p(y) = 2 atanh(y / (2 + y)), a series in s <= 1/3.
inline vf softplus(vf x) {
  vf y = vexp(x > 0 ? -x : x);
  vf s = y / (2.0f + y), q = s * s;
  vf p = splat(1.0f / 15);
  p = p * q + 1.0f / 13;
  p = p * q + 1.0f / 11;
  p = p * q + 1.0f / 9;
  p = p * q + 1.0f / 7;
  p = p * q + 1.0f / 5;
  p = p * q + 1.0f / 3;
  p = p * q + 1.0f;
  return vmax(x, vf{}) + 2.0f * s * p;
}

#if defined(__AVX512BF16__)
typedef bf16 Elem;
constexpr int kStep = 32;  // elements of one multiply-add
typedef __m512bh Operand;
inline Operand operand(const bf16* p) { return (__m512bh)_mm512_loadu_si512(p); }
inline vf multiply_add(vf acc, Operand a, Operand b) { return (vf)_mm512_dpbf16_ps((__m512)acc, a, b); }
#else
typedef float Elem;
constexpr int kStep = kLanes;
typedef vf Operand;
inline Operand operand(const float* p) { return load(p); }
inline Operand operand(const bf16* p) { return load(p); }
inline vf multiply_add(vf acc, Operand a, Operand b) { return acc + a * b; }
#endif

constexpr int64_t kPad = 32;  // rows of Elem are padded with zeros to a multiple of this
inline int64_t padded(int64_t k) { return (k + kPad - 1) / kPad * kPad; }
inline float float_of(float x) { return x; }
inline float float_of(bf16 x) { return widen(x); }
inline int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }

// kLanes bytes as whole numbers.
inline vi whole(const uint8_t* p) {
#if defined(__AVX512F__)
  return (vi)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p));
#elif defined(__AVX2__)
  return (vi)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
#else
  typedef uint8_t vb __attribute__((vector_size(kLanes)));
  vb bytes;
  memcpy(&bytes, p, sizeof bytes);
  return __builtin_convertvector(bytes, vi);
#endif
}

// count floats (a multiple of kLanes is fastest) to Elem.
inline void to_elem(const float* from, int64_t count, float* to) { memcpy(to, from, size_t(count) * 4); }
inline void to_elem(const float* from, int64_t count, bf16* to) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(to + i, load(from + i));
  for (; i < count; i++) to[i] = narrow(from[i]);
}
inline void to_elem(const bf16* from, int64_t count, bf16* to) { memcpy(to, from, size_t(count) * 2); }
inline void widen_to(const bf16* from, int64_t count, float* to) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(to + i, load(from + i));
  for (; i < count; i++) to[i] = widen(from[i]);
}
inline void to_elem(const bf16* from, int64_t count, float* to) { widen_to(from, count, to); }

// Scratch memory for the length of a call.
template <class T>
struct Buffer {
  T* p;
  explicit Buffer(int64_t count) : p(static_cast<T*>(aligned_alloc(64, (size_t(count) * sizeof(T) + 127) / 64 * 64))) {
    if (!p) abort();  // a few MB could not be had: the process is lost anyway
  }
  ~Buffer() { free(p); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  operator T*() { return p; }
};

// x [rows, k] bf16 as rows of Elem, `ld` apart, zeros behind k.
inline void widen_rows(const bf16* x, int64_t rows, int64_t k, int64_t ld, Elem* to) {
  for (int64_t t = 0; t < rows; t++) {
    to_elem(x + t * k, k, to + t * ld);
    memset(to + t * ld + k, 0, size_t(ld - k) * sizeof(Elem));
  }
}

}  // namespace
}  // namespace PERILUNE_VARIANT
}  // namespace perilune
