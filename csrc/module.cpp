// The boundary: Python's numbers and addresses become calls, which prove their arguments (calls.h).
//
// Tensors cross as addresses with their sizes (ops/native.py proves dtype, shape and contiguity before it takes an
// address).
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <string>
#include <vector>

#include "crc.h"
#include "tape.h"

namespace nb = nanobind;
using namespace perilune;
using Address = uintptr_t;
using Ints = std::vector<int64_t>;

namespace {

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

Weight make_weight(int format, int64_t experts, int64_t n, int64_t k, Address data, Address scale, Address zero,
                   int64_t group, bool tiled) {
  require(format >= kBf16 && format <= kInt8 && experts > 0 && n > 0 && k > 0, "a weight has no such format or shape");
  require((format != kInt4 && format != kInt8) || (group > 0 && group % 32 == 0), "groups are multiples of 32");
  require(format != kMxfp4 || k % 2 == 0, "mxfp4 has an even number of inputs");
  require(!tiled || (n % 16 == 0 && k % 32 == 0), "strips hold 16 outputs and runs of 32 inputs");
  return Weight{format, experts, n, k, at<const uint8_t>(data), at<const void>(scale), at<const int8_t>(zero), group, tiled};
}

// One variant's kernels. What is called while it records goes onto a tape too.
class Caller {
 public:
  explicit Caller(const Kernels* kernels) : kernels_(kernels) {}
  Caller(const Caller&) = delete;

  template <class C>
  void operator()(C call) const {
    {
      nb::gil_scoped_release release;
      call.run(*kernels_);
    }
    if (tape_) tape_->add(std::move(call));
  }
  void record() {
    require(!tape_, "a tape is being recorded already");
    tape_ = std::make_unique<Tape>(kernels_);
  }
  std::unique_ptr<Tape> stop() {
    require(tape_ != nullptr, "no tape is being recorded");
    return std::move(tape_);
  }
  const Kernels& kernels() const { return *kernels_; }

 private:
  const Kernels* kernels_;
  std::unique_ptr<Tape> tape_;
};

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

  nb::class_<Tape>(m, "Tape")
      .def("run", &Tape::run, nb::call_guard<nb::gil_scoped_release>())
      .def("__len__", &Tape::size);

