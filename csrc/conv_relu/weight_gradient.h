// The gradients of weight and bias: dw[o, c, t] = Σ_q dy[o, q]·max(x[c, q·stride + offset_t], θ[c, t]), db = Σ dy.
//
// T is the bytes of x, Y of y. Reads x and dy, T + Y, which is the least, and writes nothing of their size; where the
// threads divide the channels among them, so that each has the sums of its own, dy is read once for each share. A tile
// packs the dy of its outputs and the x that they read; for each tap and panel of channels, max(x, θ) is written
// output by output, in L1, and multiplied. Saves nothing: max(x, θ) of all taps is made again from x.
#pragma once

#include <algorithm>
#include <cstdint>

#include "conv_relu/panels.h"
#include "conv_relu/problem.h"
#include "kernels/chunks.h"
#include "kernels/kernel.h"
#include "kernels/product.h"
#include "kernels/simd.h"
#include "kernels/target.h"

LENI_KERNELS_BEGIN
namespace leni_kernels::conv_relu::inline LENI_KERNELS_TARGET {

namespace gradients {

constexpr int64_t kWeightTileSites = 256;  // outputs of a tile: enough for sums to stay in registers, few enough for L1
constexpr int64_t kWeightTileBytes = 512 * 1024;  // of its dy

template <class T, class Scale>
struct WeightGradientJob {
  using V = Vec<Scale>;
  static constexpr int64_t width = V::width;

  const ConvReluGradientProblem& problem;
  const Host& host;
  const Panels<Scale>& panels;
  const Grid& grid;  // of outputs
  const Taps<Scale>& taps;
  int64_t shares, splits;  // chunk s·splits + i has the i-th part of the tiles for the panels of share s
  int64_t begin, end;      // tiles
  Scale* partial;          // [split]: the panels' sums, laid out as packed weights
  double* bias;            // [split][gradient_lanes]
  int64_t site = site_pitch<Scale>(panels.gradient_lanes());  // values of an output of dy

  void run(int64_t chunk, int64_t, int64_t) const {
    const int64_t share = chunk / splits, split = chunk % splits;
    const int64_t first = panels.count * share / shares, last = panels.count * (share + 1) / shares;
    auto* grad = static_cast<Scale*>(host.scratch(kGradient, grid.most() * site * sizeof(Scale)));
    const int64_t tiles = end - begin;
    for (int64_t index = begin + tiles * split / splits; index < begin + tiles * (split + 1) / splits; ++index) {
      const Box outputs = grid.box(index);
      const int64_t extent[3] = {outputs.size(1), outputs.size(2), outputs.size(3)};
      panels.template gather_gradient<T>(problem.grad, outputs, grad, extent, site);
      if (share == 0) add_bias(grad, outputs.count(), bias + split * panels.gradient_lanes());
      for (int64_t phase = 0; problem.dweight != nullptr && phase < Phase::count(problem); ++phase) {
        for (int64_t panel = first; panel < last; ++panel) {
          add_panel(outputs, Phase(problem, phase), panels[panel], grad, split);
        }
      }
    }
  }

  // In double past a few sites: gradients of opposite signs all but cancel in this sum.
  void add_bias(const Scale* grad, int64_t count, double* sums) const {
    constexpr int64_t few = 32;
    for (int64_t first = 0; first < count; first += few) {
      for (int64_t l = 0; l < panels.gradient_lanes(); l += width) {
        V acc = V::zero();
        for (int64_t i = first; i < std::min(first + few, count); ++i) {
          acc = V::add(acc, V::load(grad + i * site + l));
        }
        Scale lanes[width];
        acc.store(lanes);
        for (int64_t i = 0; i < width; ++i) sums[l + i] += lanes[i];
      }
    }
  }

  // The cells of x that a tile of outputs reads, as far as they exist.
  Box cells_of(const Box& outputs, const Phase& phase) const {
    Box cells = outputs;
    for (int d = 0; d < 3; ++d) {
      cells.begin[d + 1] = std::clamp<int64_t>(outputs.begin[d + 1] + taps.least[d], 0, phase.cells[d]);
      cells.end[d + 1] = std::clamp<int64_t>(outputs.end[d + 1] + taps.most[d], cells.begin[d + 1], phase.cells[d]);
    }
    return cells;
  }

