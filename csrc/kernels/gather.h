// Tiles of activations of any strides, packed channel by channel, and the way back.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/half.h"
#include "kernels/simd.h"
#include "kernels/target.h"

LENI_KERNELS_BEGIN
namespace leni_kernels::inline LENI_KERNELS_TARGET {

template <class Scale>
inline Scale widened(Scale value) {
  return value;
}
template <class Scale>
inline Scale widened(Half auto value) {
  return to_float(value);
}
inline void assign(float& to, float value) { to = value; }
inline void assign(double& to, double value) { to = value; }
template <Half T>
inline void assign(T& to, float value) {
  to = to_half<T>(value);
}

// One square of gather(), of which ``outer`` × ``inner`` values exist; the others are read as 0 and not written.
template <class T, class Scale>
void gather_square(const T* from, int64_t outer, int64_t outer_stride, int64_t inner, int64_t inner_stride, Scale* to,
                   int64_t to_outer) {
  using V = Vec<Scale>;
  constexpr int64_t width = V::width;
  Scale square[width * width] = {}, turned[width * width];
  for (int64_t i = 0; i < inner; ++i) {
    if (outer_stride == 1) {
      V::load(from + i * inner_stride, Lanes::range(0, outer)).store(square + i * width);
    } else {
      for (int64_t o = 0; o < outer; ++o) {
        square[i * width + o] = widened<Scale>(from[i * inner_stride + o * outer_stride]);
      }
    }
  }
  transpose(square, width, turned, width);
  for (int64_t o = 0; o < outer; ++o) V::load(turned + o * width).store(to + o * to_outer);
}

// to[o·to_outer + i] = from[o·outer_stride + i·inner_stride]. Whole vectors are written along i.
template <class T, class Scale>
void gather(const T* from, int64_t outer, int64_t outer_stride, int64_t inner, int64_t inner_stride, Scale* to,
            int64_t to_outer) {
  using V = Vec<Scale>;
  constexpr int64_t width = V::width;
  if (inner_stride == 1) {
    for (int64_t o = 0; o < outer; ++o) {
      const T* row = from + o * outer_stride;
      int64_t i = 0;
      for (; i + width <= inner; i += width) V::load(row + i).store(to + o * to_outer + i);
      if (i < inner) V::load(row + i, Lanes::range(0, inner - i)).store(to + o * to_outer + i);
    }
    return;
  }
  for (int64_t o = 0; o < outer; o += width) {
    for (int64_t i = 0; i < inner; i += width) {
      const T* corner = from + o * outer_stride + i * inner_stride;
      const int64_t rows = std::min(width, outer - o), columns = std::min(width, inner - i);
      if (outer_stride == 1 && rows == width && columns == width) {
        transpose(corner, inner_stride, to + o * to_outer + i, to_outer);
      } else {
        gather_square(corner, rows, outer_stride, columns, inner_stride, to + o * to_outer + i, to_outer);
      }
    }
  }
}

// The way back: to[o·outer_stride + i·inner_stride] = from[o·from_outer + i]. Whole squares are read.
template <class T, class Scale>
void scatter(const Scale* from, int64_t from_outer, T* to, int64_t outer, int64_t outer_stride, int64_t inner,
             int64_t inner_stride) {
  using V = Vec<Scale>;
  constexpr int64_t width = V::width;
  for (int64_t o = 0; inner_stride == 1 && o < outer; ++o) {
    T* row = to + o * outer_stride;
    int64_t i = 0;
    for (; i + width <= inner; i += width) V::load(from + o * from_outer + i).store(row + i);
    if (i < inner) V::load(from + o * from_outer + i).store(row + i, Lanes::range(0, inner - i));
  }
  if (inner_stride == 1) return;
  Scale square[width * width];
  for (int64_t o = 0; o < outer; o += width) {
    for (int64_t i = 0; i < inner; i += width) {
      transpose(from + o * from_outer + i, from_outer, square, width);
      const int64_t rows = std::min(width, outer - o), columns = std::min(width, inner - i);
      T* corner = to + o * outer_stride + i * inner_stride;
      for (int64_t c = 0; c < columns; ++c) {
        if (outer_stride == 1) {
          V::load(square + c * width).store(corner + c * inner_stride, Lanes::range(0, rows));
        } else {
          for (int64_t r = 0; r < rows; ++r) {
            assign(corner[c * inner_stride + r * outer_stride], square[c * width + r]);
          }
        }
      }
    }
  }
}

}  // namespace leni_kernels::inline LENI_KERNELS_TARGET
LENI_KERNELS_END
