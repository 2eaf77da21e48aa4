// The gradients of x and of the threshold.
//
// Per tap, g = weightᵀ·dy in a product of its own; dx = Σ_t [x > θ_t]·g_t and dθ_t = Σ [x ≤ θ_t]·g_t. T is the bytes of
// x, Y of y: reads x and dy and writes dx, 2T + Y, which is the least; each tap's look at dy comes from cache, and g is
// never in memory. A tile of dy is packed with zeros around it, as far as the taps reach beyond x, and multiplied into
// a panel of channels of x a few sites at a time, so that g is split by the threshold while it is in registers. Tiles
// are cut from the sites of x, not of dy: each site is written by one tile, and no product is computed twice. Sites
// outside x are all 0: what they give θ needs no products but that of the weights with the sum of the dy that reads
// them. Saves nothing.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "conv_relu/panels.h"
#include "conv_relu/problem.h"
#include "kernels/chunks.h"
#include "kernels/gather.h"
#include "kernels/kernel.h"
#include "kernels/product.h"
#include "kernels/simd.h"
#include "kernels/target.h"

LENI_KERNELS_BEGIN
namespace leni_kernels::conv_relu::inline LENI_KERNELS_TARGET {

namespace gradients {

constexpr int64_t kInputTileBytes = 320 * 1024;       // of a tile's dy and of one panel of its x and dx
constexpr int64_t kLeastSites = 96;                   // of a tile, where threads want more tiles
constexpr int kLaneSites = kPixelRows >= 12 ? 8 : 4;  // at a time in registers, where products are lane by lane

// A tile of cells of x, and where the dy that reaches it is packed. Positions of cells and of outputs run alike, tap by
// tap a constant apart: where a row is at the edge of dy there are zeros before or after it, which it shares
// with its neighbour.
struct InputTile {
  Box cells, outputs;
  int64_t extent[3];  // positions: planes of an image, rows of a plane, columns of a row
  int64_t lead;       // positions before the first output
  int64_t positions;

  int64_t at(int64_t n, int64_t z, int64_t y) const { return ((n * extent[0] + z) * extent[1] + y) * extent[2]; }

  // From a cell's position to that of the output that reads it.
  int64_t shift(const Reach& tap) const {
    int64_t step[3];
    for (int d = 0; d < 3; ++d) step[d] = cells.begin[d + 1] - tap.cell[d] - outputs.begin[d + 1];
    return (step[0] * extent[1] + step[1]) * extent[2] + step[2];
  }
};

template <class T, class Scale>
struct InputGradientJob {
  using V = Vec<Scale>;
  static constexpr int64_t width = V::width;

  const ConvReluGradientProblem& problem;
  const Host& host;
  const Panels<Scale>& panels;
  const Grid& grid;  // of cells
  const Taps<Scale>& taps;
  const PackedWeight<Scale>& weight;
  double* within;   // [chunk][T][padded channels]: Σ [x ≤ θ]·g over sites of x
  double* outside;  // [chunk][T][gradient_lanes]: Σ dy over outputs that read outside x
  int64_t site = site_pitch<Scale>(panels.gradient_lanes());  // values of a position of dy

  InputTile tile(int64_t index) const {
    InputTile tile{};
    tile.cells = grid.box(index);
    tile.outputs.begin[0] = tile.cells.begin[0];
    tile.outputs.end[0] = tile.cells.end[0];
    for (int d = 0; d < 3; ++d) {
      const int64_t begin = tile.cells.begin[d + 1], end = tile.cells.end[d + 1], outputs = problem.out_size[d];
      // At the edges of x also the outputs that read beyond them.
      const int64_t first = begin == 0 ? 0 : std::clamp<int64_t>(begin - taps.most[d], 0, outputs);
      const int64_t last = end == grid.size[d + 1] ? outputs : std::clamp<int64_t>(end - taps.least[d], 0, outputs);
      const int64_t before = first - (begin - taps.most[d]), after = end - taps.least[d] - last;
      tile.outputs.begin[d + 1] = first;
      tile.outputs.end[d + 1] = last;
      tile.extent[d] = std::max(last - first + std::max<int64_t>(std::max(before, after), 0), end - begin);
    }
    int64_t low = 0, high = 0;
    for (int64_t t = 0; t < problem.tap_count; ++t) {
      low = std::min(low, tile.shift(taps[t]));
      high = std::max(high, tile.shift(taps[t]));
    }
    tile.lead = -low;
    tile.positions = -low + tile.at(tile.cells.size(0), 0, 0) + high;
    return tile;
  }

