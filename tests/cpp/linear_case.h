// Linear attention: cases for every backend, and the definition in double that their results are held against. Errors
// are measured in units of what rounding may do: every result is a sum, and its bound a few roundings of the sum of its
// terms' magnitudes.
#pragma once

#include <gtest/gtest.h>

#include <limits>
#include <sstream>

#include "attn/scan.h"
#include "elements.h"

namespace attn::linear_test {

struct Options {
  int64_t batch = 1, heads = 2, heads_kv = 1, tq = 70, tk = 70, dim = 8, dim_v = 8;
  FeatureMap map = FeatureMap::elu1;
  bool causal = true, normalize = true, masked = false, states = false, keep_states = true;
  std::vector<int32_t> cu = {};
  int64_t gap = 3;  // elements between rows: 0 lets kernels read many at once
};

inline double phi(FeatureMap map, double x) {
  switch (map) {
    case FeatureMap::elu1: return x > 0 ? x + 1 : std::exp(x);
    case FeatureMap::relu: return x > 0 ? x : 0;
    case FeatureMap::exp: return std::exp(x);
    case FeatureMap::sigmoid: return 1 / (1 + std::exp(-x));
    default: return x;
  }
}
inline double slope(FeatureMap map, double x) {
  switch (map) {
    case FeatureMap::elu1: return x > 0 ? 1 : std::exp(x);
    case FeatureMap::relu: return x > 0 ? 1 : 0;
    case FeatureMap::exp: return std::exp(x);
    case FeatureMap::sigmoid: return phi(map, x) * (1 - phi(map, x));
    default: return 1;
  }
}

// Features of a row.
inline std::vector<double> features(FeatureMap map, const std::vector<double>& x) {
  if (map != FeatureMap::taylor2) {
    std::vector<double> y;
    for (double e : x) y.push_back(phi(map, e));
    return y;
  }
  const double d = static_cast<double>(x.size());
  std::vector<double> y = {1};
  for (double e : x) y.push_back(e * std::pow(d, -0.25));
  for (size_t a = 0; a < x.size(); ++a) {
    for (size_t b = a; b < x.size(); ++b) y.push_back(x[a] * x[b] / std::sqrt(a == b ? 2 * d : d));
  }
  return y;
}

// A sum and the sum of magnitudes.
struct Sum {
  double value = 0, size = 0;
  void add(double x) { add(x, std::fabs(x)); }
  void add(double x, double magnitude) {
    value += x;
    size += magnitude;
  }
  void scale(double x) {
    value *= x;
    size *= std::fabs(x);
  }
};

// The gradient of a row from that of its features.
inline std::vector<Sum> pull_back(FeatureMap map, const std::vector<double>& x, const Sum* dphi) {
  std::vector<Sum> dx(x.size());
  const auto add = [&](size_t i, const Sum& d, double by) { dx[i].add(d.value * by, d.size * std::fabs(by)); };
  if (map != FeatureMap::taylor2) {
    for (size_t i = 0; i < x.size(); ++i) add(i, dphi[i], slope(map, x[i]));
    return dx;
  }
  const double d = static_cast<double>(x.size());
  ++dphi;
  for (size_t i = 0; i < x.size(); ++i) add(i, *dphi++, std::pow(d, -0.25));
  for (size_t a = 0; a < x.size(); ++a) {
    for (size_t b = a; b < x.size(); ++b, ++dphi) {
      add(a, *dphi, x[b] / std::sqrt(a == b ? 2 * d : d));
      add(b, *dphi, x[a] / std::sqrt(a == b ? 2 * d : d));
    }
  }
  return dx;
}

// [batch, token, head, features + gap], seen as [batch, head, token, features].
template <class E> struct Rows {
  int64_t heads = 0, tokens = 0, dim = 0, pitch = 0;
  std::vector<typename E::type> data;

  Rows() = default;
  Rows(int64_t batch, int64_t h, int64_t t, int64_t d, int64_t gap)
      : heads(h), tokens(t), dim(d), pitch(d + gap),
        data(batch * h * t * pitch, E::put(std::numeric_limits<double>::quiet_NaN())) {}
  View4 view() { return {data.data(), tokens * heads * pitch, pitch, heads * pitch}; }
  typename E::type& at(int64_t b, int64_t h, int64_t t, int64_t x) {
    return data[((b * tokens + t) * heads + h) * pitch + x];
  }
  double get(int64_t b, int64_t h, int64_t t, int64_t x) const {
    return E::get(data[((b * tokens + t) * heads + h) * pitch + x]);
  }
};

template <class E> struct Case {
  using Stat = typename E::stat;
  Options o;
  Rows<E> q, k, v, out, dout, dq, dk, dv;
  std::vector<Stat> s0, z0, s, z, ds, dz, ds0, dz0, mass;
  std::vector<uint8_t> mask;
  static constexpr double kEps = 1e-3;

  explicit Case(const Options& options, uint32_t seed = 5) : o(options) {
    std::mt19937 random(seed);
    std::normal_distribution<double> normal;
    const auto rows = [&](int64_t heads, int64_t tokens, int64_t dim) {
      return Rows<E>(o.batch, heads, tokens, dim, o.gap);
    };
    q = rows(o.heads, o.tq, o.dim);
    k = rows(o.heads_kv, o.tk, o.dim);
    v = rows(o.heads_kv, o.tk, o.dim_v);
    dout = rows(o.heads, o.tq, o.dim_v);
    out = rows(o.heads, o.tq, o.dim_v);
    dq = q, dk = k, dv = v;  // nothing but NaN
    mask.assign(o.batch * o.tk, 1);
    if (o.masked) {
      for (auto& m : mask) m = random() % 4 != 0;
    }
    // Features of the identity: around 1, so that the mass stays away from 0.
    const double shift = o.map == FeatureMap::identity ? 1.5 : 0;
    // Tokens that nobody may read stay NaN.
    const auto fill = [&](Rows<E>& x, double mean, bool keys) {
      for (int64_t b = 0; b < o.batch; ++b) {
        for (int64_t t = 0; t < used(x.tokens); ++t) {
          if (keys && !mask[b * o.tk + t]) continue;
          for (int64_t h = 0; h < x.heads; ++h) {
            for (int64_t i = 0; i < x.dim; ++i) x.at(b, h, t, i) = E::put(mean + 0.7 * normal(random));
          }
        }
      }
    };
    fill(q, shift, false);
    fill(k, shift, true);
    fill(v, 0, true);
    fill(dout, 0, false);
    const int64_t states = sequences() * o.heads_kv * feature_count(o.map, o.dim);
    const auto numbers = [&](std::vector<Stat>& x, int64_t n, bool positive) {
      x.resize(n);
      for (auto& y : x) y = static_cast<Stat>(positive ? 5 * std::fabs(normal(random)) : normal(random));
    };
    if (o.states) {
      numbers(s0, states * o.dim_v, false);
      numbers(z0, states, true);
      numbers(ds, states * o.dim_v, false);
      numbers(dz, states, false);
    }
    const Stat nan = std::numeric_limits<Stat>::quiet_NaN();
    s.assign(states * o.dim_v, nan);
    z.assign(states, nan);
    ds0 = s;
    dz0 = z;
    mass.assign(o.batch * o.heads * o.tq, nan);
  }

  int64_t sequences() const { return o.cu.empty() ? o.batch : static_cast<int64_t>(o.cu.size()) - 1; }
  int64_t used(int64_t tokens) const { return o.cu.empty() ? tokens : o.cu.back(); }
  bool kept(int64_t b, int64_t j) const { return mask[b * o.tk + j] != 0; }

  LinearParams forward() {
    LinearParams p{};
    p.dtype = E::dtype;
    p.batch = o.batch, p.heads = o.heads, p.heads_kv = o.heads_kv, p.tq = o.tq, p.tk = o.tk;
    p.dim = o.dim, p.dim_v = o.dim_v;
    p.map = o.map;
    p.causal = o.causal;
    p.normalize = o.normalize;
    p.eps = kEps;
    p.q = q.view(), p.k = k.view(), p.v = v.view(), p.out = out.view();
    if (o.masked) p.key_mask = {mask.data(), o.tk, 1};
    p.cu = o.cu.empty() ? nullptr : o.cu.data();
    p.sequences = sequences();
    if (o.states) p.s0 = s0.data(), p.z0 = z0.data();
    if (o.keep_states || !o.causal) p.s = s.data(), p.z = z.data();
    if (o.normalize) p.mass = mass.data();
    return p;
  }
  LinearBackwardParams backward() {
    LinearBackwardParams b{};
    b.forward = forward();
    b.dout = dout.view();
    b.dq = dq.view(), b.dk = dk.view(), b.dv = dv.view();
    if (o.states) b.ds = ds.data(), b.dz = dz.data(), b.ds0 = ds0.data(), b.dz0 = dz0.data();
    return b;
  }

  // Of a rounding of a product's operands or result.
  static double unit() { return E::eps / 2; }
  // In float32 sums themselves round, in bf16 and f16 it is operands and results that do.
  static double roundings() { return E::dtype == DType::f32 || E::dtype == DType::f64 ? 40 : 4; }

  void expect(double found, const Sum& x, const char* name, int64_t head, int64_t row, int64_t i) const {
    // Statistics are of float32 also where elements are not, but made of features that a product may have rounded.
    const double bound = roundings() * unit() * x.size + 1e-30;
    if (!(std::fabs(found - x.value) <= bound)) {
      ADD_FAILURE() << name << " of head " << head << ", row " << row << ", feature " << i << ": " << found
                    << ", expected " << x.value << " within " << bound;
    }
  }

  // Every result of both passes, sequence by sequence.
  void check() {
    for (int64_t n = 0; n < sequences(); ++n) {
      for (int64_t h = 0; h < o.heads_kv && !testing::Test::HasFailure(); ++h) check(n, h);
    }
  }

  void check(int64_t n, int64_t head_kv) {
    const int64_t b = o.cu.empty() ? n : 0, first = o.cu.empty() ? 0 : o.cu[n];
    const int64_t queries = o.cu.empty() ? o.tq : o.cu[n + 1] - first, keys = o.cu.empty() ? o.tk : queries;
    const int64_t group = o.heads / o.heads_kv, dim = feature_count(o.map, o.dim), dim_v = o.dim_v;
    const int64_t state = (n * o.heads_kv + head_kv) * dim;
    const auto row = [&](const Rows<E>& x, int64_t head, int64_t i) {
      std::vector<double> y;
      for (int64_t f = 0; f < o.dim; ++f) y.push_back(x.get(b, head, first + i, f));
      return y;
    };
    std::vector<double> all_fk;
    for (int64_t j = 0; j < keys; ++j) {
      auto y = features(o.map, row(k, head_kv, j));
      if (!kept(b, first + j)) y.assign(y.size(), 0);
      all_fk.insert(all_fk.end(), y.begin(), y.end());
    }
    const auto fk = [&](int64_t j, int64_t f) { return all_fk[j * dim + f]; };
    const auto value = [&](int64_t j, int64_t x) { return kept(b, first + j) ? v.get(b, head_kv, first + j, x) : 0; };
    const auto start = [&](int64_t f, int64_t x) { return o.states ? double(s0[(state + f) * dim_v + x]) : 0; };
    const auto start_z = [&](int64_t f) { return o.states ? double(z0[state + f]) : 0; };
    const auto end_ds = [&](int64_t f, int64_t x) { return o.states ? double(ds[(state + f) * dim_v + x]) : 0; };
    const auto end_dz = [&](int64_t f) { return o.states ? double(dz[state + f]) : 0; };

    std::vector<Sum> dphi_k(keys * dim), dvalue(keys * dim_v), dstart(dim * dim_v), dstart_z(dim);
    for (int64_t f = 0; f < dim; ++f) {
      for (int64_t x = 0; x < dim_v; ++x) {
        dstart[f * dim_v + x].add(end_ds(f, x));
        for (int64_t j = 0; j < keys; ++j) {
          dphi_k[j * dim + f].add(end_ds(f, x) * value(j, x));
          dvalue[j * dim_v + x].add(end_ds(f, x) * fk(j, f));
        }
      }
      dstart_z[f].add(end_dz(f));
      for (int64_t j = 0; j < keys; ++j) dphi_k[j * dim + f].add(end_dz(f));
    }
    for (int64_t h = head_kv * group; h < (head_kv + 1) * group; ++h) {
      for (int64_t i = 0; i < queries; ++i) {
        const int64_t seen = o.causal ? i + 1 : keys;
        const std::vector<double> fq = features(o.map, row(q, h, i));
        std::vector<double> weight(seen), weight_size(seen);
        std::vector<Sum> dphi_q(dim);
        Sum m;
        std::vector<Sum> number(dim_v);
        for (int64_t f = 0; f < dim; ++f) {
          m.add(fq[f] * start_z(f));
          for (int64_t x = 0; x < dim_v; ++x) number[x].add(fq[f] * start(f, x));
        }
        for (int64_t j = 0; j < seen; ++j) {
          for (int64_t f = 0; f < dim; ++f) {
            weight[j] += fq[f] * fk(j, f);
            weight_size[j] += std::fabs(fq[f] * fk(j, f));
          }
          m.add(weight[j], weight_size[j]);
          for (int64_t x = 0; x < dim_v; ++x)
            number[x].add(weight[j] * value(j, x), weight_size[j] * std::fabs(value(j, x)));
        }
        double factor = 1, relative = 0;  // relative: how far the mass may be off
        if (o.normalize) {
          relative = m.value == 0 ? 0 : m.size / std::fabs(m.value);
          m.value += m.value < 0 ? -kEps : kEps;
          expect(mass[(b * o.heads + h) * o.tq + first + i], m, "mass", h, first + i, 0);
          factor = m.value == 0 ? 0 : 1 / m.value;
        }
        // dN and dmass, in which out and the mass are rounded.
        std::vector<Sum> dn(dim_v);
        Sum dm;
        for (int64_t x = 0; x < dim_v; ++x) {
          number[x].scale(factor);
          number[x].size += relative * std::fabs(number[x].value);
          expect(out.get(b, h, first + i, x), number[x], "out", h, first + i, x);
          const double d = dout.get(b, h, first + i, x) * factor;
          dn[x].add(d, std::fabs(d) * (1 + relative));
          if (o.normalize) dm.add(-d * number[x].value, std::fabs(d) * (1 + relative) * number[x].size);
        }
        for (int64_t f = 0; f < dim; ++f) {
          Sum& dphi = dphi_q[f];
          for (int64_t x = 0; x < dim_v; ++x) {
            dphi.add(dn[x].value * start(f, x), dn[x].size * std::fabs(start(f, x)));
            dstart[f * dim_v + x].add(fq[f] * dn[x].value, std::fabs(fq[f]) * dn[x].size);
          }
          dphi.add(dm.value * start_z(f), dm.size * std::fabs(start_z(f)));
          dstart_z[f].add(dm.value * fq[f], dm.size * std::fabs(fq[f]));
          for (int64_t j = 0; j < seen; ++j) {
            Sum dw = dm;
            for (int64_t x = 0; x < dim_v; ++x) dw.add(dn[x].value * value(j, x), dn[x].size * std::fabs(value(j, x)));
            dphi.add(dw.value * fk(j, f), dw.size * std::fabs(fk(j, f)));
            dphi_k[j * dim + f].add(dw.value * fq[f], dw.size * std::fabs(fq[f]));
          }
        }
        const std::vector<Sum> dx = pull_back(o.map, row(q, h, i), dphi_q.data());
        for (int64_t f = 0; backward_ && f < o.dim; ++f)
          expect(dq.get(b, h, first + i, f), dx[f], "dq", h, first + i, f);
        for (int64_t j = 0; j < seen; ++j) {
          for (int64_t x = 0; x < dim_v; ++x) {
            dvalue[j * dim_v + x].add(weight[j] * dn[x].value, weight_size[j] * dn[x].size);
          }
        }
      }
    }
    for (int64_t j = 0; backward_ && j < keys; ++j) {
      const bool keep = kept(b, first + j);
      const std::vector<Sum> dx = pull_back(o.map, row(k, head_kv, j), &dphi_k[j * dim]);
      for (int64_t f = 0; f < o.dim; ++f) {
        Sum d = keep ? dx[f] : Sum{};
        expect(dk.get(b, head_kv, first + j, f), d, "dk", head_kv, first + j, f);
      }
      for (int64_t x = 0; x < dim_v; ++x) {
        Sum d = dvalue[j * dim_v + x];
        d.scale(keep ? 1 : 0);
        expect(dv.get(b, head_kv, first + j, x), d, "dv", head_kv, first + j, x);
      }
    }
    for (int64_t f = 0; f < dim; ++f) {
      Sum sum;
      sum.add(start_z(f));
      for (int64_t j = 0; j < keys; ++j) sum.add(fk(j, f));
      if (o.keep_states || !o.causal) expect(z[state + f], sum, "z", head_kv, n, f);
      if (backward_ && o.states) expect(dz0[state + f], dstart_z[f], "dz0", head_kv, n, f);
      for (int64_t x = 0; x < dim_v; ++x) {
        Sum cell;
        cell.add(start(f, x));
        for (int64_t j = 0; j < keys; ++j) cell.add(fk(j, f) * value(j, x));
        const int64_t at = (state + f) * dim_v + x;
        if (o.keep_states || !o.causal) expect(s[at], cell, "s", head_kv, n, f * dim_v + x);
        if (backward_ && o.states) expect(ds0[at], dstart[f * dim_v + x], "ds0", head_kv, n, f * dim_v + x);
      }
    }
  }

  void check_forward() {
    backward_ = false;
    check();
  }

 private:
  bool backward_ = true;
};

// Ragged chunks, one head or groups of them, widths around tiles, packed sequences some of which are empty, masks,
// states, and every map.
inline std::vector<Options> cases() {
  using M = FeatureMap;
  std::vector<Options> all;
  const auto add = [&](Options x) {
    all.push_back(x);
    x.causal = !x.causal;
    all.push_back(x);
  };
  add({.heads = 1, .tq = 1, .tk = 1, .dim = 6, .dim_v = 5});
  add({.heads = 4, .heads_kv = 2, .tq = 70, .tk = 70, .dim = 6, .dim_v = 7});
  add({.batch = 2, .heads = 2, .heads_kv = 2, .tq = 64, .tk = 64, .dim = 64, .dim_v = 64, .gap = 0});
  add({.heads = 1, .tq = 65, .tk = 65, .dim = 96, .dim_v = 64});
  add({.heads = 1, .tq = 70, .tk = 70, .dim = 24, .dim_v = 130, .masked = true, .gap = 8});
  add({.heads = 1, .tq = 600, .tk = 600, .dim = 8, .dim_v = 6, .states = true});
  add({.heads = 2, .tq = 520, .tk = 520, .dim = 6, .dim_v = 9, .masked = true, .cu = {0, 300, 300, 301, 301, 500}});
  add({.heads = 2,
       .tq = 90,
       .tk = 90,
       .dim = 10,
       .dim_v = 6,
       .states = true,
       .keep_states = false,
       .cu = {0, 0, 40, 90}});
  for (M map : {M::relu, M::exp, M::identity, M::sigmoid}) {
    add({.heads = 1, .tq = 80, .tk = 80, .dim = 10, .dim_v = 6, .map = map});
  }
  add({.heads = 2, .tq = 80, .tk = 80, .dim = 12, .dim_v = 6, .map = M::taylor2, .masked = true});
  add({.heads = 1, .tq = 300, .tk = 300, .dim = 5, .dim_v = 7, .map = M::taylor2, .cu = {0, 270, 270, 290}});
  add({.heads = 1, .tq = 5, .tk = 5, .dim = 66, .dim_v = 3, .map = M::taylor2});
  add({.tq = 70, .tk = 70, .dim = 3, .map = M::taylor2, .states = true, .gap = 0});
  add({.tq = 70, .tk = 70, .dim = 3, .map = M::taylor2, .normalize = false});
  add({.tq = 80, .tk = 80, .map = M::identity, .normalize = false, .states = true});
  all.push_back({.heads = 2, .tq = 33, .tk = 300, .causal = false, .states = true});
  all.push_back({.heads = 2, .tq = 300, .tk = 5, .causal = false});
  all.push_back({.heads = 2, .tq = 20, .tk = 0, .causal = false, .states = true});
  return all;
}

inline std::string text(const Options& o) {
  std::ostringstream s;
  s << (o.causal ? "causal" : "full");
  for (int64_t x : {o.batch, o.heads, o.heads_kv, o.tq, o.tk, o.dim, o.dim_v}) s << " " << x;
  s << " map " << static_cast<int>(o.map) << (o.normalize ? "" : " not normalised") << (o.masked ? " masked" : "")
    << (o.states ? " states" : "") << (o.cu.empty() ? "" : " packed");
  return s.str();
}

}  // namespace attn::linear_test
