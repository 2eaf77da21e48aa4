// What the kernels run on: PyTorch's threads, memory that threads keep, and the instruction sets of this CPU.
#pragma once

#include "leni.h"

namespace leni {

// The host of one call of an operator. Scratch memory stays with the threads for their next call, but no more than a
// little: what is large is given back when the call ends, by other threads than the caller's after their part of it.
struct Call : Host {
  Call();
  ~Call();
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;
};

enum class Isa { Generic, Avx2, Avx512, Avx512Bf16, Amx };

// The best instruction set of this CPU, or the lesser one that LENI_KERNELS_ISA names.
Isa current_isa();

}  // namespace leni