  void run(int64_t chunk, int64_t begin, int64_t end) const {
    int64_t packed = -1;
    InputTile tile;
    Scale* grad = nullptr;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t index = item / panels.count;
      if (index != packed) {
        tile = this->tile(index);
        grad = pack_gradient(tile);
        packed = index;
      }
      if (item % panels.count == 0 && problem.dthreshold != nullptr) add_outside(tile, grad, chunk);
      const Panel panel = panels[item % panels.count];
      for (int64_t phase = 0; phase < Phase::count(problem); ++phase) {
        compute(tile, panel, Phase(problem, phase), grad + tile.lead * site, chunk);
      }
    }
  }

  Scale* pack_gradient(const InputTile& tile) const {
    auto* grad = static_cast<Scale*>(host.scratch(kGradient, tile.positions * site * sizeof(Scale)));
    std::fill(grad, grad + tile.positions * site, Scale(0));
    panels.template gather_gradient<T>(problem.grad, tile.outputs, grad + tile.lead * site, tile.extent, site);
    return grad;
  }

  // ---- one panel of channels at the sites of one phase

  // What is computed from what, by position in the tile.
  struct Work {
    const InputTile& tile;
    const Panel& panel;
    const Phase& phase;
    int64_t lanes;
    const Scale* grad;  // of the panel's outputs
    const Scale* x;
    Scale* dx;
    Scale* sums;  // [T][lanes]: Σ [x ≤ θ]·g
  };

  void compute(const InputTile& tile, const Panel& panel, const Phase& phase, const Scale* grad, int64_t chunk) const {
    Box cells = tile.cells;
    for (int d = 0; d < 3; ++d) cells.end[d + 1] = std::min(cells.end[d + 1], phase.cells[d]);
    if (cells.size(1) <= 0 || cells.size(2) <= 0 || cells.size(3) <= 0) return;
    const int64_t lanes = panels.lanes(panel), room = (tile.at(tile.cells.size(0), 0, 0) + width) * lanes;
    auto* x = static_cast<Scale*>(host.scratch(kInput, room * sizeof(Scale)));
    auto* dx = static_cast<Scale*>(host.scratch(kPanel, room * sizeof(Scale)));
    auto* sums = static_cast<Scale*>(host.scratch(kSums, problem.tap_count * lanes * sizeof(Scale)));
    // What is computed where there is no site is added to positions of dx that are not used.
    std::fill(x, x + room, std::numeric_limits<Scale>::quiet_NaN());
    std::fill(dx, dx + room, Scale(0));
    std::fill(sums, sums + problem.tap_count * lanes, Scale(0));
    panels.template gather_input<T>(problem, phase, cells, panel, x, tile.extent, lanes);
    const Work work{tile, panel, phase, lanes, grad + panels.gradient_at(panel), x, dx, sums};
    // Where products are lane by lane there is little to multiply: the taps take turns at a few sites.
    const int64_t together = panels.across && weight.finite ? problem.tap_count : 1;
    for (int64_t t = 0; t < problem.tap_count; t += together) {
      if (together == 1 && !phase.has(taps[t])) continue;
      each_run(tile, cells, t, [&](int64_t first, int64_t count) {
        if (panels.across) {
          add_lane_by_lane<kLaneSites>(work, t, t + together, first, count);
        } else if (panel.vectors == 1) {
          add_product<1>(work, t, first, count);
        } else {
          add_product<kChannelVectors>(work, t, first, count);
        }
      });
    }
    for (int64_t t = 0; t < problem.tap_count; ++t) {
      double* total = within + (chunk * problem.tap_count + t) * panels.channels() + panel.offset;
      for (int64_t l = 0; l < lanes; ++l) total[l] += sums[t * lanes + l];
    }
    if (problem.dx != nullptr) write(tile, panel, phase, cells, dx);
  }

