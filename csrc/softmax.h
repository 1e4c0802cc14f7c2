// What both forms of latent attention share: pages, and exponentials relative to a running maximum.
#pragma once
#include "simd.h"

namespace perilune {
namespace PERILUNE_VARIANT {
namespace {

constexpr int64_t kPage = 64;
constexpr float kNone = -3.0e38f;  // below every score; not -inf, whose difference with itself is NaN
constexpr float kLog2E = 1.44269504088896341f;

// 2^x for x <= 0 to 3 parts in a million (minimax polynomial), far beyond what a bf16 weight keeps. 0 below -126.
inline vf exp2_of(vf x) {
  const vf shifted = vmax(x, splat(-126.0f)) + 12582912.0f;  // the nearest whole number in the low bits
  const vf r = vmax(x, splat(-126.0f)) - (shifted - 12582912.0f);
  vf p = splat(9.58285e-3f);
  p = p * r + 5.590642e-2f;
  p = p * r + 2.4024099e-1f;
  p = p * r + 6.9312419e-1f;
  p = p * r + 1.0f;
  const vf y = (vf)((vi)p + ((vi)shifted << 23));
  return x < -126.0f ? vf{} : y;
}

}  // namespace
}  // namespace PERILUNE_VARIANT
}  // namespace perilune
