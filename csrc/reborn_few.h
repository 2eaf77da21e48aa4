// Reborn's deconvolution of few values: z = D ⋆ᵀ min(x, 0), what z's gradient gives x by way of D, and D's gradient.
//
// For problems whose products take less time than a call of a library: any groups, sizes and types, in one thread. An
// infinity goes no further than D reaches. Reads and writes as a library would; what is packed stays in the caches.
//
// Included once per ISA object, after leni_training.h.

template <class Scale>
Scale value_of(Scale value) {
  return value;
}
inline float value_of(BFloat16 value) { return to_float(value); }
template <class T, class Scale>
T stored(Scale value) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    return to_bfloat16(value);
  } else {
    return value;
  }
}

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
        const Scale value = value_of(from[c * x.stride_channel]);
        to[c] = negative ? std::min(value, Scale(0)) : value;
      }
    }
  }
  return pixels;
}

// D [C, C/groups, k²] as [tap][input][output of its group]; backwards as [tap from the last][output][input of its
// group], with which what z's gradient gives is a deconvolution, too.
template <class Scale>
Scale* packed_taps(const Scale* raw, int64_t channels, int64_t of_group, int64_t taps, bool backward, int slot,
                   const Host& host) {
  auto* packed = static_cast<Scale*>(host.scratch(slot, channels * of_group * taps * sizeof(Scale)));
  for (int64_t c = 0; c < channels; ++c) {
    const int64_t group = c / of_group * of_group;
    for (int64_t o = 0; o < of_group; ++o) {
      const Scale* from = raw + (c * of_group + o) * taps;
      Scale* to = packed + (backward ? (group + o) * of_group + c - group : c * of_group + o);
      const int64_t step = channels * of_group;
      for (int64_t t = 0; t < taps; ++t) to[(backward ? taps - 1 - t : t) * step] = from[t];
    }
  }
  return packed;
}

// body(pixel, tap, pixel that it reaches) for all there are.
template <class Body>
void for_each_reach(const Activation& x, int64_t size, const Body& body) {
  const int64_t half = size / 2;
  for (int64_t n = 0; n < x.batch; ++n) {
    for (int64_t row = 0; row < x.height; ++row) {
      for (int64_t column = 0; column < x.width; ++column) {
        const int64_t at = (n * x.height + row) * x.width + column;
        for (int64_t i = 0; i < size; ++i) {
          for (int64_t j = 0; j < size; ++j) {
            const int64_t down = i - half, right = j - half;
            if (row + down < 0 || row + down >= x.height || column + right < 0 || column + right >= x.width) continue;
            body(at, i * size + j, at + down * x.width + right);
          }
        }
      }
    }
  }
}

// to += Σ_c from[c] · by[c], rows of ``count`` each; four sums at a time, which do not wait for each other.
template <class Scale>
inline void add_rows(const Scale* by, const Scale* from, int64_t count, Scale* to) {
  using V = Vec<Scale>;
  for (int64_t o = 0; o < count; o += V::width) {
    V sums[4] = {load_some<V>(to + o, count - o), V::zero(), V::zero(), V::zero()};
    int64_t c = 0;
    for (; c + 4 <= count; c += 4) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        sums[i] = V::fma(load_some<V>(by + (c + i) * count + o, count - o), V::broadcast(from[c + i]), sums[i]);
      }
    }
    for (; c < count; ++c) {
      sums[0] = V::fma(load_some<V>(by + c * count + o, count - o), V::broadcast(from[c]), sums[0]);
    }
    store_some(V::add(V::add(sums[0], sums[1]), V::add(sums[2], sums[3])), to + o, count - o);
  }
}

// to[c] += from · by[c] for rows of ``count``.
template <class Scale>
inline void add_products(const Scale* from, const Scale* by, int64_t count, Scale* to) {
  using V = Vec<Scale>;
  for (int64_t o = 0; o < count; o += V::width) {
    const V row = load_some<V>(from + o, count - o);
    for (int64_t c = 0; c < count; ++c) {
      Scale* at = to + c * count + o;
      store_some(V::fma(row, V::broadcast(by[c]), load_some<V>(at, count - o)), at, count - o);
    }
  }
}

enum FewSlot { kFewInput, kFewTaps, kFewOutput };

template <class T, class Scale>
void few_deconvolve(const FewDeconvolution& problem, const Host& host) {
  const Activation& x = problem.x;
  const int64_t channels = x.channels, of_group = channels / problem.groups, plane = x.height * x.width;
  const Scale* values = pixels_of<T, Scale>(x, !problem.backward, kFewInput, host);
  const Scale* taps = packed_taps(static_cast<const Scale*>(problem.deconv_weight), channels, of_group,
                                  problem.kernel_size * problem.kernel_size, problem.backward, kFewTaps, host);
  auto* sums = static_cast<Scale*>(host.scratch(kFewOutput, x.batch * plane * channels * sizeof(Scale)));
  std::fill_n(sums, x.batch * plane * channels, Scale(0));
  for_each_reach(x, problem.kernel_size, [&](int64_t at, int64_t tap, int64_t to) {
    const Scale *from = values + at * channels, *by = taps + tap * channels * of_group;
    for (int64_t group = 0; group < channels; group += of_group) {
      add_rows(by + group * of_group, from + group, of_group, sums + to * channels + group);
    }
  });
  auto* out = static_cast<T*>(problem.out);
  for (int64_t at = 0; at < x.batch * plane; ++at) {
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t place = x.channels_last ? at * channels + c : (at / plane * channels + c) * plane + at % plane;
      out[place] = stored<T>(sums[at * channels + c]);
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
  std::fill_n(sums, pairs * taps, Scale(0));
  for_each_reach(x, problem.kernel_size, [&](int64_t at, int64_t tap, int64_t to) {
    for (int64_t group = 0; group < channels; group += of_group) {
      add_products(grad + to * channels + group, values + at * channels + group, of_group,
                   sums + (tap * channels + group) * of_group);
    }
  });
  auto* out = static_cast<Scale*>(problem.ddeconv_weight);
  for (int64_t p = 0; p < pairs; ++p) {
    for (int64_t t = 0; t < taps; ++t) out[p * taps + t] = sums[t * pairs + p];
  }
}

inline void few_deconvolve(const FewDeconvolution& problem, const Host& host) {
  switch (problem.scalar) {
    case Scalar::Float32: return few_deconvolve<float, float>(problem, host);
    case Scalar::Float64: return few_deconvolve<double, double>(problem, host);
    case Scalar::BFloat16: return few_deconvolve<BFloat16, float>(problem, host);
  }
}

inline void few_deconv_gradient(const FewDeconvGradient& problem, const Host& host) {
  switch (problem.scalar) {
    case Scalar::Float32: return few_deconv_gradient<float, float>(problem, host);
    case Scalar::Float64: return few_deconv_gradient<double, double>(problem, host);
    case Scalar::BFloat16: return few_deconv_gradient<BFloat16, float>(problem, host);
  }
}
