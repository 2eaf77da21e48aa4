// What the passes of ConvReLU's gradients know of a convolution: the sites that taps reach, tiles, and channels in
// vectors.
//
// Both passes work on tiles in which channels are the lanes of vectors, whatever the layout of x, dy and dx: a tile is
// packed once and read by every tap, so that turning it costs little, and then rows of any length and strided ones fill
// whole vectors. Everything is computed in Scale: float, or double for double. Sums over pixels are kept per chunk of
// tiles and added in the order of the chunks, so equal thread counts give equal bits.
#pragma once

#include <algorithm>
#include <cstdint>

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

enum Slot { kWeight, kTaps, kPartial, kPartialBias, kGradient, kInput, kPanel, kSums };  // of scratch memory

inline int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -ceil_div(-a, b); }

// A tap as it meets x: the output q reads the site phase + stride·(q + cell). Of the sites of one phase, neighbours are
// read by neighbouring outputs, whatever the stride.
struct Reach {
  int64_t phase[3], cell[3];
};

inline Reach reach(const ConvRelu& problem, int64_t tap) {
  Reach result;
  for (int d = 0; d < 3; ++d) {
    const int64_t offset = problem.taps[tap].offset[d];
    result.cell[d] = floor_div(offset, problem.stride[d]);
    result.phase[d] = offset - result.cell[d] * problem.stride[d];
  }
  return result;
}

// The sites of x of one phase: one for each cell of stride sites, but for the last where it is cut off.
struct Phase {
  int64_t site[3], cells[3];

  Phase(const ConvRelu& problem, int64_t index) {
    for (int d = 2; d >= 0; --d) {
      site[d] = index % problem.stride[d];
      index /= problem.stride[d];
      cells[d] = ceil_div(std::max<int64_t>(problem.x.size[d] - site[d], 0), problem.stride[d]);
    }
  }

  bool has(const Reach& tap) const {
    return tap.phase[0] == site[0] && tap.phase[1] == site[1] && tap.phase[2] == site[2];
  }

  static int64_t count(const ConvRelu& problem) { return problem.stride[0] * problem.stride[1] * problem.stride[2]; }
};

// ---- tiles -------------------------------------------------------------------------------------------------

// Images (0) and what counts in their dimensions (1 … 3), from ``begin`` to ``end``.
struct Box {
  int64_t begin[4], end[4];
  int64_t size(int d) const { return end[d] - begin[d]; }
  int64_t count() const { return size(0) * size(1) * size(2) * size(3); }
};

// A batch cut into boxes of at most ``most`` elements: rows whole if they fit, then planes, volumes, several images.
struct Grid {
  int64_t size[4], tile[4], tiles[4];

  Grid(int64_t batch, const int64_t (&dimensions)[3], int64_t most) : size{batch} {
    std::copy(dimensions, dimensions + 3, size + 1);
    for (int d = 3; d >= 0; --d) {
      tile[d] = even_share(size[d], std::clamp<int64_t>(most, 1, size[d]));
      tiles[d] = ceil_div(size[d], tile[d]);
      most /= tile[d];
    }
  }

  int64_t count() const { return tiles[0] * tiles[1] * tiles[2] * tiles[3]; }
  int64_t most() const { return tile[0] * tile[1] * tile[2] * tile[3]; }

  Box box(int64_t index) const {
    Box result;
    for (int d = 3; d >= 0; --d) {
      result.begin[d] = index % tiles[d] * tile[d];
      result.end[d] = std::min(result.begin[d] + tile[d], size[d]);
      index /= tiles[d];
    }
    return result;
  }
};

// Channels ``first``, first + step, … of the sites of ``box``, where the sites are ``stride`` apart and start at
// ``site``: site (n, z, y, x) of the box goes to ``to`` + (((n·extent[0] + z)·extent[1] + y)·extent[2] + x)·to_site.
template <class T, class Scale>
void gather_box(const Volume& volume, const Box& box, const int64_t (&site)[3], const int64_t (&stride)[3],
                int64_t first, int64_t channels, int64_t step, Scale* to, const int64_t (&extent)[3], int64_t to_site) {
  for (int64_t n = 0; n < box.size(0); ++n) {
    for (int64_t z = 0; z < box.size(1); ++z) {
      for (int64_t y = 0; y < box.size(2); ++y) {
        const T* from = static_cast<const T*>(volume.data) + (box.begin[0] + n) * volume.stride_batch +
                        first * volume.stride_channel + (site[0] + stride[0] * (box.begin[1] + z)) * volume.stride[0] +
                        (site[1] + stride[1] * (box.begin[2] + y)) * volume.stride[1] +
                        (site[2] + stride[2] * box.begin[3]) * volume.stride[2];
        gather(from, box.size(3), stride[2] * volume.stride[2], channels, step * volume.stride_channel,
               to + ((n * extent[0] + z) * extent[1] + y) * extent[2] * to_site, to_site);
      }
    }
  }
}

