// Scales of runs, and their products with the scales of weights.
//
// Next to eight products of bytes a multiplication of floats is dear: it takes the same ports. So a run's scale is one of
// (1 + k/8) 2^e. Where there is an instruction that scales by a power of two on other ports, a tile makes the eight
// multiples of its weights' scales once per run, and each of its rows shifts one of them. Both ways give the same bits:
// scales of weights have few digits, so nothing is rounded.
#pragma once
#include "dots.h"

namespace perilune {
namespace PERILUNE_VARIANT {
namespace {

constexpr int kLevels = 8;
constexpr int kLevelShift = 20;  // of an fp32's bits: what is left are three digits behind the first

// The next scale that is not below x > 0; x * 2^-8 is not subnormal.
inline float scale_above(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  bits = (bits + (1u << kLevelShift) - 1) >> kLevelShift << kLevelShift;
  memcpy(&x, &bits, 4);
  return x;
}

#if defined(__AVX512F__)
// A scale as the tiles read it: e + 1/2 as a float, which rounds down to e, and k * 64 in its lowest bits, which are
// free: where the multiple lies among those of the weights.
inline word scale_word(float scale) {
  uint32_t bits, found;
  memcpy(&bits, &scale, 4);
  const float power = float(int32_t(bits >> 23) - 127) + 0.5f;
  memcpy(&found, &power, 4);
  return found | (bits >> kLevelShift) % kLevels * 64;
}
inline vf times_power(vf x, const word* power) {
  vf y;
  asm("vscalefps %2%{1to16%}, %1, %0" : "=v"(y) : "v"(x), "m"(*power));
  return y;
}
// What times the scales of rows is `one`. kMany: of so many that its multiples are worth making.
template <bool kMany>
struct Scaled {
  vf one;
  explicit Scaled(vf one) : one(one) {}
  vf times(const word* p) const {
    alignas(32) static constexpr float level[kLevels] = {1, 1.125f, 1.25f, 1.375f, 1.5f, 1.625f, 1.75f, 1.875f};
    return times_power(one * level[*p / 64 % kLevels], p);
  }
};
template <>
struct Scaled<true> {
  alignas(64) float level[kLevels][kLanes];
  explicit Scaled(vf one) {
    for (int k = 0; k < kLevels; k++) store(level[k], one * (1 + 0.125f * float(k)));
  }
  vf times(const word* p) const {
    return times_power(load((const float*)((const char*)level + *p % (64 * kLevels))), p);
  }
};
#else
inline word scale_word(float scale) {
  word found;
  memcpy(&found, &scale, 4);
  return found;
}
template <bool>
struct Scaled {
  vf one;
  explicit Scaled(vf one) : one(one) {}
  vf times(const word* p) const { return one * splat_float(*p); }
};
#endif

}  // namespace
}  // namespace PERILUNE_VARIANT
}  // namespace perilune
