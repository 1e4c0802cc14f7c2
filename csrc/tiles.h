// Weights in strips of 16 outputs, times panels of rows.
//
// ops/linear/tiled.py lays a matrix out once, after loading: the 32-bit words of 16 rows side by side, so that one
// vector holds one word of each of 16 outputs. A tile reads a strip front to back, unpacks a run of 32 inputs into
// registers, and uses it for every row of a panel. Floor for few rows: the bytes of the strip. For many: products of
// bytes, eight per run and row, next to which scaling costs two.
//
// A sum runs over the inputs in order, one addition per run for byte products, whatever the number of rows, the
// instruction set and the number of threads: a row's bits depend on nothing else.
#pragma once
#include "rows.h"

namespace perilune {
namespace PERILUNE_VARIANT {
namespace {

constexpr int64_t kStrip = 16;
constexpr int kParts = int(kStrip) / kLanes;  // vectors across a strip

inline int64_t strip_of(const Weight& w, int64_t expert, int64_t strip) { return expert * (w.n / kStrip) + strip; }
inline int64_t group_count(const Weight& w) { return (w.k + w.group - 1) / w.group; }

// Fetch what is read a little later: with many sums in flight the processor does not look far enough ahead by itself.
// To the second level: the first has fewer requests under way, and memory is read 3 to 7 % slower through them.
constexpr int64_t kAhead = 8192;
inline void fetch_ahead(const void* p) { __builtin_prefetch((const char*)p + kAhead, 0, 2); }

// One strip of each format. `codes` and `pairs` unpack what belongs to vector `part` of a run.
struct Int4Strip {
  static constexpr bool kBytes = true, kWide = false;
  const uint8_t* data;
  const bf16* scale;
  int64_t each;  // runs per scale
  Int4Strip(const Weight& w, int64_t expert, int64_t strip)
      {
    strip = strip_of(w, expert, strip);
    data = w.data + strip * w.k * 8;
    scale = (const bf16*)w.scale + strip * kStrip * group_count(w);
    each = w.group / kRun;
  }
  void codes(int64_t run, int part, vu* to) const {
    for (int i = 0; i < 4; i++) {
      fetch_ahead(data + (run * 4 + i) * 64);
      const vu packed = load_words(data + (run * 4 + i) * 64 + part * 4 * kLanes);
      to[2 * i] = packed & 0x0f0f0f0f;
      to[2 * i + 1] = (packed >> 4) & 0x0f0f0f0f;
    }
  }
  vf scales(int64_t run, int part) const { return load(scale + run / each * kStrip + part * kLanes); }
};

struct Int4ZeroStrip : Int4Strip {
  const int8_t* zero;
  Int4ZeroStrip(const Weight& w, int64_t expert, int64_t strip) : Int4Strip(w, expert, strip), zero(w.zero) {
    zero += strip_of(w, expert, strip) * kStrip * group_count(w);
  }
  void codes(int64_t run, int part, vu* to) const {  // code - 8 - zero + 15
    const vu byte = (vu)(7 - whole_signed(zero + run / each * kStrip + part * kLanes));
    const vu shift = byte * 0x01010101;
    Int4Strip::codes(run, part, to);
    for (int i = 0; i < 8; i++) to[i] = add_bytes(to[i], shift);
  }
};

struct Mxfp4Strip {
  static constexpr bool kBytes = true, kWide = false;
  const uint8_t* data;
  const uint8_t* scale;
  Mxfp4Strip(const Weight& w, int64_t expert, int64_t strip) {
    strip = strip_of(w, expert, strip);
    data = w.data + strip * w.k * 8;
    scale = (const uint8_t*)w.scale + strip * (w.k / 2);
  }
  void codes(int64_t run, int part, vu* to) const {  // twice the value, plus 12
    for (int i = 0; i < 4; i++) {
      fetch_ahead(data + (run * 4 + i) * 64);
      const vu packed = load_words(data + (run * 4 + i) * 64 + part * 4 * kLanes);
      to[2 * i] = look_up(packed & 0x0f0f0f0f);
      to[2 * i + 1] = look_up((packed >> 4) & 0x0f0f0f0f);
    }
  }
  vf scales(int64_t run, int part) const {  // half of 2^(e - 127); 0 means 2^-127 and 255 NaN
    const vi e = whole(scale + run * kStrip + part * kLanes);
    vi bits = e == 0 ? 0x00400000 + vi{} : e << 23;
    bits = e == 255 ? 0x7fc00000 + vi{} : bits;
    return (vf)bits * 0.5f;
  }
  static vu look_up(vu code) {
    alignas(16) static constexpr uint8_t table[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};
    return look_up_bytes(table, code);
  }
};

struct Int8Strip {
  static constexpr bool kBytes = true, kWide = true;
  const uint8_t* data;
  const bf16* scale;
  int64_t each;
  Int8Strip(const Weight& w, int64_t expert, int64_t strip)
      {
    strip = strip_of(w, expert, strip);
    data = w.data + strip * w.k * kStrip;
    scale = (const bf16*)w.scale + strip * kStrip * group_count(w);
    each = w.group / kRun;
  }
  void codes(int64_t run, int part, vu* to) const {
    for (int i = 0; i < 8; i++) {
      fetch_ahead(data + (run * 8 + i) * 64);
      to[i] = load_words(data + (run * 8 + i) * 64 + part * 4 * kLanes) ^ 0x80808080;
    }
  }
  vf scales(int64_t run, int part) const { return load(scale + run / each * kStrip + part * kLanes); }
};

struct Bf16Strip {
  static constexpr bool kBytes = false;
  static constexpr int64_t kScaled = 1 << 30;  // runs per scale: none
  const bf16* data;
  Bf16Strip(const Weight& w, int64_t expert, int64_t strip)
      : data((const bf16*)w.data + strip_of(w, expert, strip) * w.k * kStrip) {}
  void pairs(int64_t run, int part, int i, vu* to) const {
    for (int j = 0; j < 2; j++) {
      fetch_ahead(data + (run * 16 + i * 2 + j) * 32);
      to[j] = load_words(data + (run * 16 + i * 2 + j) * 32 + part * 2 * kLanes);
    }
  }
  float scale(int64_t) const { return 1; }
};

struct Fp8Strip {
  static constexpr bool kBytes = false;
  static constexpr int64_t kScaled = 4;  // 128 inputs
  const uint8_t* data;
  const float* scales;
  Fp8Strip(const Weight& w, int64_t expert, int64_t strip)
      : data(w.data + strip_of(w, expert, strip) * w.k * kStrip), scales((const float*)w.scale) {
    scales += (expert * ((w.n + 127) / 128) + strip * kStrip / 128) * ((w.k + 127) / 128);
  }
  void pairs(int64_t run, int part, int i, vu* to) const {
    fetch_ahead(data + (run * 8 + i) * 64);
    const vu packed = load_words(data + (run * 8 + i) * 64 + part * 4 * kLanes);
    to[0] = e4m3_pairs(packed & 0x00ff00ff);
    to[1] = e4m3_pairs((packed >> 8) & 0x00ff00ff);
  }
  float scale(int64_t run) const { return scales[run / kScaled]; }
};

#if defined(__AVX512VNNI__)
constexpr int kTogether = 2;  // rows whose products take turns: each waits for the one before it in its own sum
#else
constexpr int kTogether = 1;
#endif

// sum [N] += N rows' runs times the codes of a strip. x is the first row's first word; its next one lies M behind.
template <int M, int N, bool Fine, bool Wide, class Scales>
__attribute__((always_inline)) inline void add_runs(const word* x, const vu* code, const Scales& scale, vf* sum) {
  constexpr int kBytes = (Fine ? 2 : 1) * kByteWords;
  vi dot[N], high[N] = {};
  for (int n = 0; n < N; n++) dot[n] = (vi)splat(x[(kBytes + 1) * M + n]);
  for (int i = 0; i < kByteWords; i++)
    for (int n = 0; n < N; n++) {
      if constexpr (Fine) high[n] = dot4<Wide>(high[n], code[i], x + i * M + n);
      dot[n] = dot4<Wide>(dot[n], code[i], x + (kBytes - kByteWords + i) * M + n);
    }
  for (int n = 0; n < N; n++) {
    if constexpr (Fine) dot[n] += high[n] << 8;
    sum[n] = fused(to_float(dot[n]), scale.times(x + kBytes * M + n), sum[n]);
  }
}

// c [M, kStrip] = M rows of the panel times the strip.
template <int M, bool Fine, class Strip>
inline void byte_tile(const word* panel, const Strip& w, int64_t runs, float* c) {
  for (int part = 0; part < kParts; part++) {
    vf sum[M] = {};
    const word* x = panel;
    for (int64_t run = 0; run < runs; run++, x += (kByteWords * (Fine ? 2 : 1) + kSumWords) * M) {
      vu code[kByteWords];
      w.codes(run, part, code);
      const Scaled<(M > 3)> scale(w.scales(run, part));
#pragma GCC unroll 16
      for (int m = 0; m + kTogether <= M; m += kTogether)
        add_runs<M, kTogether, Fine, Strip::kWide>(x + m, code, scale, sum + m);
      if constexpr (M % kTogether != 0) add_runs<M, 1, Fine, Strip::kWide>(x + M - 1, code, scale, sum + M - 1);
    }
    for (int m = 0; m < M; m++) store(c + m * kStrip + part * kLanes, sum[m]);
  }
}

template <int M, class Strip>
inline void pair_tile(const word* panel, const Strip& w, int64_t runs, float* c) {
  for (int part = 0; part < kParts; part++) {
    vf total[M] = {};
    const word* x = panel;
    for (int64_t first = 0; first < runs; first += Strip::kScaled) {
      vf sum[M] = {};
      const int64_t end = at_most(runs, first + Strip::kScaled);
      for (int64_t run = first; run < end; run++)
        for (int i = 0; i < 8; i++, x += 2 * M) {
          vu pair[2];
          w.pairs(run, part, i, pair);
          for (int j = 0; j < 2; j++)
            for (int m = 0; m < M; m++) sum[m] = dot2(sum[m], pair[j], splat(x[j * M + m]));
        }
      const float scale = w.scale(first);
      for (int m = 0; m < M; m++) total[m] = fused(sum[m], splat(scale), total[m]);
    }
    for (int m = 0; m < M; m++) store(c + m * kStrip + part * kLanes, total[m]);
  }
}

template <int M, bool Fine, class Strip>
__attribute__((noinline)) void tile(const word* panel, const Strip& w, int64_t runs, float* c) {
  if constexpr (Strip::kBytes)
    byte_tile<M, Fine>(panel, w, runs, c);
  else
    pair_tile<M>(panel, w, runs, c);
}

// The same for a panel of m rows, m one of the sizes of panel_rows.
template <bool Fine, class Strip>
inline void sized_tile(const word* panel, int64_t m, const Strip& w, int64_t runs, float* c) {
  switch (m) {
    case 1: return tile<1, Fine>(panel, w, runs, c);
    case 2: return tile<2, Fine>(panel, w, runs, c);
    case 3: return tile<3, Fine>(panel, w, runs, c);
    case 4: return tile<4, Fine>(panel, w, runs, c);
#if defined(__AVX512F__)
    case 5: return tile<5, Fine>(panel, w, runs, c);
    case 6: return tile<6, Fine>(panel, w, runs, c);
    case 7: return tile<7, Fine>(panel, w, runs, c);
    case 8: return tile<8, Fine>(panel, w, runs, c);
    case 12: return tile<12, Fine>(panel, w, runs, c);
    default: return tile<16, Fine>(panel, w, runs, c);
#endif
  }
}

template <class Strip>
inline void any_tile(const word* panel, int64_t m, const Strip& w, const RowForm& form, float* c) {
  if constexpr (Strip::kBytes)
    if (form.fine) return sized_tile<true>(panel, m, w, form.runs, c);
  sized_tile<false>(panel, m, w, form.runs, c);
}

// f(strip) with the reader of one strip of one matrix of the stack.
template <class F>
inline void with_strip(const Weight& w, int64_t expert, int64_t strip, F&& f) {
  switch (w.format) {
    case kInt4: return w.zero ? f(Int4ZeroStrip(w, expert, strip)) : f(Int4Strip(w, expert, strip));
    case kMxfp4: return f(Mxfp4Strip(w, expert, strip));
    case kInt8: return f(Int8Strip(w, expert, strip));
    case kBf16: return f(Bf16Strip(w, expert, strip));
    default: return f(Fp8Strip(w, expert, strip));
  }
}

// c [m, kStrip] = a panel times one strip.
inline void times_strip(const word* panel, int64_t m, const RowForm& form, const Weight& w, int64_t expert,
                        int64_t strip, float* c) {
  with_strip(w, expert, strip, [&](const auto& weights) { any_tile(panel, m, weights, form, c); });
}

constexpr int64_t kWorthThreads = 1 << 18;  // products; below, waking threads takes longer

// How many strips a thread takes at a time: a few turns for each, and long stretches of memory.
inline int64_t strips_at_once(int64_t strips, int threads) { return strips > threads * 4 ? strips / (threads * 4) : 1; }

}  // namespace
}  // namespace PERILUNE_VARIANT
}  // namespace perilune