constexpr int64_t kEverySite[3] = {1, 1, 1}, kFirstSite[3] = {0, 0, 0};

// ---- channels in vectors -----------------------------------------------------------------------------------

// Input channels that are computed together. Lane l of part p is input channel ``channel`` + p + l·(lane step).
struct Panel {
  int64_t offset;  // in the padded channels
  int64_t channel, output, lanes, vectors;
};

// A panel is a few vectors of one group's channels; where groups have few channels it is a vector of groups instead,
// with as many parts as a group has channels, and then products are lane by lane.
template <class Scale>
struct Panels {
  static constexpr int64_t width = Vec<Scale>::width, most = kChannelVectors * width;
  int64_t groups, inputs, outputs;  // inputs and outputs of a group
  bool across;                      // whether lanes go across groups
  int64_t parts, lane_step, count;

  explicit Panels(const ConvRelu& problem)
      : groups(problem.groups),
        inputs(problem.x.channels / groups),
        outputs(problem.out_channels / groups),
        across(inputs * round_up(groups, width) < groups * round_up(inputs, width)),
        parts(across ? inputs : 1),
        lane_step(across ? inputs : 1),
        count(across ? ceil_div(groups, width) : groups * ceil_div(inputs, most)) {}

  int64_t channels() const { return across ? count * inputs * width : groups * round_up(inputs, width); }
  int64_t lanes(const Panel& panel) const { return parts * panel.vectors * width; }

  Panel operator[](int64_t index) const {
    if (across) {
      const int64_t group = index * width;
      return {group * inputs, group * inputs, group * outputs, std::min(width, groups - group), 1};
    }
    const int64_t per_group = ceil_div(inputs, most), group = index / per_group, first = index % per_group * most;
    const int64_t lanes = std::min(most, inputs - first);
    return {group * round_up(inputs, width) + first, group * inputs + first, group * outputs, lanes,
            ceil_div(lanes, width)};
  }

  // Calls visit(packed, raw): where the weight of tap t, part p, output o and lane l is in a panel's packed weights
  // [tap][part][output][lane], and in a tensor [O, C/groups, T] of these strides.
  template <class Visit>
  void each_weight(const Panel& panel, int64_t taps, const int64_t (&stride)[3], const Visit& visit) const {
    const int64_t lanes = panel.vectors * width, lane_stride = across ? outputs * stride[0] : stride[1];
    const int64_t first = panel.output * stride[0] + panel.channel % inputs * stride[1];
    for (int64_t o = 0; o < outputs; ++o) {
      for (int64_t p = 0; p < parts; ++p) {
        for (int64_t l = 0; l < panel.lanes; ++l) {
          const int64_t raw = first + o * stride[0] + p * stride[1] + l * lane_stride;
          for (int64_t t = 0; t < taps; ++t) {
            visit(((t * parts + p) * outputs + o) * lanes + l, raw + t * stride[2]);
          }
        }
      }
    }
  }

  // threshold [C, T] as [T][padded channels], 0 where there is no channel.
  void pack_threshold(const ConvRelu& problem, Scale* packed) const {
    std::fill(packed, packed + problem.tap_count * channels(), Scale(0));
    for (int64_t index = 0; index < count; ++index) {
      each_channel((*this)[index], [&](int64_t at, int64_t channel) {
        const Scale* threshold = static_cast<const Scale*>(problem.threshold) + channel * problem.tap_count;
        for (int64_t t = 0; t < problem.tap_count; ++t) packed[t * channels() + at] = threshold[t];
      });
    }
  }

  // Calls visit(its place in the padded channels, channel) for each input channel of a panel.
  template <class Visit>
  void each_channel(const Panel& panel, const Visit& visit) const {
    for (int64_t p = 0; p < parts; ++p) {
      for (int64_t l = 0; l < panel.lanes; ++l) {
        visit(panel.offset + p * width + l, panel.channel + p + l * lane_step);
      }
    }
  }

  // The values of dy that a site of a tile has room for, and where those of a panel start: channels in their order, or
  // groups in their order for each output of a group.
  int64_t gradient_lanes() const {
    return across ? outputs * round_up(groups, width) : round_up(outputs * groups, width);
  }
  int64_t gradient_at(const Panel& panel) const { return across ? panel.output / outputs : panel.output; }

