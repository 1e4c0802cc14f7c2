// Unpacking: rows of a stored matrix, in runs of 32 inputs, to registers. ops/linear/formats.py is the definition.
//
// int4 is computed in fp32 here, (q - zero) * scale, while the format's tool rounds that to bf16: where Elem is fp32
// a weight may differ from the reference's by half a bf16 step.
#pragma once
#include "dots.h"

namespace perilune {
namespace PERILUNE_VARIANT {
namespace {

constexpr int kUnpacked = 32 / kLanes;  // vectors of a run

typedef uint8_t u8x16 __attribute__((vector_size(16)));

// 16 bytes of nibbles, low nibble first -> 32 codes in order, each in the lower half of its byte.
__attribute__((always_inline)) inline void nibbles(const uint8_t* from, uint8_t* to) {
  u8x16 low;
  memcpy(&low, from, 16);
  const u8x16 high = low >> 4;
  u8x16 a = __builtin_shufflevector(low, high, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  u8x16 b = __builtin_shufflevector(low, high, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  memcpy(to, &a, 16);
  memcpy(to + 16, &b, 16);
}

// The nibbles of inputs k .. k + 32 of a row of `bytes` bytes; zero codes behind its end.
__attribute__((always_inline)) inline void nibbles_at(const uint8_t* row, int64_t bytes, int64_t k, uint8_t* to) {
  if (k / 2 + 16 <= bytes) return nibbles(row + k / 2, to);
  uint8_t tail[16] = {};
  memcpy(tail, row + k / 2, size_t(bytes - k / 2));
  nibbles(tail, to);
}

// Fetch `bytes` bytes that are read soon.
inline void fetch(const void* p, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch((const char*)p + i);
}

// A division is slower than unpacking; groups of 32 need none.
inline int64_t group_of(int64_t at, int64_t group) { return group == 32 ? at >> 5 : at / group; }

struct Bf16Rows {
  static constexpr bool kDense = true;
  const bf16* data;
  int64_t k;
  Bf16Rows(const Weight& w, int64_t expert) : data((const bf16*)w.data + expert * w.n * w.k), k(w.k) {}
  const bf16* row(int64_t n) const { return data + n * k; }
  void fetch_row(int64_t n) const { fetch(row(n), k * 2); }
  __attribute__((always_inline)) void values(int64_t n, int64_t at, vf* to) const {
    bf16 tail[32] = {};
    const bf16* from = row(n) + at;
    if (k - at < 32) from = (const bf16*)memcpy(tail, from, size_t(k - at) * sizeof(bf16));
    for (int i = 0; i < kUnpacked; i++) to[i] = load(from + i * kLanes);
  }
};

struct Int4Rows {
  static constexpr bool kDense = false;
  const uint8_t* data;
  const bf16* scale;
  const int8_t* zero;
  int64_t k, bytes, groups, group;
  Int4Rows(const Weight& w, int64_t expert)
      : k(w.k), bytes((w.k + 7) / 8 * 4), groups((w.k + w.group - 1) / w.group), group(w.group) {
    data = w.data + expert * w.n * bytes;
    scale = (const bf16*)w.scale + expert * w.n * groups;
    zero = w.zero ? w.zero + expert * w.n * groups : nullptr;
  }
  void fetch_row(int64_t n) const { fetch(data + n * bytes, bytes), fetch(scale + n * groups, groups * 2); }
  __attribute__((always_inline)) void values(int64_t n, int64_t at, vf* to) const {
    uint8_t code[32];
    nibbles_at(data + n * bytes, bytes, at, code);
    const int64_t g = n * groups + group_of(at, group);
    for (int i = 0; i < kUnpacked; i++) to[i] = signed_nibbles(whole(code + i * kLanes));
    if (zero)
      for (int i = 0; i < kUnpacked; i++) to[i] -= float(zero[g]);
    for (int i = 0; i < kUnpacked; i++) to[i] *= widen(scale[g]);
  }
};

struct Mxfp4Rows {
  static constexpr bool kDense = false;
  const uint8_t* data;
  const uint8_t* scale;
  int64_t k, bytes, groups;
  Mxfp4Rows(const Weight& w, int64_t expert) : k(w.k), bytes(w.k / 2), groups((w.k + 31) / 32) {
    data = w.data + expert * w.n * bytes;
    scale = (const uint8_t*)w.scale + expert * w.n * groups;
  }
  void fetch_row(int64_t n) const { fetch(data + n * bytes, bytes), fetch(scale + n * groups, groups); }
  __attribute__((always_inline)) void values(int64_t n, int64_t at, vf* to) const {
    uint8_t code[32];
    nibbles_at(data + n * bytes, bytes, at, code);
    uint8_t exponent = scale[n * groups + at / 32];
    float s = widen(exponent == 255 ? 0x7fc0 : exponent == 0 ? 0x0040 : bf16(exponent << 7));
    // e2m1 magnitudes 0, .5, 1, 1.5, 2, 3, 4, 6 in quarters
    for (int i = 0; i < kUnpacked; i++) {
      vi c = whole(code + i * kLanes) & 15, m = c & 7;
      vi quarters = m < 4 ? m * 2 : m == 4 ? 8 + vi{} : m == 5 ? 12 + vi{} : m == 6 ? 16 + vi{} : 24 + vi{};
      to[i] = to_float((c & 8) != 0 ? -quarters : quarters) * (0.25f * s);
    }
  }
};

struct Fp8Rows {
  static constexpr bool kDense = false;
  const uint8_t* data;
  const float* scale;
  int64_t k, across;
  Fp8Rows(const Weight& w, int64_t expert) : k(w.k), across((w.k + 127) / 128) {
    data = w.data + expert * w.n * w.k;
    scale = (const float*)w.scale + expert * ((w.n + 127) / 128) * across;
  }
  void fetch_row(int64_t n) const { fetch(data + n * k, k); }
  __attribute__((always_inline)) void values(int64_t n, int64_t at, vf* to) const {
    uint8_t tail[32] = {};
    const uint8_t* code = data + n * k + at;
    if (k - at < 32) code = (const uint8_t*)memcpy(tail, code, size_t(k - at));
    float s = scale[n / 128 * across + at / 128];
    // e4m3: move the fields into an fp32's; subnormals (exponent field 0) are then 2 (f - 2^-7). 0x7f is NaN.
    for (int i = 0; i < kUnpacked; i++) {
      vi c = whole(code + i * kLanes);
      vf f = (vf)(((c & 0x7f) << 20) + (120 << 23));
      f = (c & 0x78) != 0 ? f : 2.0f * (f - 0.0078125f);
      f = (c & 0x7f) == 0x7f ? splat(__builtin_nanf("")) : f;
      to[i] = ((c & 0x80) != 0 ? -f : f) * s;
    }
  }
};

struct Int8Rows {
  static constexpr bool kDense = false;
  const int8_t* data;
  const bf16* scale;
  int64_t k, groups, group;
  Int8Rows(const Weight& w, int64_t expert) : k(w.k), groups((w.k + w.group - 1) / w.group), group(w.group) {
    data = (const int8_t*)w.data + expert * w.n * k;
    scale = (const bf16*)w.scale + expert * w.n * groups;
  }
  void fetch_row(int64_t n) const { fetch(data + n * k, k), fetch(scale + n * groups, groups * 2); }
  __attribute__((always_inline)) void values(int64_t n, int64_t at, vf* to) const {
    int8_t tail[32] = {};
    const int8_t* code = data + n * k + at;
    if (k - at < 32) code = (const int8_t*)memcpy(tail, code, size_t(k - at));
    const float s = widen(scale[n * groups + group_of(at, group)]);
    for (int i = 0; i < kUnpacked; i++) to[i] = to_float(whole_signed(code + i * kLanes)) * s;
  }
};

// Inputs at .. at + 32 of row n as Elem; zeros behind the row's end.
template <class Rows>
inline void unpack(const Rows& w, int64_t n, int64_t at, Elem* to) {
  vf value[kUnpacked];
  w.values(n, at, value);
  for (int i = 0; i < kUnpacked; i++) store(to + i * kLanes, value[i]);
}

// f(rows) with the reader of one matrix of the stack.
template <class F>
inline void with_rows(const Weight& w, int64_t expert, F&& f) {
  switch (w.format) {
    case kBf16: return f(Bf16Rows(w, expert));
    case kInt4: return f(Int4Rows(w, expert));
    case kMxfp4: return f(Mxfp4Rows(w, expert));
    case kInt8: return f(Int8Rows(w, expert));
    default: return f(Fp8Rows(w, expert));
  }
}

}  // namespace
}  // namespace PERILUNE_VARIANT
}  // namespace perilune
