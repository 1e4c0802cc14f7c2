// Which compiled variant this processor can run: asked by instruction, never by vendor.
#include <cstring>

#include "kernels.h"

namespace perilune {

#define DECLARE(name) \
  namespace name {    \
  extern const Kernels kernels; \
  }
#ifdef PERILUNE_HAS_avx2
DECLARE(avx2)
#endif
#ifdef PERILUNE_HAS_avx512
DECLARE(avx512)
#endif
#ifdef PERILUNE_HAS_avx512_bf16
DECLARE(avx512_bf16)
#endif
#ifdef PERILUNE_HAS_portable
DECLARE(portable)
#endif

namespace {

// Fastest first.
int runnable(const Kernels** found) {
  int count = 0;
#ifdef PERILUNE_HAS_portable
  found[count++] = &portable::kernels;
#else
  __builtin_cpu_init();
  [[maybe_unused]] const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  [[maybe_unused]] const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                                       __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#ifdef PERILUNE_HAS_avx512_bf16
  if (avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni"))
    found[count++] = &avx512_bf16::kernels;
#endif
#ifdef PERILUNE_HAS_avx512
  if (avx512) found[count++] = &avx512::kernels;
#endif
#ifdef PERILUNE_HAS_avx2
  if (avx2) found[count++] = &avx2::kernels;
#endif
#endif
  return count;
}

}  // namespace

const Kernels* choose_kernels(const char** why) {
  const Kernels* found[4];
  if (runnable(found) > 0) return found[0];
  *why = "the processor has none of the instruction sets in this build";
  return nullptr;
}

const Kernels* find_kernels(const char* name) {
  const Kernels* found[4];
  for (int i = runnable(found) - 1; i >= 0; i--)
    if (!strcmp(found[i]->name, name)) return found[i];
  return nullptr;
}

int kernel_names(const char** names) {
  const Kernels* found[4];
  int count = runnable(found);
  for (int i = 0; i < count; i++) names[i] = found[i]->name;
  return count;
}

}  // namespace perilune
