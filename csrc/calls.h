// What Python asks of a kernel, one struct per op. Sizes are proved when a call is made. What only contents can tell,
// indices, is proved each time it runs, since a tape (tape.h) repeats it with other contents: none reaches a kernel out
// of range. Raises std::invalid_argument and std::out_of_range, ValueError and IndexError in Python.
#pragma once
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.h"

namespace perilune {

inline void require(bool ok, const char* what) {
  if (!ok) throw std::invalid_argument(what);
}

inline void check_index(int64_t index, int64_t count, const char* what) {
  if (index < 0 || index >= count)
    throw std::out_of_range(std::string(what) + " " + std::to_string(index) + " is not in 0.." + std::to_string(count - 1));
}

inline void check_table(const int64_t* table, int64_t entries, int64_t tokens, int64_t pages) {
  require(tokens >= 1, "attention over no tokens");
  require((tokens + 63) / 64 <= entries, "more tokens than the page table holds");
  for (int64_t i = 0; i < (tokens + 63) / 64; i++) check_index(table[i], pages, "page");
}

struct LinearCall {
  LinearArgs args;
  std::vector<LinearPart> parts;
  LinearCall(LinearArgs a, std::vector<LinearPart> p) : args(a), parts(std::move(p)) {
    for (const LinearPart& part : parts) require(part.w.k == a.k && part.ld >= part.w.n, "a weight does not fit x or out");
  }
  void run(const Kernels& k) const {
    LinearArgs a = args;
    a.parts = parts.data(), a.count = int64_t(parts.size());
    k.linear(a);
  }
};

// Tokens sorted by expert: a counting sort, stable, so each expert sees its tokens in order. An id of kNobody is an
// expert that another rank holds. Without ids every token goes to the one expert there is.
struct Slots {
  static constexpr int64_t kNobody = -1;
  std::vector<int64_t> first, token;
  std::vector<float> weight;
  Slots(const int64_t* ids, const float* weights, int64_t tokens, int64_t top_k, int64_t experts)
      : first(experts + 1), token(tokens * top_k), weight(tokens * top_k, 1.0f) {
    if (!ids) {
      first[1] = tokens;
      for (int64_t t = 0; t < tokens; t++) token[t] = t;
      return;
    }
    for (int64_t i = 0; i < tokens * top_k; i++) {
      if (ids[i] == kNobody) continue;
      check_index(ids[i], experts, "expert");
      first[ids[i] + 1]++;
    }
    for (int64_t e = 0; e < experts; e++) first[e + 1] += first[e];
    std::vector<int64_t> next(first.begin(), first.end() - 1);
    for (int64_t i = 0; i < tokens * top_k; i++) {
      if (ids[i] == kNobody) continue;
      int64_t slot = next[ids[i]]++;
      token[slot] = i / top_k;
      weight[slot] = weights[i];
    }
  }
};

struct ExpertsCall {
  ExpertsArgs args;
  int64_t top_k;
  const int64_t* ids;  // [t, top_k], or null
  const float* weights;
  ExpertsCall(ExpertsArgs a, int64_t top_k, const int64_t* ids, const float* weights)
      : args(a), top_k(top_k), ids(ids), weights(weights) {
    const Weight &gate = a.gate, &up = a.up, &down = a.down;
    require(gate.experts == up.experts && gate.experts == down.experts && gate.n == up.n && gate.k == up.k &&
                gate.n == down.k && gate.k == down.n, "expert weights do not fit each other");
    require(gate.tiled == up.tiled && gate.tiled == down.tiled, "some expert weights are in strips, some are not");
    require(ids ? weights != nullptr : gate.experts == 1 && top_k == 1, "tokens without experts");
  }
  void run(const Kernels& k) const {
    const Slots slots(ids, weights, args.tokens, top_k, args.gate.experts);
    ExpertsArgs a = args;
    a.first = slots.first.data(), a.slot_token = slots.token.data(), a.slot_weight = slots.weight.data();
    k.experts(a);
  }
};

inline void check_head(int64_t dim) {
  require(dim % 16 == 0 && dim <= 256, "head dim is not a multiple of 16 up to 256");
}

struct KdaPrefillCall {
  KdaPrefillArgs args;
  int64_t slots;
  std::vector<int64_t> after, to;
  KdaPrefillCall(KdaPrefillArgs a, int64_t slots, std::vector<int64_t> after, std::vector<int64_t> to)
      : args(a), slots(slots), after(std::move(after)), to(std::move(to)) {
    require(this->after.size() == this->to.size(), "a row of the slot arena per exported state");
    require(a.tokens >= 1, "prefill of no tokens");
    check_head(a.dim);
  }
  void run(const Kernels& k) const {
    check_index(args.slot, slots, "slot");
    for (size_t i = 0; i < to.size(); i++) {
      check_index(to[i], slots, "slot");
      require(to[i] != args.slot, "a state exported to its own slot");
      require(after[i] > 0 && after[i] <= args.tokens && after[i] % 64 == 0, "states are exported after whole chunks");
    }
    KdaPrefillArgs a = args;
    a.export_after = after.data(), a.export_to = to.data(), a.exports = int64_t(to.size());
    k.kda_prefill(a);
  }
};

struct KdaDecodeCall {
  KdaDecodeArgs args;
  int64_t tokens, slots;  // how many there are
  KdaDecodeCall(KdaDecodeArgs a, int64_t tokens, int64_t slots) : args(a), tokens(tokens), slots(slots) {
    check_head(a.dim);
  }
  void run(const Kernels& k) const {
    std::vector<bool> taken(slots);
    for (int64_t i = 0; i < args.n; i++) {
      check_index(args.rows[i], tokens, "row");
      check_index(args.slots[i], slots, "slot");
      require(!taken[args.slots[i]], "two sequences in one slot");
      taken[args.slots[i]] = true;
    }
    k.kda_decode(args);
  }
};

struct MlaStoreCall {
  MlaStoreArgs args;
  int64_t pages;
  MlaStoreCall(MlaStoreArgs a, int64_t pages) : args(a), pages(pages) {
    require(a.rope % 2 == 0 && !a.cosine == !a.sine, "mla_store: wrong arguments");
  }
  void run(const Kernels& k) const {
    for (int64_t t = 0; t < args.tokens; t++) {
      check_index(args.page_ids[t], pages, "page");
      check_index(args.offsets[t], 64, "offset");
    }
    k.mla_store(args);
  }
};

template <class Args>
void check_kv_b(const Args& a) {
  require(a.kv_b.n == a.heads * (a.nope + a.v_dim) && a.kv_b.k == a.rank, "kv_b does not fit the heads");
  require(!a.kv_b.tiled, "kv_b is in strips");
}

struct MlaDecodeCall {
  MlaDecodeArgs args;
  int64_t pages;
  std::vector<const int64_t*> tables;
  std::vector<int64_t> entries;
  MlaDecodeCall(MlaDecodeArgs a, int64_t pages, std::vector<const int64_t*> tables, std::vector<int64_t> entries)
      : args(a), pages(pages), tables(std::move(tables)), entries(std::move(entries)) {
    require(int64_t(this->tables.size()) == a.n && int64_t(this->entries.size()) == a.n, "a page table per row");
    check_kv_b(a);
  }
  void run(const Kernels& k) const {
    for (int64_t i = 0; i < args.n; i++) check_table(tables[i], entries[i], args.lengths[i], pages);
    MlaDecodeArgs a = args;
    a.tables = tables.data();
    k.mla_decode(a);
  }
};

struct MlaPrefillCall {
  MlaPrefillArgs args;
  int64_t pages, entries;
  MlaPrefillCall(MlaPrefillArgs a, int64_t pages, int64_t entries) : args(a), pages(pages), entries(entries) {
    require(a.start >= 0 && a.start % 64 == 0 && a.tokens >= 1, "mla_prefill: wrong arguments");
    check_kv_b(a);
  }
  void run(const Kernels& k) const {
    check_table(args.table, entries, args.start + args.tokens, pages);
    k.mla_prefill(args);
  }
};

struct RouteCall {
  RouteArgs args;
  explicit RouteCall(RouteArgs a) : args(a) {
    require(a.groups >= 1 && a.experts % a.groups == 0 && a.top_groups >= 1 && a.top_groups <= a.groups,
            "experts do not divide into such groups");
    require(a.top_k >= 1 && a.top_k <= a.experts, "more experts asked for than there are");
  }
  void run(const Kernels& k) const { k.route(args); }
};

struct RmsNormCall {
  RmsNormArgs args;
  void run(const Kernels& k) const { k.rms_norm(args); }
};

}  // namespace perilune
