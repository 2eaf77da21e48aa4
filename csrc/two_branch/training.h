// What the training passes of LENI and Reborn share: two_branch/statistics.h and weight_gradient.h,
// leni/input_gradient.h, and reborn/branch_gradient.h.
//
// T is the bytes of one activation tensor. LENI's statistics() reads x (1T); weight_gradient() reads x and dy (2T);
// input_gradient() reads x and dy and writes dx (3T). With the folded kernel's 2T that is 3T forward and 5T backward.
// Less would need a kept activation or a second look at what has left the cache: the norms' statistics depend on
// all of x, and their gradients on all of dy. Both branches are recomputed from x, tile by tile; only x is kept.
//
// Everything is computed in Scale: float, or double for double. Sums over pixels are kept per thread and added in the
// order of the threads, so equal thread counts give equal bits.
#pragma once

#include <cstdint>

#include "kernels/kernel.h"
#include "kernels/product.h"
#include "kernels/simd.h"
#include "kernels/target.h"

LENI_KERNELS_BEGIN
namespace leni_kernels::two_branch::inline LENI_KERNELS_TARGET {

enum Slot { kShared, kExpanded, kGradient, kNegativeRaw, kPositiveRaw, kPadded, kPartial, kPartialBias };  // of scratch

// The room for a tile's pixels, and for the vectors that reach past its last.
template <class Scale>
inline int64_t room(int64_t pixels) {
  return round_up(pixels, Vec<Scale>::width) + Vec<Scale>::width;
}

// Packs one branch's half of weight [C, 2C] for the product weightᵀ·dy; ``transposed`` is room for C².
template <class Scale>
void pack_transposed(Channels side, const Scale* weight, int64_t branch, int64_t channels, Scale* transposed,
                     Scale* packed) {
  for (int64_t o = 0; o < channels; ++o) {
    for (int64_t f = 0; f < channels; ++f) {
      transposed[f * channels + o] = weight[(o * 2 + branch) * channels + f];
    }
  }
  pack_weight<ScalarProduct<Scale>>(side, transposed, channels, 1, channels, packed);
}

}  // namespace leni_kernels::two_branch::inline LENI_KERNELS_TARGET
LENI_KERNELS_END
