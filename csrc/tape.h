// A step's calls, kept to be run again: in between nothing is parsed, allocated or asked. They read and write the same
// addresses each time, so whoever records keeps that memory (ops/tape.py). Indices are proved again: calls.h.
#pragma once
#include <memory>
#include <utility>
#include <vector>

#include "calls.h"

namespace perilune {

class Tape {
 public:
  explicit Tape(const Kernels* kernels) : kernels_(kernels) {}
  Tape(const Tape&) = delete;

  template <class C>
  void add(C call) {
    calls_.push_back(std::make_unique<Kept<C>>(std::move(call)));
  }
  void run() const {
    for (const auto& call : calls_) call->run(*kernels_);
  }
  size_t size() const { return calls_.size(); }

 private:
  struct Any {
    virtual ~Any() = default;
    virtual void run(const Kernels&) const = 0;
  };
  template <class C>
  struct Kept : Any {
    C call;
    explicit Kept(C c) : call(std::move(c)) {}
    void run(const Kernels& k) const override { call.run(k); }
  };
  const Kernels* kernels_;
  std::vector<std::unique_ptr<Any>> calls_;
};

}  // namespace perilune
