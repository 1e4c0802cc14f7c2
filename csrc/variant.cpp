// All kernels for one instruction set: compiled once per variant, with PERILUNE_VARIANT as its namespace.
//
// Nothing here may include the standard library's templates: the linker keeps one copy of an inline function, and it
// could be the one compiled for instructions this processor lacks.
#include "experts.h"
#include "kda_prefill.h"
#include "linear.h"
#include "mla_decode.h"
#include "mla_prefill.h"
#include "mla_store.h"
#include "norm.h"
#include "router.h"
#include "strips.h"

#define NAME_OF(x) #x
#define NAME(x) NAME_OF(x)

namespace perilune {
namespace PERILUNE_VARIANT {

extern const Kernels kernels;
const Kernels kernels = {NAME(PERILUNE_VARIANT), linear, experts, kda_prefill, kda_decode, mla_store, mla_decode, mla_prefill,
                         rms_norm, route, strips};

}  // namespace PERILUNE_VARIANT
}  // namespace perilune
