// What the kernels run on: PyTorch's threads, memory that threads keep, and the instruction sets of this CPU.
#pragma once

#include "leni.h"

namespace leni {

Host current_host();

enum class Isa { Generic, Avx2, Avx512, Avx512Bf16, Amx };

// The best instruction set of this CPU, or the lesser one that LENI_KERNELS_ISA names.
Isa current_isa();

}  // namespace leni