  // Calls visit(first position, count) for all cells that have an output at this tap. Those between and around them
  // meet zeros, which add nothing, and are visited too, unless a weight is infinite or NaN.
  template <class Visit>
  void each_run(const InputTile& tile, const Box& cells, int64_t t, const Visit& visit) const {
    for (int64_t n = 0; n < cells.size(0); ++n) {
      for (int64_t z = 0; z < cells.size(1); ++z) {
        if (weight.finite) {
          visit(tile.at(n, z, 0), (cells.size(2) - 1) * tile.extent[2] + cells.size(3));
          continue;
        }
        for (int64_t y = 0; y < cells.size(2); ++y) {
          const int64_t plane = cells.begin[1] + z - taps[t].cell[0], row = cells.begin[2] + y - taps[t].cell[1];
          if (plane < 0 || plane >= problem.out_size[0] || row < 0 || row >= problem.out_size[1]) continue;
          const int64_t start = cells.begin[3] - taps[t].cell[2], columns = cells.size(3);
          const int64_t first = std::clamp<int64_t>(-start, 0, columns);
          const int64_t last = std::clamp<int64_t>(problem.out_size[2] - start, first, columns);
          visit(tile.at(n, z, y) + first, last - first);
        }
      }
    }
  }

  const Scale* bounds(const Panel& panel, int64_t t) const {
    return taps.threshold + t * panels.channels() + panel.offset;
  }

  template <int N>
  void add_product(const Work& work, int64_t t, int64_t first, int64_t count) const {
    constexpr int64_t lanes = N * width;
    add_rows<kPixelRows, N>({panels.outputs, work.grad + (first + work.tile.shift(taps[t])) * site, site,
                             weight.at(work.panel, t), 0, nullptr, work.dx + first * lanes, lanes, lanes},
                            count, work.x + first * lanes, bounds(work.panel, t), work.sums + t * lanes);
  }

  // The rows of a product in blocks of M, then of M/2, … 1.
  template <int M, int N>
  void add_rows(Block<ScalarProduct<Scale>, Scale, Scale> block, int64_t count, const Scale* x, const Scale* bounds,
                Scale* sums) const {
    for (; count >= M; count -= M) {
      add_block<M, N>(block, x, bounds, sums);
      block.a += M * block.a_row;
      block.out += M * block.out_row;
      x += M * block.out_row;
    }
    if constexpr (M > 1) {
      if (count > 0) add_rows<M / 2, N>(block, count, x, bounds, sums);
    }
  }

