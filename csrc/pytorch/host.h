// What the kernels run on: PyTorch's threads, memory that threads keep, and the instruction sets of this CPU.
#pragma once

#include <algorithm>

#include "kernels/kernel.h"

namespace leni_kernels {

// The host of one call of an operator. Scratch memory stays with the threads for their next call, but no more than a
// little: what is large is given back when the call ends, by other threads than the caller's after their part of it.
struct Call : Host {
  Call();
  ~Call();
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;
};

// The best instruction set of this CPU, or the lesser one that LENI_KERNELS_ISA names.
Isa current_isa();

// A mechanism's kernel for a pass, of the tables that its problem.h names: that of this CPU's instruction set, or of
// the best lesser one that has it. Those beyond AVX-512 are for bfloat16 alone.
template <class Kernels, class Kernel>
Kernel chosen(const Kernels* const (&tables)[kIsas], Kernel Kernels::* pass, Scalar scalar) {
  const Isa best = scalar == Scalar::BFloat16 ? current_isa() : std::min(current_isa(), Isa::Avx512);
  int isa = static_cast<int>(best);
  while (tables[isa]->*pass == nullptr) --isa;
  return tables[isa]->*pass;
}

}  // namespace leni_kernels
