// Reborn's deconvolution of few values: z = D ⋆ᵀ min(x, 0), what z's gradient gives x by way of D, and D's gradient.
//
// For problems whose products take less time than a call of a library: any groups, sizes and types, in one thread. An
// infinity goes no further than D reaches. Reads and writes as a library would; what is packed stays in the caches.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "kernels/gather.h"
#include "kernels/kernel.h"
#include "kernels/scalar.h"
#include "kernels/simd.h"
#include "kernels/target.h"
#include "reborn/problem.h"

LENI_KERNELS_BEGIN
namespace leni_kernels::reborn::inline LENI_KERNELS_TARGET {

// An activation as [pixel][channel].
template <class T, class Scale>
Scale* pixels_of(const Activation& x, bool negative, int slot, const Host& host) {
  const int64_t plane = x.height * x.width;
  auto* pixels = static_cast<Scale*>(host.scratch(slot, x.batch * plane * x.channels * sizeof(Scale)));
  for (int64_t n = 0; n < x.batch; ++n) {
    for (int64_t at = 0; at < plane; ++at) {
      const T* from = static_cast<const T*>(x.data) + n * x.stride_batch + at / x.width * x.stride_row +
                      at % x.width * x.stride_column;
      Scale* to = pixels + (n * plane + at) * x.channels;
      for (int64_t c = 0; c < x.channels; ++c) {
        const Scale value = widened<Scale>(from[c * x.stride_channel]);
        to[c] = negative ? std::min(value, Scale(0)) : value;
      }
    }
  }
  return pixels;
}

// D [C, C/groups, k²] as [tap from the last][input][output of its group]; backwards as [tap][output][input of its
// group]. Of either, a pixel's window of taps reads what the pixels that it lies on hold.
template <class Scale, class Raw>
Scale* packed_taps(const Raw* raw, int64_t channels, int64_t of_group, int64_t taps, bool backward, int slot,
                   const Host& host) {
  auto* packed = static_cast<Scale*>(host.scratch(slot, channels * of_group * taps * sizeof(Scale)));
  // Of a pair of channels, to the output or input that comes next, and to the next input or output.
  const int64_t to_next = (backward ? of_group : 1) * taps, to_row = (backward ? 1 : of_group) * taps;
  Scale* to = packed;
  for (int64_t t = 0; t < taps; ++t) {
    for (int64_t group = 0; group < channels; group += of_group) {
      const Raw* first = raw + group * of_group * taps + (backward ? t : taps - 1 - t);
      for (int64_t row = 0; row < of_group; ++row) {
        const Raw* from = first + row * to_row;
        for (int64_t i = 0; i < of_group; ++i) *to++ = static_cast<Scale>(from[i * to_next]);
      }
    }
  }
  return packed;
}

// Where a window's row or column is within the map: about this one of so many, from its first to before its last.
struct Within {
  int64_t first, last;
  Within(int64_t at, int64_t count, int64_t size)
      : first(std::max<int64_t>(size / 2 - at, 0)), last(std::min(size, count + size / 2 - at)) {}
};

// For the outputs of a group that fill a vector, the sums over a pixel's window: of ``values``, which lie like x's
// pixels, by ``taps``. Eight sums at a time, which do not wait for each other.
template <class Scale>
Vec<Scale> window_sums(const Activation& x, int64_t size, int64_t row, int64_t column, const Scale* values,
                       const Scale* taps, int64_t of_group, int64_t count) {
  using V = Vec<Scale>;
  constexpr int kSums = 8;
  const Within rows(row, x.height, size), columns(column, x.width, size);
  V sums[kSums];
#pragma GCC unroll 8
  for (V& sum : sums) sum = V::zero();
  for (int64_t i = rows.first; i < rows.last; ++i) {
    for (int64_t j = columns.first; j < columns.last; ++j) {
      const Scale* from = values + ((i - size / 2) * x.width + j - size / 2) * x.channels;
      const Scale* by = taps + (i * size + j) * x.channels * of_group;
      int64_t c = 0;
      for (; c + kSums <= of_group; c += kSums) {
#pragma GCC unroll 8
        for (int s = 0; s < kSums; ++s) {
          sums[s] = V::fma(load_some<V>(by + (c + s) * of_group, count), V::broadcast(from[c + s]), sums[s]);
        }
      }
      for (; c < of_group; ++c) {
        sums[0] = V::fma(load_some<V>(by + c * of_group, count), V::broadcast(from[c]), sums[0]);
      }
    }
  }
#pragma GCC unroll 8
  for (int s = 1; s < kSums; ++s) sums[0] = V::add(sums[0], sums[s]);
  return sums[0];
}

// to[r] = Σ grad · values[r] over the pairs of pixels that a tap, so many rows down and columns to the right, joins.
template <int Rows, class Scale>
void tap_gradients(const Activation& x, int64_t down, int64_t right, const Scale* values, const Scale* grad,
                   int64_t count, Scale* to, int64_t stride) {
  using V = Vec<Scale>;
  V sums[Rows];
#pragma GCC unroll 8
  for (V& sum : sums) sum = V::zero();
  for (int64_t n = 0; n < x.batch; ++n) {
    for (int64_t row = std::max<int64_t>(-down, 0); row < std::min(x.height, x.height - down); ++row) {
      for (int64_t column = std::max<int64_t>(-right, 0); column < std::min(x.width, x.width - right); ++column) {
        const int64_t at = (n * x.height + row) * x.width + column;
        const V dz = load_some<V>(grad + (at + down * x.width + right) * x.channels, count);
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) sums[r] = V::fma(dz, V::broadcast(values[at * x.channels + r]), sums[r]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) store_some(sums[r], to + r * stride, count);
}

enum FewSlot { kFewInput, kFewTaps, kFewOutput };

template <class T, class Scale>
void few_deconvolve(const FewDeconvolution& problem, const Host& host) {
  const Activation& x = problem.x;
  const int64_t channels = x.channels, of_group = channels / problem.groups, plane = x.height * x.width;
  const Scale* values = pixels_of<T, Scale>(x, !problem.backward, kFewInput, host);
  const auto packed = [&](const auto* raw) {
    return packed_taps<Scale>(raw, channels, of_group, problem.kernel_size * problem.kernel_size, problem.backward,
                              kFewTaps, host);
  };
  const Scale* taps = problem.deconv_scalar == Scalar::Float64
                          ? packed(static_cast<const double*>(problem.deconv_weight))
                          : packed(static_cast<const float*>(problem.deconv_weight));
  auto* sums = static_cast<Scale*>(host.scratch(kFewOutput, x.batch * plane * channels * sizeof(Scale)));
  for (int64_t at = 0; at < x.batch * plane; ++at) {
    const int64_t row = at / x.width % x.height, column = at % x.width;
    for (int64_t group = 0; group < channels; group += of_group) {
      for (int64_t o = 0; o < of_group; o += Vec<Scale>::width) {
        store_some(window_sums(x, problem.kernel_size, row, column, values + at * channels + group,
                               taps + group * of_group + o, of_group, of_group - o),
                   sums + at * channels + group + o, of_group - o);
      }
    }
  }
  auto* out = static_cast<T*>(problem.out);
  const int64_t to_pixel = x.channels_last ? channels : 1, to_channel = x.channels_last ? 1 : plane;
  for (int64_t n = 0; n < x.batch; ++n, out += plane * channels, sums += plane * channels) {
    for (int64_t at = 0; at < plane; ++at) {
      for (int64_t c = 0; c < channels; ++c) {
        assign(out[at * to_pixel + c * to_channel], sums[at * channels + c]);
      }
    }
  }
}

template <class T, class Scale>
void few_deconv_gradient(const FewDeconvGradient& problem, const Host& host) {
  const Activation& x = problem.x;
  const int64_t channels = x.channels, of_group = channels / problem.groups, pairs = channels * of_group;
  const int64_t taps = problem.kernel_size * problem.kernel_size;
  const Scale* values = pixels_of<T, Scale>(x, true, kFewInput, host);
  const Scale* grad = pixels_of<T, Scale>(problem.grad_z, false, kFewOutput, host);
  auto* sums = static_cast<Scale*>(host.scratch(kFewTaps, pairs * taps * sizeof(Scale)));
  constexpr int kRows = 8;
  const int64_t size = problem.kernel_size;
  for (int64_t tap = 0; tap < taps; ++tap) {
    const int64_t down = tap / size - size / 2, right = tap % size - size / 2;
    for (int64_t c = 0; c < channels;) {
      const int64_t group = c / of_group * of_group;
      const bool whole = c + kRows <= group + of_group;
      for (int64_t o = 0; o < of_group; o += Vec<Scale>::width) {
        const auto& gradients = whole ? tap_gradients<kRows, Scale> : tap_gradients<1, Scale>;
        gradients(x, down, right, values + c, grad + group + o, of_group - o, sums + tap * pairs + c * of_group + o,
                  of_group);
      }
      c += whole ? kRows : 1;
    }
  }
  const auto store = [&](auto* out) {
    for (int64_t t = 0; t < taps; ++t) {
      for (int64_t p = 0; p < pairs; ++p) {
        out[p * taps + t] = static_cast<std::remove_pointer_t<decltype(out)>>(sums[t * pairs + p]);
      }
    }
  };
  if (problem.deconv_scalar == Scalar::Float64) {
    store(static_cast<double*>(problem.ddeconv_weight));
  } else {
    store(static_cast<float*>(problem.ddeconv_weight));
  }
}

inline void few_deconvolve(const FewDeconvolution& problem, const Host& host) {
  for_scalar(problem.scalar, [&](auto x, auto scale) { few_deconvolve<decltype(x), decltype(scale)>(problem, host); });
}

inline void few_deconv_gradient(const FewDeconvGradient& problem, const Host& host) {
  for_scalar(problem.scalar,
             [&](auto x, auto scale) { few_deconv_gradient<decltype(x), decltype(scale)>(problem, host); });
}

}  // namespace leni_kernels::reborn::inline LENI_KERNELS_TARGET
LENI_KERNELS_END
