// CRC-32, the one of zlib and Ethernet, by carry-less products: bytes that moved are checked at the rate they are read.
//
// Bytes are a polynomial over two elements, of which only the remainder modulo P counts. So what lies n bits before the
// last block may be multiplied by x^n mod P and added to it: many bytes become one block, which is divided byte by byte. (Gopal and others, "Fast CRC Computation for Generic Polynomials", Intel, 2009.) Bits are
// reflected, as in every such CRC: the lowest bit of the first byte has the highest power.
#include "crc.h"

#include <array>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace perilune {
namespace {

constexpr uint32_t kP = 0xedb88320;  // without x^32

constexpr uint32_t times_x(uint32_t r) { return (r >> 1) ^ (r & 1 ? kP : 0); }

struct Table {
  std::array<uint32_t, 256> of{};
  constexpr Table() {
    for (uint32_t byte = 0; byte < 256; byte++) {
      of[byte] = byte;
      for (int bit = 0; bit < 8; bit++) of[byte] = times_x(of[byte]);
    }
  }
};
constexpr Table kTable;

uint32_t by_bytes(uint32_t r, const uint8_t* p, int64_t n) {
  for (; n; n--) r = (r >> 8) ^ kTable.of[(r ^ *p++) & 255];
  return r;
}

#if defined(__x86_64__)
// What multiplies 64 bits by x^n, modulo P. A number of 32 bits, one up in a lane of 64, is read as x^31 times itself,
// and the product of two lanes comes out x times too high: 32 powers that are left out here.
constexpr int64_t carry(int n) {
  uint32_t r = 0x80000000;  // 1
  for (n -= 32; n; n--) r = times_x(r);
  return int64_t(r) << 1;
}

constexpr int64_t kNarrow = 64, kWide = 256;
constexpr int64_t kOverNarrow[2] = {carry(8 * kNarrow + 64), carry(8 * kNarrow)};  // for the higher powers, the lower
constexpr int64_t kOverWide[2] = {carry(8 * kWide + 64), carry(8 * kWide)};

// Each adds `n` bytes, a multiple of the block, to remainder `r` and leaves a block of the same remainder in `block`.

__attribute__((target("pclmul,sse4.1"))) void fold_narrow(uint32_t r, const uint8_t* p, int64_t n, uint8_t* block) {
  const __m128i over = _mm_loadu_si128(reinterpret_cast<const __m128i*>(kOverNarrow));
  __m128i sum[4];
  for (int i = 0; i < 4; i++) sum[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p) + i);
  sum[0] = _mm_xor_si128(sum[0], _mm_cvtsi32_si128(int(r)));
  for (int64_t at = kNarrow; at < n; at += kNarrow)
    for (int i = 0; i < 4; i++) {
      const __m128i next = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + at) + i);
      sum[i] = _mm_xor_si128(_mm_xor_si128(_mm_clmulepi64_si128(sum[i], over, 0x00),
                                           _mm_clmulepi64_si128(sum[i], over, 0x11)), next);
    }
  for (int i = 0; i < 4; i++) _mm_storeu_si128(reinterpret_cast<__m128i*>(block) + i, sum[i]);
}

__attribute__((target("avx512f,avx512dq,vpclmulqdq"))) void fold_wide(uint32_t r, const uint8_t* p, int64_t n,
                                                                      uint8_t* block) {
  const __m512i over = _mm512_broadcast_i64x2(_mm_loadu_si128(reinterpret_cast<const __m128i*>(kOverWide)));
  __m512i sum[4];
  for (int i = 0; i < 4; i++) sum[i] = _mm512_loadu_si512(p + 64 * i);
  sum[0] = _mm512_xor_si512(sum[0], _mm512_zextsi128_si512(_mm_cvtsi32_si128(int(r))));
  for (int64_t at = kWide; at < n; at += kWide)
    for (int i = 0; i < 4; i++)
      sum[i] = _mm512_ternarylogic_epi64(_mm512_clmulepi64_epi128(sum[i], over, 0x00),
                                         _mm512_clmulepi64_epi128(sum[i], over, 0x11),
                                         _mm512_loadu_si512(p + at + 64 * i), 0x96);  // all three added
  for (int i = 0; i < 4; i++) _mm512_storeu_si512(block + 64 * i, sum[i]);
}
#endif

}  // namespace

int64_t crc32_block() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("vpclmulqdq")) return kWide;
  if (__builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1")) return kNarrow;
#endif
  return 0;
}

uint32_t crc32(uint32_t crc, const uint8_t* p, int64_t n, int64_t block) {
  uint32_t r = ~crc;
#if defined(__x86_64__)
  if (block && n >= 2 * block) {
    alignas(64) uint8_t last[kWide];
    const int64_t whole = n / block * block;
    (block == kWide ? fold_wide : fold_narrow)(r, p, whole, last);
    r = by_bytes(0, last, block);
    p += whole;
    n -= whole;
  }
#endif
  return ~by_bytes(r, p, n);
}

}  // namespace perilune