  void add_panel(const Box& outputs, const Phase& phase, const Panel& panel, const Scale* grad, int64_t split) const {
    const int64_t lanes = panels.lanes(panel), steps = outputs.count();
    const Box cells = cells_of(outputs, phase);
    const int64_t extent[3] = {cells.size(1), cells.size(2), cells.size(3)};
    Scale* x = nullptr;
    auto* bounded = static_cast<Scale*>(host.scratch(kPanel, grid.most() * lanes * sizeof(Scale)));
    for (int64_t t = 0; t < problem.tap_count; ++t) {
      if (!phase.has(taps[t])) continue;
      if (x == nullptr) {
        x = static_cast<Scale*>(host.scratch(kInput, (cells.count() + 1) * lanes * sizeof(Scale)));
        panels.template gather_input<T>(problem, phase, cells, panel, x, extent, lanes);
      }
      bound(outputs, cells, taps[t], x, taps.threshold + t * panels.channels() + panel.offset, lanes, bounded);
      Scale* sums = partial + (split * panels.channels() + panel.offset) * problem.tap_count * panels.outputs +
                    t * lanes * panels.outputs;
      if (panels.across) {
        add_lane_by_lane(bounded, steps, grad + panels.gradient_at(panel), sums);
      } else {
        add_product(bounded, lanes, steps, grad + panels.gradient_at(panel), sums);
      }
    }
  }

  // max(x, θ) of one tap for each output; x is 0 outside its cells.
  void bound(const Box& outputs, const Box& cells, const Reach& tap, const Scale* x, const Scale* threshold,
             int64_t lanes, Scale* to) const {
    for (int64_t n = 0; n < outputs.size(0); ++n) {
      for (int64_t z = outputs.begin[1] + tap.cell[0]; z < outputs.end[1] + tap.cell[0]; ++z) {
        for (int64_t y = outputs.begin[2] + tap.cell[1]; y < outputs.end[2] + tap.cell[1]; ++y) {
          const bool exists = z >= cells.begin[1] && z < cells.end[1] && y >= cells.begin[2] && y < cells.end[2];
          const int64_t count = outputs.size(3), start = outputs.begin[3] + tap.cell[2];
          const int64_t first = exists ? std::clamp<int64_t>(cells.begin[3] - start, 0, count) : count;
          const int64_t last = exists ? std::clamp<int64_t>(cells.end[3] - start, first, count) : count;
          const int64_t row =
              ((n * cells.size(1) + z - cells.begin[1]) * cells.size(2) + y - cells.begin[2]) * cells.size(3);
          const Scale* from = x + (row + start - cells.begin[3]) * lanes;
          for (int64_t l = 0; l < lanes; l += width) {
            const V least = V::load(threshold + l), outside = V::zero().at_least(least);
            for (int64_t i = 0; i < first; ++i) outside.store(to + i * lanes + l);
            for (int64_t i = first; i < last; ++i) {
              V::load(from + i * lanes + l).at_least(least).store(to + i * lanes + l);
            }
            for (int64_t i = last; i < count; ++i) outside.store(to + i * lanes + l);
          }
          to += count * lanes;
        }
      }
    }
  }

  void add_product(const Scale* bounded, int64_t lanes, int64_t steps, const Scale* grad, Scale* sums) const {
    using Product = ScalarProduct<Scale>;
    multiply_all<Product, Channels::kSummed, Scale, Scale>(
        {steps, grad, 1, bounded, lanes, nullptr, sums, lanes, lanes, site}, panels.outputs);
  }

  void add_lane_by_lane(const Scale* bounded, int64_t steps, const Scale* grad, Scale* sums) const {
    for (int64_t p = 0; p < panels.parts; ++p) {
      add_lanes<4>(bounded + p * width, steps, grad, sums + p * panels.outputs * width, panels.outputs);
    }
  }

