// The sigmoid router of ops/moe/reference.py: scores in fp32, groups, the top k, their weights. Floor for few tokens:
// the bytes of the router.
#pragma once
#include "simd.h"

namespace perilune {
namespace PERILUNE_VARIANT {
namespace {

// A step of x (bf16) times a router's row: pairs of bf16 where both are bf16 and there is an instruction, else fp32.
constexpr int64_t step_of(const bf16*) { return kStep; }
constexpr int64_t step_of(const float*) { return kLanes; }
inline vf step(vf acc, const bf16* x, const bf16* w) { return multiply_add(acc, operand(x), operand(w)); }
inline vf step(vf acc, const bf16* x, const float* w) { return acc + load(x) * load(w); }

// scores [M, ld] of N experts.
template <int M, int N, class W>
inline void score_tile(const bf16* x, const W* w, int64_t dim, float* scores, int64_t ld) {
  constexpr int64_t each = step_of((const W*)nullptr);
  vf acc[M][N] = {};
  int64_t k = 0;
  for (; k + each <= dim; k += each)
    for (int m = 0; m < M; m++)
      for (int e = 0; e < N; e++) acc[m][e] = step(acc[m][e], x + m * dim + k, w + e * dim + k);
  for (int m = 0; m < M; m++)
    for (int e = 0; e < N; e++) {
      float s = sum(acc[m][e]);
      for (int64_t t = k; t < dim; t++) s += widen(x[m * dim + t]) * float_of(w[e * dim + t]);
      scores[m * ld + e] = s;
    }
}

template <int N, class W>
inline void score_tokens(const RouteArgs& a, const W* router, int64_t t, int64_t last, int64_t e, float* scores,
                         int64_t ld) {
  const W* w = router + e * a.dim;
  for (; t + 4 <= last; t += 4) score_tile<4, N>(a.x + t * a.dim, w, a.dim, scores + t * ld + e, ld);
  for (; t < last; t++) score_tile<1, N>(a.x + t * a.dim, w, a.dim, scores + t * ld + e, ld);
}

// The largest of v [n], n a multiple of kLanes, and where it first stands; it is taken out.
inline int64_t take_largest(float* v, int64_t n) {
  vf most = load(v);
  for (int64_t i = kLanes; i < n; i += kLanes) most = vmax(most, load(v + i));
  float top = most[0];
  for (int l = 1; l < kLanes; l++) top = most[l] > top ? most[l] : top;
  int64_t at = 0;
  while (v[at] != top) at++;
  v[at] = -__builtin_inff();
  return at;
}

// One token: logits [E] in, with room for `ld` of them as in `choice`; ids and weights out.
inline void choose(const RouteArgs& a, float* scores, float* choice, int64_t ld, int64_t* ids, float* weights) {
  const float none = -__builtin_inff();
  for (int64_t e = a.experts; e < ld; e++) scores[e] = 0;
  for (int64_t e = 0; e < ld; e += kLanes) {
    const vf logit = load(scores + e);
    store(scores + e, logit == logit ? sigmoid(logit) : logit);
  }
  for (int64_t e = 0; e < a.experts; e++) {
    const float biased = scores[e] + a.bias[e];
    choice[e] = biased == biased ? biased : none;  // a NaN is never preferred, and never an index there is not
  }
  for (int64_t e = a.experts; e < ld; e++) choice[e] = none;
  if (a.groups > 1) {
    const int64_t size = a.experts / a.groups;
    Buffer<float> strength(a.groups + kLanes);
    for (int64_t g = 0; g < a.groups + kLanes; g++) strength[g] = none;
    for (int64_t g = 0; g < a.groups; g++) {
      float first = none, second = none;
      for (int64_t e = g * size; e < (g + 1) * size; e++) {
        second = choice[e] > first ? first : choice[e] > second ? choice[e] : second;
        first = choice[e] > first ? choice[e] : first;
      }
      strength[g] = first + second;
    }
    Buffer<uint8_t> kept(a.groups);
    memset(kept.p, 0, size_t(a.groups));
    for (int64_t i = 0; i < a.top_groups; i++)
      kept[take_largest(strength, (a.groups + kLanes - 1) / kLanes * kLanes)] = 1;
    for (int64_t e = 0; e < a.experts; e++) choice[e] = kept[e / size] ? choice[e] : none;
  }
  float total = 0;
  for (int64_t i = 0; i < a.top_k; i++) {
    ids[i] = take_largest(choice, ld);
    weights[i] = scores[ids[i]];
    total += weights[i];
  }
  const float by = a.renormalise ? a.scaling / (total + 1e-20f) : a.scaling;
  for (int64_t i = 0; i < a.top_k; i++) weights[i] *= by;
}

template <class W>
inline void route_with(const RouteArgs& a, const W* router) {
  constexpr int64_t kBlockTokens = 64, kBlockExperts = 16;
  const int64_t ld = (a.experts + kBlockExperts - 1) / kBlockExperts * kBlockExperts;
  const int64_t across = ld / kBlockExperts, down = (a.tokens + kBlockTokens - 1) / kBlockTokens;
  Buffer<float> scores(a.tokens * ld);
#pragma omp parallel num_threads(a.threads)
  {
    Buffer<float> choice(ld);
#pragma omp for schedule(static)
    for (int64_t item = 0; item < down * across; item++) {
      const int64_t t0 = item / across * kBlockTokens, t1 = at_most(t0 + kBlockTokens, a.tokens);
      int64_t e = item % across * kBlockExperts;
      const int64_t last = at_most(e + kBlockExperts, a.experts);
      for (; e + 4 <= last; e += 4) score_tokens<4>(a, router, t0, t1, e, scores, ld);
      for (; e < last; e++) score_tokens<1>(a, router, t0, t1, e, scores, ld);
    }
#pragma omp for schedule(static)
    for (int64_t t = 0; t < a.tokens; t++)
      choose(a, scores + t * ld, choice, ld, a.ids + t * a.top_k, a.weights + t * a.top_k);
  }
}

inline void route(const RouteArgs& a) {
  if (a.wide)
    route_with(a, (const float*)a.router);
  else
    route_with(a, (const bf16*)a.router);
}

}  // namespace
}  // namespace PERILUNE_VARIANT
}  // namespace perilune