  // Adds a block's products, while they are in registers, to dx where x is above the bounds and to the sums where not.
  template <int M, int N>
  static void add_block(const Block<ScalarProduct<Scale>, Scale, Scale>& block, const Scale* x, const Scale* bounds,
                        Scale* sums) {
    V g[M][N], bound[N], within[N];
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) g[m][n] = V::zero();
    }
    accumulate<ScalarProduct<Scale>, Channels::kVectors>(block, block.a, block.b, g);
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      bound[n] = V::load(bounds + n * width);
      within[n] = V::zero();
    }
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) {
        const int64_t at = (m * N + n) * width;
        V above = V::load(block.out + at);
        V::add_by_bound(V::load(x + at), bound[n], g[m][n], above, within[n]);
        above.store(block.out + at);
      }
    }
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) V::add(V::load(sums + n * width), within[n]).store(sums + n * width);
  }

  // The taps from t to ``last`` of the phase, at the positions in blocks of M, then of M/2, … 1.
  template <int M>
  void add_lane_by_lane(const Work& work, int64_t t, int64_t last, int64_t first, int64_t count) const {
    for (; count >= M; count -= M, first += M) {
      for (int64_t part = 0; part < panels.parts; ++part) add_lanes<M>(work, t, last, first, part);
    }
    if constexpr (M > 1) {
      if (count > 0) add_lane_by_lane<M / 2>(work, t, last, first, count);
    }
  }

  template <int M>
  void add_lanes(const Work& work, int64_t t, int64_t last, int64_t first, int64_t part) const {
    const int64_t outputs = panels.outputs, output = round_up(panels.groups, width), lane = part * width;
    const Scale* x = work.x + first * work.lanes + lane;
    Scale* dx = work.dx + first * work.lanes + lane;
    V above[M];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) above[m] = V::load(dx + m * work.lanes);
    for (; t < last; ++t) {
      if (!work.phase.has(taps[t])) continue;
      const Scale* dy = work.grad + (first + work.tile.shift(taps[t])) * site;
      const Scale* packed = weight.at(work.panel, t) + lane * outputs;
      V g[M];
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) g[m] = V::zero();
      for (int64_t o = 0; o < outputs; ++o) {
        const V factor = V::load(packed + o * width);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) g[m] = V::fma(factor, V::load(dy + m * site + o * output), g[m]);
      }
      const V bound = V::load(bounds(work.panel, t) + lane);
      V within = V::zero();
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) V::add_by_bound(V::load(x + m * work.lanes), bound, g[m], above[m], within);
      Scale* sum = work.sums + t * work.lanes + lane;
      V::add(V::load(sum), within).store(sum);
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) above[m].store(dx + m * work.lanes);
  }

  void write(const InputTile& tile, const Panel& panel, const Phase& phase, const Box& cells, const Scale* dx) const {
    const Volume& x = problem.x;
    const int64_t sites = x.size[0] * x.size[1] * x.size[2];
    const int64_t channel = x.channels_last ? 1 : sites, column = x.channels_last ? x.channels : 1;
    const int64_t lanes = panels.lanes(panel);
    for (int64_t n = 0; n < cells.size(0); ++n) {
      for (int64_t z = 0; z < cells.size(1); ++z) {
        for (int64_t y = 0; y < cells.size(2); ++y) {
          const int64_t plane = phase.site[0] + problem.stride[0] * (cells.begin[1] + z);
          const int64_t row = phase.site[1] + problem.stride[1] * (cells.begin[2] + y);
          const int64_t first = phase.site[2] + problem.stride[2] * cells.begin[3];
          T* to = static_cast<T*>(problem.dx) + (cells.begin[0] + n) * x.channels * sites +
                  ((plane * x.size[1] + row) * x.size[2] + first) * column + panel.channel * channel;
          for (int64_t p = 0; p < panels.parts; ++p) {
            scatter(dx + tile.at(n, z, y) * lanes + p * width, lanes, to + p * channel, cells.size(3),
                    problem.stride[2] * column, panel.lanes, panels.lane_step * channel);
          }
        }
      }
    }
  }

  // ---- sites outside x

  // Of one tap and dimension, the outputs of a tile that read a site of x, and all that no other tile has.
  struct Reading {
    int64_t first, last, inner_first, inner_last;
    bool all_inside() const { return first == inner_first && last == inner_last; }
    bool inside(int64_t output) const { return output >= inner_first && output < inner_last; }
  };

  Reading reading(const InputTile& tile, int64_t t, int d) const {
    const int64_t begin = tile.cells.begin[d + 1] - taps[t].cell[d], end = tile.cells.end[d + 1] - taps[t].cell[d];
    const int64_t outputs = problem.out_size[d], sites = problem.x.size[d] - taps[t].phase[d];
    const int64_t cells = ceil_div(std::max<int64_t>(sites, 0), problem.stride[d]) - taps[t].cell[d];
    Reading r;
    r.first = tile.cells.begin[d + 1] == 0 ? 0 : std::clamp<int64_t>(begin, 0, outputs);
    r.last = tile.cells.end[d + 1] == grid.size[d + 1] ? outputs : std::clamp<int64_t>(end, 0, outputs);
    r.inner_first = std::clamp(begin, r.first, r.last);
    r.inner_last = std::clamp(std::min(end, cells), r.inner_first, r.last);
    return r;
  }

  void add_outside(const InputTile& tile, const Scale* grad, int64_t chunk) const {
    const int64_t lanes = panels.gradient_lanes();
    auto* sums = static_cast<Scale*>(host.scratch(kSums, lanes * sizeof(Scale)));
    for (int64_t t = 0; t < problem.tap_count; ++t) {
      const Reading planes = reading(tile, t, 0), rows = reading(tile, t, 1), columns = reading(tile, t, 2);
      if (planes.all_inside() && rows.all_inside() && columns.all_inside()) continue;
      std::fill(sums, sums + lanes, Scale(0));
      for (int64_t n = 0; n < tile.cells.size(0); ++n) {
        for (int64_t z = planes.first; z < planes.last; ++z) {
          for (int64_t y = rows.first; y < rows.last; ++y) {
            const int64_t at = tile.at(n, z - tile.outputs.begin[1], y - tile.outputs.begin[2]) - tile.outputs.begin[3];
            const Scale* row = grad + (tile.lead + at) * site;
            const bool inside = planes.inside(z) && rows.inside(y);
            add_outputs(row, columns.first, inside ? columns.inner_first : columns.last, sums);
            if (inside) add_outputs(row, columns.inner_last, columns.last, sums);
          }
        }
      }
      double* total = outside + (chunk * problem.tap_count + t) * lanes;
      for (int64_t l = 0; l < lanes; ++l) total[l] += sums[l];
    }
  }

  void add_outputs(const Scale* row, int64_t first, int64_t last, Scale* sums) const {
    for (int64_t i = first; i < last; ++i) {
      for (int64_t l = 0; l < panels.gradient_lanes(); l += width) {
        V::add(V::load(sums + l), V::load(row + i * site + l)).store(sums + l);
      }
    }
  }
};