  // The outputs of each group, O at a time, then O/2, … 1, in as many chains of sums as are needed not to wait.
  template <int O>
  void add_lanes(const Scale* a, int64_t steps, const Scale* grad, Scale* sums, int64_t outputs) const {
    constexpr int chains = 4 / O;
    const int64_t lanes = panels.parts * width, output = round_up(panels.groups, width);
    for (; outputs >= O; outputs -= O, grad += O * output, sums += O * width) {
      V acc[chains][O];
      for (auto& chain : acc) std::fill(chain, chain + O, V::zero());
      const auto add = [&](int64_t i, V(&chain)[O]) {
        const V value = V::load(a + i * lanes);
#pragma GCC unroll 4
        for (int o = 0; o < O; ++o) chain[o] = V::fma(value, V::load(grad + i * site + o * output), chain[o]);
      };
      int64_t i = 0;
      for (; i + chains <= steps; i += chains) {
#pragma GCC unroll 4
        for (int k = 0; k < chains; ++k) add(i + k, acc[k]);
      }
      for (; i < steps; ++i) add(i, acc[0]);
      for (int o = 0; o < O; ++o) {
        V total = acc[0][o];
        for (int k = 1; k < chains; ++k) total = V::add(total, acc[k][o]);
        V::add(V::load(sums + o * width), total).store(sums + o * width);
      }
    }
    if constexpr (O > 1) {
      if (outputs > 0) add_lanes<O / 2>(a, steps, grad, sums, outputs);
    }
  }
};

// The most shares of the panels, all alike, that the threads can be divided into.
inline int64_t equal_shares(int64_t panels, int64_t threads) {
  int64_t shares = std::min(panels, threads);
  while (panels % shares != 0 || threads % shares != 0) --shares;
  return shares;
}

template <class T, class Scale>
void weight_gradient(const ConvReluGradientProblem& problem, const Host& host) {
  const Panels<Scale> panels(problem);
  const int64_t size = problem.dweight == nullptr ? 0 : panels.channels() * problem.tap_count * panels.outputs;
  const int64_t lanes = panels.gradient_lanes();
  const int64_t fit = kWeightTileBytes / (site_pitch<Scale>(lanes) * static_cast<int64_t>(sizeof(Scale)));
  const Grid grid(problem.x.batch, problem.out_size, std::min(kWeightTileSites, fit));
  // Where there is little to sum, dy is not read twice.
  const bool little = panels.across || problem.dweight == nullptr;
  const int64_t shares = little ? 1 : equal_shares(panels.count, host.threads);
  const int64_t splits = std::min(host.threads / shares, grid.count());

  const Taps<Scale> taps(problem, panels, host);
  auto* partial = static_cast<Scale*>(host.scratch(kPartial, splits * size * sizeof(Scale)));
  auto* bias = static_cast<double*>(host.scratch(kPartialBias, splits * lanes * sizeof(double)));
  std::fill(bias, bias + splits * lanes, 0.0);
  sum_in_parts(grid.count(), 1, partial, size, splits, host, [&](int64_t begin, int64_t end) {
    const WeightGradientJob<T, Scale> job{problem, host, panels, grid, taps, shares, splits, begin, end, partial, bias};
    run_chunks(job, shares * splits, shares * splits, host);
  });
  if (problem.dweight != nullptr) {
    const int64_t stride[3] = {panels.inputs * problem.tap_count, problem.tap_count, 1};
    for_panels(panels.count, host, [&](int64_t index) {
      const Panel panel = panels[index];
      const Scale* sums = partial + panel.offset * problem.tap_count * panels.outputs;
      panels.each_weight(panel, problem.tap_count, stride,
                         [&](int64_t at, int64_t raw) { static_cast<Scale*>(problem.dweight)[raw] = sums[at]; });
    });
  }
  if (problem.dbias == nullptr) return;
  add_chunks(bias, lanes, splits);
  for (int64_t o = 0; o < problem.out_channels; ++o) {
    const int64_t outputs = panels.outputs;
    const int64_t at = panels.across ? o % outputs * round_up(panels.groups, Vec<Scale>::width) + o / outputs : o;
    static_cast<Scale*>(problem.dbias)[o] = static_cast<Scale>(bias[at]);
  }
}

}  // namespace gradients

}  // namespace leni_kernels::conv_relu::inline LENI_KERNELS_TARGET
LENI_KERNELS_END