  nb::class_<Caller>(m, "Kernels")
      .def_static("find", [](const std::string& name) {
        const Kernels* found = find_kernels(name.c_str());
        require(found, "this processor cannot run that variant");
        return std::make_unique<Caller>(found);
      })
      .def_prop_ro("name", [](const Caller& call) { return std::string(call.kernels().name); })
      .def("record", &Caller::record)
      .def("stop", &Caller::stop)
      .def("linear", [](const Caller& call, Address x, int64_t tokens, int64_t inputs, std::vector<const Weight*> weights,
                        std::vector<Address> out, Ints steps, int threads) {
        require(weights.size() == out.size() && weights.size() == steps.size(), "linear: one output per weight");
        std::vector<LinearPart> parts;
        for (size_t i = 0; i < weights.size(); i++) {
          require(weights[i] != nullptr, "linear: no weight");
          parts.push_back({*weights[i], at<bf16>(out[i]), steps[i]});
        }
        call(LinearCall({at<bf16>(x), tokens, inputs, nullptr, 0, threads}, std::move(parts)));
      })
      .def("experts", [](const Caller& call, Address x, int64_t tokens, int64_t top_k, Address ids, Address weights,
                         const Weight& gate, const Weight& up, const Weight& down, Address plus, Address out, int threads) {
        call(ExpertsCall({at<bf16>(x), tokens, nullptr, nullptr, nullptr, gate, up, down, at<bf16>(plus), at<bf16>(out),
                          threads}, top_k, at<int64_t>(ids), at<float>(weights)));
      })
      .def("kda_prefill", [](const Caller& call, std::vector<Address> t, Ints sizes, int64_t slot, Ints after, Ints to,
                             float eps, int threads) {
        require(t.size() == 11 && sizes.size() == 7, "kda_prefill: wrong number of arguments");
        call(KdaPrefillCall({at<bf16>(t[0]), at<bf16>(t[1]), at<bf16>(t[2]), at<bf16>(t[3]), at<bf16>(t[4]), at<float>(t[5]),
                             at<float>(t[6]), at<bf16>(t[7]), eps, sizes[0], sizes[2], sizes[3], sizes[4], slot,
                             at<float>(t[8]), sizes[5], at<bf16>(t[9]), sizes[6], nullptr, nullptr, 0, at<bf16>(t[10]),
                             threads}, sizes[1], std::move(after), std::move(to)));
      })
      .def("kda_decode", [](const Caller& call, std::vector<Address> t, Address rows, Address slots, int64_t count, Ints sizes,
                            float eps, int threads) {
        require(t.size() == 11 && sizes.size() == 7, "kda_decode: wrong number of arguments");
        call(KdaDecodeCall({at<bf16>(t[0]), at<bf16>(t[1]), at<bf16>(t[2]), at<bf16>(t[3]), at<bf16>(t[4]), at<float>(t[5]),
                            at<float>(t[6]), at<bf16>(t[7]), eps, at<int64_t>(rows), at<int64_t>(slots), count, sizes[2],
                            sizes[3], sizes[4], at<float>(t[8]), sizes[5], at<bf16>(t[9]), sizes[6], at<bf16>(t[10]),
                            threads}, sizes[0], sizes[1]));
      })
      .def("mla_store", [](const Caller& call, Address q, Address kv, Address norm, float eps, Address cosine, Address sine,
                           Ints sizes, Address pages, int64_t page_count, int64_t page_stride, Address page_ids,
                           Address offsets, int threads) {
        require(sizes.size() == 5, "mla_store: wrong number of arguments");
        call(MlaStoreCall({at<bf16>(q), at<bf16>(kv), at<bf16>(norm), eps, at<float>(cosine), at<float>(sine), sizes[0],
                           sizes[1], sizes[2], sizes[3], sizes[4], at<bf16>(pages), page_stride, at<int64_t>(page_ids),
                           at<int64_t>(offsets), threads}, page_count));
      })
      .def("mla_decode", [](const Caller& call, Address q, Ints sizes, Address pages, int64_t page_count, int64_t page_stride,
                            std::vector<Address> tables, Ints entries, Address lengths, const Weight& kv_b, float scale,
                            Address out, int threads) {
        require(sizes.size() == 5, "mla_decode: wrong number of arguments");
        std::vector<const int64_t*> pointers;
        for (Address table : tables) pointers.push_back(at<int64_t>(table));
        call(MlaDecodeCall({at<bf16>(q), int64_t(tables.size()), sizes[0], sizes[1], sizes[2], sizes[3], sizes[4],
                            at<bf16>(pages), page_stride, nullptr, at<int64_t>(lengths), kv_b, scale, at<bf16>(out), threads},
                           page_count, std::move(pointers), std::move(entries)));
      })
      .def("mla_prefill", [](const Caller& call, Address q, int64_t tokens, int64_t start, Ints sizes, Address pages,
                             int64_t page_count, int64_t page_stride, Address table, int64_t entries, const Weight& kv_b,
                             float scale, Address out, int threads) {
        require(sizes.size() == 5, "mla_prefill: wrong number of arguments");
        call(MlaPrefillCall({at<bf16>(q), tokens, start, sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], at<bf16>(pages),
                             page_stride, at<int64_t>(table), kv_b, scale, at<float>(out), threads}, page_count, entries));
      })
      .def("route", [](const Caller& call, Address x, int64_t tokens, int64_t dim, Address router, bool wide, Address bias,
                       Ints sizes, bool renormalise, float scaling, Address ids, Address weights, int threads) {
        require(sizes.size() == 4, "route: wrong number of arguments");
        call(RouteCall({at<bf16>(x), tokens, dim, at<void>(router), wide, at<float>(bias), sizes[0], sizes[1], sizes[2],
                        sizes[3], renormalise, scaling, at<int64_t>(ids), at<float>(weights), threads}));
      })
      .def("rms_norm", [](const Caller& call, Address x, Address plus, Address weight, int64_t rows, int64_t dim, float eps,
                          Address out, int threads) {
        call(RmsNormCall{{at<bf16>(x), at<bf16>(plus), at<bf16>(weight), rows, dim, eps, at<bf16>(out), threads}});
      })
      .def("strips", [](const Caller& call, Address data, int64_t rows, int64_t row_bytes, int unit, int swap, int threads) {
        require(unit == 1 || unit == 2 || unit == 4, "strips of units of 1, 2 or 4 bytes");
        require(rows % 16 == 0 && row_bytes % unit == 0, "strips hold 16 whole rows");
        require(swap == kAsStored || (unit == 4 && row_bytes % 8 == 0 && (swap == kPairs || swap == kEvenFirst)),
                "no such order of bytes");
        call.kernels().strips({at<uint8_t>(data), rows, row_bytes, unit, swap, threads});
      }, nb::call_guard<nb::gil_scoped_release>());
}
