// The boundary: Python's numbers and addresses become checked argument structs.
//
// Tensors cross as addresses with their sizes (ops/native.py proves dtype, shape and contiguity before it takes an
// address). What only the contents can tell, indices, is checked here: none reaches a kernel out of range.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <vector>

#include "crc.h"
#include "kernels.h"

namespace nb = nanobind;
using namespace perilune;
using Address = uintptr_t;

namespace {

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

void require(bool ok, const char* what) {
  if (!ok) throw nb::value_error(what);
}

void check_index(int64_t index, int64_t count, const char* what) {
  if (index < 0 || index >= count)
    throw nb::index_error((std::string(what) + " " + std::to_string(index) + " is not in 0.." +
                           std::to_string(count - 1)).c_str());
}

Weight make_weight(int format, int64_t experts, int64_t n, int64_t k, Address data, Address scale, Address zero,
                   int64_t group, bool tiled) {
  require(format >= kBf16 && format <= kInt8 && experts > 0 && n > 0 && k > 0, "a weight has no such format or shape");
  require((format != kInt4 && format != kInt8) || (group > 0 && group % 32 == 0), "groups are multiples of 32");
  require(format != kMxfp4 || k % 2 == 0, "mxfp4 has an even number of inputs");
  require(!tiled || (n % 16 == 0 && k % 32 == 0), "strips hold 16 outputs and runs of 32 inputs");
  return Weight{format, experts, n, k, at<const uint8_t>(data), at<const void>(scale), at<const int8_t>(zero), group, tiled};
}

// Tokens sorted by expert: a counting sort, stable, so each expert sees its tokens in order. An id of kNobody is an
// expert that another rank holds.
struct Slots {
  static constexpr int64_t kNobody = -1;
  std::vector<int64_t> first, token;
  std::vector<float> weight;
  Slots(const int64_t* ids, const float* weights, int64_t tokens, int64_t top_k, int64_t experts)
      : first(experts + 1), token(tokens * top_k), weight(tokens * top_k) {
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

void check_table(const int64_t* table, int64_t entries, int64_t tokens, int64_t pages) {
  require(tokens >= 1, "attention over no tokens");
  require((tokens + 63) / 64 <= entries, "more tokens than the page table holds");
  for (int64_t i = 0; i < (tokens + 63) / 64; i++) check_index(table[i], pages, "page");
}

}  // namespace

NB_MODULE(_kernels, m) {
  nb::set_leak_warnings(false);  // a table of ops may live until the interpreter ends
  m.doc() = "C++ CPU kernels; call them through perilune.ops.*.cpu, which checks tensors";
  m.def("names", [] {
    const char* names[4];
    int count = kernel_names(names);
    return std::vector<std::string>(names, names + count);
  }, "Instruction-set variants this processor can run, fastest first");
  m.def("refusal", [] {
    const char* why = "";
    choose_kernels(&why);
    return std::string(why);
  }, "Why no variant can run, or an empty string");

  m.def("crc32_block", crc32_block, "Bytes that `crc32` takes at a time; 0 if this processor has no instruction for it");
  m.def("crc32", [](Address starts, Address lengths, int64_t count, int64_t block) {
    require(block >= 0 && block <= crc32_block(), "this processor takes fewer bytes at a time");
    uint32_t crc = 0;
    for (int64_t i = 0; i < count; i++)
      crc = crc32(crc, at<const uint8_t>(at<Address>(starts)[i]), at<int64_t>(lengths)[i], block);
    return crc;
  }, nb::call_guard<nb::gil_scoped_release>(), "Of `count` runs of bytes as one text: int64 addresses and lengths");

  nb::class_<Weight>(m, "Weight").def_static("make", make_weight);

  nb::class_<Kernels>(m, "Kernels")
      .def_static("find", [](const std::string& name) {
        const Kernels* found = find_kernels(name.c_str());
        require(found, "this processor cannot run that variant");
        return found;
      }, nb::rv_policy::reference)
      .def_prop_ro("name", [](const Kernels& k) { return std::string(k.name); })
      .def("linear", [](const Kernels& k, Address x, int64_t tokens, int64_t inputs, std::vector<const Weight*> weights,
                        std::vector<Address> out, std::vector<int64_t> steps, int threads) {
        require(weights.size() == out.size() && weights.size() == steps.size(), "linear: one output per weight");
        std::vector<LinearPart> parts;
        for (size_t i = 0; i < weights.size(); i++) {
          require(weights[i] && weights[i]->k == inputs && steps[i] >= weights[i]->n, "a weight does not fit x or out");
          parts.push_back({*weights[i], at<bf16>(out[i]), steps[i]});
        }
        nb::gil_scoped_release release;
        k.linear({at<bf16>(x), tokens, inputs, parts.data(), int64_t(parts.size()), threads});
      })
      .def("experts", [](const Kernels& k, Address x, int64_t tokens, int64_t top_k, Address ids, Address weights,
                         const Weight& gate, const Weight& up, const Weight& down, Address out, int threads) {
        require(gate.experts == up.experts && gate.experts == down.experts && gate.n == up.n && gate.k == up.k &&
                    gate.n == down.k && gate.k == down.n, "expert weights do not fit each other");
        require(gate.tiled == up.tiled && gate.tiled == down.tiled, "some expert weights are in strips, some are not");
        Slots slots(at<int64_t>(ids), at<float>(weights), tokens, top_k, gate.experts);
        nb::gil_scoped_release release;
        k.experts({at<bf16>(x), tokens, slots.first.data(), slots.token.data(), slots.weight.data(), gate, up, down,
                   at<float>(out), threads});
      })
      .def("kda_prefill", [](const Kernels& k, std::vector<Address> t, std::vector<int64_t> sizes, int64_t slot,
                             std::vector<int64_t> after, std::vector<int64_t> to, float eps, int threads) {
        require(t.size() == 11 && sizes.size() == 7 && after.size() == to.size(), "kda_prefill: wrong arguments");
        require(sizes[0] >= 1, "prefill of no tokens");
        require(sizes[3] % 16 == 0 && sizes[3] <= 256, "head dim is not a multiple of 16 up to 256");
        check_index(slot, sizes[1], "slot");
        for (size_t i = 0; i < to.size(); i++) {
          check_index(to[i], sizes[1], "slot");
          require(to[i] != slot, "a state exported to its own slot");
          require(after[i] > 0 && after[i] <= sizes[0] && after[i] % 64 == 0, "states are exported after whole chunks");
        }
        nb::gil_scoped_release release;
        k.kda_prefill({at<bf16>(t[0]), at<bf16>(t[1]), at<bf16>(t[2]), at<bf16>(t[3]), at<bf16>(t[4]), at<float>(t[5]),
                       at<float>(t[6]), at<bf16>(t[7]), eps, sizes[0], sizes[2], sizes[3], sizes[4], slot,
                       at<float>(t[8]), sizes[5], at<bf16>(t[9]), sizes[6], after.data(), to.data(),
                       int64_t(to.size()), at<bf16>(t[10]), threads});
      })
      .def("kda_decode", [](const Kernels& k, std::vector<Address> tensors, std::vector<int64_t> rows,
                            std::vector<int64_t> slots, std::vector<int64_t> sizes, float eps, int threads) {
        require(tensors.size() == 11 && sizes.size() == 7, "kda_decode: wrong number of arguments");
        require(rows.size() == slots.size(), "one slot per row");
        int64_t tokens = sizes[0], slot_count = sizes[1], dim = sizes[3];
        require(dim % 16 == 0 && dim <= 256, "head dim is not a multiple of 16 up to 256");
        for (int64_t row : rows) check_index(row, tokens, "row");
        std::vector<bool> taken(slot_count);
        for (int64_t slot : slots) {
          check_index(slot, slot_count, "slot");
          require(!taken[slot], "two sequences in one slot");
          taken[slot] = true;
        }
        const auto& t = tensors;
        nb::gil_scoped_release release;
        k.kda_decode({at<bf16>(t[0]), at<bf16>(t[1]), at<bf16>(t[2]), at<bf16>(t[3]), at<bf16>(t[4]), at<float>(t[5]),
                      at<float>(t[6]), at<bf16>(t[7]), eps, rows.data(), slots.data(), int64_t(rows.size()), sizes[2],
                      dim, sizes[4], at<float>(t[8]), sizes[5], at<bf16>(t[9]), sizes[6], at<bf16>(t[10]), threads});
      })
      .def("mla_store", [](const Kernels& k, Address q, Address kv, Address norm, float eps, Address cosine, Address sine,
                           std::vector<int64_t> sizes, Address pages, int64_t page_count, int64_t page_stride,
                           Address page_ids, Address offsets, int threads) {
        require(sizes.size() == 5 && sizes[3] % 2 == 0 && !cosine == !sine, "mla_store: wrong arguments");
        for (int64_t t = 0; t < sizes[0]; t++) {
          check_index(at<int64_t>(page_ids)[t], page_count, "page");
          check_index(at<int64_t>(offsets)[t], 64, "offset");
        }
        nb::gil_scoped_release release;
        k.mla_store({at<bf16>(q), at<bf16>(kv), at<bf16>(norm), eps, at<float>(cosine), at<float>(sine), sizes[0],
                     sizes[1], sizes[2], sizes[3], sizes[4], at<bf16>(pages), page_stride, at<int64_t>(page_ids),
                     at<int64_t>(offsets), threads});
      })
      .def("mla_decode", [](const Kernels& k, Address q, std::vector<int64_t> sizes, Address pages, int64_t page_count,
                            int64_t page_stride, std::vector<Address> tables, std::vector<int64_t> entries,
                            std::vector<int64_t> lengths, const Weight& kv_b, float scale, Address out, int threads) {
        require(sizes.size() == 5 && tables.size() == lengths.size() && tables.size() == entries.size(),
                "mla_decode: wrong number of arguments");
        int64_t heads = sizes[0], nope = sizes[1], rope = sizes[2], v_dim = sizes[3], rank = sizes[4];
        require(kv_b.n == heads * (nope + v_dim) && kv_b.k == rank, "kv_b does not fit the heads");
        require(!kv_b.tiled, "kv_b is in strips");
        std::vector<const int64_t*> pointers;
        for (size_t i = 0; i < tables.size(); i++) {
          pointers.push_back(at<int64_t>(tables[i]));
          check_table(pointers.back(), entries[i], lengths[i], page_count);
        }
        nb::gil_scoped_release release;
        k.mla_decode({at<bf16>(q), int64_t(tables.size()), heads, nope, rope, v_dim, rank, at<bf16>(pages), page_stride,
                      pointers.data(), lengths.data(), kv_b, scale, at<float>(out), threads});
      })
      .def("mla_prefill", [](const Kernels& k, Address q, int64_t tokens, int64_t start, std::vector<int64_t> sizes,
                             Address pages, int64_t page_count, int64_t page_stride, Address table, int64_t entries,
                             const Weight& kv_b, float scale, Address out, int threads) {
        require(sizes.size() == 5 && start >= 0 && start % 64 == 0 && tokens >= 1, "mla_prefill: wrong arguments");
        int64_t heads = sizes[0], nope = sizes[1], rope = sizes[2], v_dim = sizes[3], rank = sizes[4];
        require(kv_b.n == heads * (nope + v_dim) && kv_b.k == rank, "kv_b does not fit the heads");
        require(!kv_b.tiled, "kv_b is in strips");
        check_table(at<int64_t>(table), entries, start + tokens, page_count);
        nb::gil_scoped_release release;
        k.mla_prefill({at<bf16>(q), tokens, start, heads, nope, rope, v_dim, rank, at<bf16>(pages), page_stride,
                       at<int64_t>(table), kv_b, scale, at<float>(out), threads});
      })
      .def("route", [](const Kernels& k, Address x, int64_t tokens, int64_t dim, Address router, bool wide, Address bias,
                       std::vector<int64_t> sizes, bool renormalise, float scaling, Address ids, Address weights,
                       int threads) {
        require(sizes.size() == 4, "route: wrong arguments");
        int64_t experts = sizes[0], groups = sizes[1], top_groups = sizes[2], top_k = sizes[3];
        require(groups >= 1 && experts % groups == 0 && top_groups >= 1 && top_groups <= groups,
                "experts do not divide into such groups");
        require(top_k >= 1 && top_k <= experts, "more experts asked for than there are");
        k.route({at<bf16>(x), tokens, dim, at<void>(router), wide, at<float>(bias), experts, groups, top_groups, top_k,
                 renormalise, scaling, at<int64_t>(ids), at<float>(weights), threads});
      }, nb::call_guard<nb::gil_scoped_release>())
      .def("strips", [](const Kernels& k, Address data, int64_t rows, int64_t row_bytes, int unit, int swap, int threads) {
        require(unit == 1 || unit == 2 || unit == 4, "strips of units of 1, 2 or 4 bytes");
        require(rows % 16 == 0 && row_bytes % unit == 0, "strips hold 16 whole rows");
        require(swap == kAsStored || (unit == 4 && row_bytes % 8 == 0 && (swap == kPairs || swap == kEvenFirst)),
                "no such order of bytes");
        k.strips({at<uint8_t>(data), rows, row_bytes, unit, swap, threads});
      }, nb::call_guard<nb::gil_scoped_release>())
      .def("rms_norm", [](const Kernels& k, Address x, Address weight, int64_t rows, int64_t dim, float eps, Address out,
                          int threads) {
        k.rms_norm({at<bf16>(x), at<bf16>(weight), rows, dim, eps, at<bf16>(out), threads});
      }, nb::call_guard<nb::gil_scoped_release>());
}