  template <class T>
  void gather_gradient(const Volume& grad, const Box& box, Scale* to, const int64_t (&extent)[3], int64_t site) const {
    for (int64_t part = 0; part < (across ? outputs : 1); ++part) {
      gather_box<T>(grad, box, kFirstSite, kEverySite, part, across ? groups : outputs * groups, across ? outputs : 1,
                    to + part * round_up(groups, width), extent, site);
    }
  }

  template <class T>
  void gather_input(const ConvRelu& problem, const Phase& phase, const Box& cells, const Panel& panel, Scale* to,
                    const int64_t (&extent)[3], int64_t site) const {
    for (int64_t part = 0; part < parts; ++part) {
      gather_box<T>(problem.x, cells, phase.site, problem.stride, panel.channel + part, panel.lanes, lane_step,
                    to + part * width, extent, site);
    }
  }
};

// Elements from one site of a tile to the next: an odd number of cache lines, so that a column of sites meets all the
// sets of a cache.
template <class Scale>
inline int64_t site_pitch(int64_t lanes) {
  constexpr int64_t line = 64 / sizeof(Scale);
  return (ceil_div(lanes, line) | 1) * line;
}

// The taps of a convolution, in scratch memory.
template <class Scale>
struct Taps {
  Reach* reach;
  Scale* threshold;           // [T][padded channels]
  int64_t least[3], most[3];  // of the taps' cells

  Taps(const ConvRelu& problem, const Panels<Scale>& panels, const Host& host) {
    const int64_t count = problem.tap_count, bytes = round_up(count * sizeof(Reach), 64);
    auto* memory = static_cast<char*>(host.scratch(kTaps, bytes + count * panels.channels() * sizeof(Scale)));
    reach = reinterpret_cast<Reach*>(memory);
    threshold = reinterpret_cast<Scale*>(memory + bytes);
    panels.pack_threshold(problem, threshold);
    for (int64_t t = 0; t < count; ++t) {
      reach[t] = gradients::reach(problem, t);
      for (int d = 0; d < 3; ++d) {
        least[d] = t == 0 ? reach[t].cell[d] : std::min(least[d], reach[t].cell[d]);
        most[d] = t == 0 ? reach[t].cell[d] : std::max(most[d], reach[t].cell[d]);
      }
    }
  }

  const Reach& operator[](int64_t tap) const { return reach[tap]; }
};

// Runs body(index) for each of a number of panels.
template <class Body>
struct PanelJob {
  const Body& body;
  void run(int64_t, int64_t begin, int64_t end) const {
    for (int64_t index = begin; index < end; ++index) body(index);
  }
};
template <class Body>
void for_panels(int64_t count, const Host& host, const Body& body) {
  run_chunks(PanelJob<Body>{body}, count, std::min(count, host.threads), host);
}

// The weights of each panel as [tap][part][output][lane], zero in lanes without a channel, in scratch memory.
template <class Scale>
struct PackedWeight {
  const Panels<Scale>& panels;
  int64_t taps;
  Scale* packed;
  bool finite = true;

  PackedWeight(const ConvRelu& problem, const Panels<Scale>& all, const Host& host)
      : panels(all), taps(problem.tap_count) {
    const int64_t channel = taps * panels.outputs, size = panels.channels() * channel;
    packed = static_cast<Scale*>(host.scratch(kWeight, (size + panels.count) * sizeof(Scale)));
    Scale* doubts = packed + size;  // of each panel the sum of its weights times 0
    for_panels(panels.count, host, [&](int64_t index) {
      const Panel panel = panels[index];
      Scale *to = packed + panel.offset * channel, doubt(0);
      std::fill(to, to + panels.lanes(panel) * channel, Scale(0));
      panels.each_weight(panel, taps, problem.weight_stride, [&](int64_t at, int64_t raw) {
        to[at] = static_cast<const Scale*>(problem.weight)[raw];
        doubt += to[at] * 0;
      });
      doubts[index] = doubt;
    });
    for (int64_t index = 0; index < panels.count; ++index) finite = finite && doubts[index] == 0;
  }

  const Scale* at(const Panel& panel, int64_t t) const {
    return packed + (panel.offset * taps + t * panels.lanes(panel)) * panels.outputs;
  }
};

// The sums of the chunks, in their order, in the place of the first.
template <class Sum>
void add_chunks(Sum* sums, int64_t size, int64_t chunks) {
  for (int64_t chunk = 1; chunk < chunks; ++chunk) {
    for (int64_t i = 0; i < size; ++i) sums[i] += sums[chunk * size + i];
  }
}

}  // namespace gradients

}  // namespace leni_kernels::conv_relu::inline LENI_KERNELS_TARGET
LENI_KERNELS_END
