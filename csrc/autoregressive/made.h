// A MADE as its inversion takes it: linear layers over units in ascending order of degree, and which units a step of
// the inversion makes known. Step p computes all hidden units of degree p, layer after layer, and then feature p.
#pragma once

#include <vector>

#include "gmk/abi.h"
#include "gmk/staircase.h"

namespace gmk {
namespace GMK_ISA {
namespace made {

using namespace staircase;
using Args = gmk_made_args;

// A linear layer from one place to another: places are hidden layers, with -1 for the input; the last goes to the
// output, whose rows are all features' log-scales and then all shifts.
template <class T> struct Link {
  int64_t rows, columns;
  const T *weight, *bias;
  int from, to;
  bool output;     // the last
  bool active;     // what it makes goes through the activation
  int over;        // the link whose result is added (a residual block ends here), or -1
  int64_t offset;  // of the weights among all parameters
  std::vector<int64_t> seen;
};

template <class T> struct Network {
  const Args& a;
  std::vector<Link<T>> links;
  std::vector<std::vector<int64_t>> starts;  // of each place: the first unit of degree d or more, d = 0 .. D + 1
  int64_t panel;                             // steps of which the sums over what came before are made together

  explicit Network(const Args& args) : a(args) {
    const int64_t D = a.features;
    starts.emplace_back();
    for (int64_t d = 0; d <= D + 1; ++d) starts[0].push_back(std::clamp<int64_t>(d - 1, 0, D));
    int64_t widest = 1;
    const int64_t* degree = a.degrees;
    for (int64_t i = 0; i < a.layers; ++i) {
      std::vector<int64_t> first;
      for (int64_t d = 0; d <= D + 1; ++d) first.push_back(std::lower_bound(degree, degree + a.widths[i], d) - degree);
      starts.push_back(first);
      degree += a.widths[i];
      widest = std::max(widest, a.widths[i]);
    }
    // The order of the gradient's sums depends on it: it must not depend on the instruction set.
    panel = std::clamp<int64_t>(30 * D / widest, 1, D);

    const int last = int(a.layers);
    int64_t offset = 0;
    const auto add = [&](int from, int to, int over) {
      Link<T> link{to == last ? 2 * D : a.widths[to],
                   from < 0 ? D : a.widths[from],
                   nullptr,
                   nullptr,
                   from,
                   to,
                   to == last,
                   true,
                   over,
                   offset,
                   {}};
      link.weight = static_cast<const T*>(a.parameters) + offset;
      link.bias = link.weight + link.rows * link.columns;
      offset += link.rows * (link.columns + 1);
      for (int64_t r = 0; r < link.rows; ++r)
        link.seen.push_back(start(from, 1 + (link.output ? r % D : degree_of(to, r))));
      links.push_back(std::move(link));
    };
    add(-1, 0, -1);
    if (a.residual) {
      for (int inner = 1; inner < last; ++inner) {
        add(0, inner, -1);
        add(inner, 0, int(links.size()) - 2);
      }
      links.back().active = false;
      add(0, last, -1);
    } else {
      for (int i = 0; i < last; ++i) add(i, i + 1, -1);
    }
    links.back().active = false;
  }

  int64_t start(int place, int64_t degree) const { return starts[place + 1][degree]; }
  int64_t degree_of(int place, int64_t unit) const {
    const auto& first = starts[place + 1];
    return std::upper_bound(first.begin(), first.end(), unit) - first.begin() - 1;
  }
  int count() const { return int(links.size()); }
  // What the activations of all links but the last take, for so many lanes.
  int64_t hidden() const {
    int64_t total = 0;
    for (int m = 0; m + 1 < count(); ++m) total += links[m].rows;
    return total;
  }
};

}  // namespace made
}  // namespace GMK_ISA
}  // namespace gmk