// dθ of one panel: Σ [x ≤ θ]·g over the sites of x, and [0 ≤ θ]·weightᵀ·Σ dy for those outside.
template <class T, class Scale>
struct ThresholdGradient {
  static constexpr int64_t width = Vec<Scale>::width;

  const ConvReluGradientProblem& problem;
  const Panels<Scale>& panels;
  const PackedWeight<Scale>& weight;
  const double* within;
  const double* outside;

  bool reads_outside(int64_t t) const {
    for (int d = 0; d < 3; ++d) {
      const int64_t first = problem.taps[t].offset[d], last = first + (problem.out_size[d] - 1) * problem.stride[d];
      if (first < 0 || last >= problem.x.size[d]) return true;
    }
    return false;
  }

  void finish(const Panel& panel, int64_t t) const {
    const int64_t taps = problem.tap_count, lanes = panel.vectors * width, outputs = panels.outputs;
    const int64_t output = panels.across ? round_up(panels.groups, width) : 1, lane = panels.across ? 1 : 0;
    const Scale* packed = weight.at(panel, t);
    const double* dy = outside + t * panels.gradient_lanes() + panels.gradient_at(panel);
    const double* sums = within + t * panels.channels() + panel.offset;
    for (int64_t p = 0; p < panels.parts; ++p) {
      double padded[Panels<Scale>::most] = {};
      for (int64_t o = 0; reads_outside(t) && o < outputs; ++o) {
        for (int64_t l = 0; l < lanes; ++l) {
          padded[l] += packed[(p * outputs + o) * lanes + l] * dy[o * output + l * lane];
        }
      }
      for (int64_t l = 0; l < panel.lanes; ++l) {
        const int64_t at = (panel.channel + p + l * panels.lane_step) * taps + t;
        const bool passes = 0 <= static_cast<const Scale*>(problem.threshold)[at];
        static_cast<Scale*>(problem.dthreshold)[at] =
            static_cast<Scale>(sums[p * width + l] + (passes ? padded[l] : 0));
      }
    }
  }
};

template <class T, class Scale>
void input_gradient(const ConvReluGradientProblem& problem, const Host& host) {
  const Panels<Scale> panels(problem);
  const int64_t taps = problem.tap_count, channels = panels.channels(), lanes = panels.gradient_lanes();
  int64_t cells[3];
  for (int d = 0; d < 3; ++d) cells[d] = ceil_div(problem.x.size[d], problem.stride[d]);
  const int64_t all = problem.x.batch * cells[0] * cells[1] * cells[2];
  const int64_t cell = site_pitch<Scale>(lanes) + 2 * panels.lanes(panels[0]);
  const int64_t fit = kInputTileBytes / (cell * static_cast<int64_t>(sizeof(Scale)));
  const Grid grid(problem.x.batch, cells, std::clamp(all * panels.count / (4 * host.threads), kLeastSites, fit));
  const int64_t items = grid.count() * panels.count, chunks = std::min(items, host.threads);

  const PackedWeight<Scale> weight(problem, panels, host);
  const Taps<Scale> packed(problem, panels, host);
  auto* within = static_cast<double*>(host.scratch(kPartial, chunks * taps * (channels + lanes) * sizeof(double)));
  double* outside = within + chunks * taps * channels;
  std::fill(within, within + chunks * taps * (channels + lanes), 0.0);
  const InputGradientJob<T, Scale> job{problem, host, panels, grid, packed, weight, within, outside};
  run_chunks(job, items, chunks, host);
  if (problem.dthreshold == nullptr) return;
  add_chunks(within, taps * channels, chunks);
  add_chunks(outside, taps * lanes, chunks);
  const ThresholdGradient<T, Scale> gradient{problem, panels, weight, within, outside};
  for_panels(panels.count, host, [&](int64_t index) {
    for (int64_t t = 0; t < taps; ++t) gradient.finish(panels[index], t);
  });
}

}  // namespace gradients

}  // namespace leni_kernels::conv_relu::inline LENI_KERNELS_TARGET
LENI_KERNELS_END
