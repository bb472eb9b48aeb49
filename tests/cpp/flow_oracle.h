// Flow attention of one sequence in double, from the weights of all pairs, and its gradients by the chain rule through
// the same steps. Plain and slow; shares no formula with the kernels beyond the definition.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

namespace attn {

struct FlowRules {
  bool causal = false, head_softmax = false, source_norm = false;
  double eps = 1e-6, outside = 0, clamp = 1;
};

// [rows][columns]
struct Matrix {
  int64_t rows = 0, columns = 0;
  std::vector<double> x;

  Matrix() = default;
  Matrix(int64_t r, int64_t c) : rows(r), columns(c), x(static_cast<size_t>(r * c)) {}
  double* operator[](int64_t r) { return x.data() + r * columns; }
  const double* operator[](int64_t r) const { return x.data() + r * columns; }
};

inline double sigmoid_of(double x) { return 1 / (1 + std::exp(-x)); }

// Row t: the sum of weight_j x_j over j <= t (causal), or over all j: then for `rows` rows.
inline Matrix sums_of(const Matrix& x, const std::vector<double>& weight, bool causal, int64_t rows) {
  Matrix sum(rows, x.columns);
  for (int64_t t = 0; t < rows; ++t)
    for (int64_t j = 0; j < (causal ? t + 1 : x.rows); ++j)
      for (int64_t f = 0; f < x.columns; ++f) sum[t][f] += weight[j] * x[j][f];
  return sum;
}
// Its gradient: of x without the weights.
inline Matrix sums_gradient(const Matrix& dsum, bool causal, int64_t rows) {
  Matrix d(rows, dsum.columns);
  for (int64_t j = 0; j < rows; ++j)
    for (int64_t t = causal ? j : 0; t < dsum.rows; ++t)
      for (int64_t f = 0; f < d.columns; ++f) d[j][f] += dsum[t][f];
  return d;
}

// One head: sinks are queries, sources keys; names as in attn/flow.h.
struct FlowHead {
  Matrix q, k, v, dout;                                   // given
  Matrix sink, source;                                    // sigmoids
  Matrix source_sum, sink_sum, source_flows, sink_flows;  // as each sink, source, sink, source meets them
  std::vector<double> incoming, outgoing, conserved_sink, conserved_source, weight, dweight;
  Matrix pairs, y, out, size;  // sink_i . source_j; without the factor of a row; sum of absolute terms
  Matrix dpairs, dq, dk, dv;
};

class FlowSequence {
 public:
  FlowSequence(const FlowRules& rules, std::vector<FlowHead>& heads) : r_(rules), heads_(heads) {}

  void forward() {
    for (FlowHead& h : heads_) flows(h);
    weights();
    for (FlowHead& h : heads_) multiply(h);
  }
  // After forward.
  void backward() {
    for (FlowHead& h : heads_) product_gradients(h);
    const auto dcompeting = weight_gradients();
    for (size_t i = 0; i < heads_.size(); ++i) flow_gradients(heads_[i], dcompeting[i]);
  }

 private:
  const FlowRules r_;
  std::vector<FlowHead>& heads_;

  double position(int64_t t) const { return r_.causal ? static_cast<double>(t + 1) : 1; }
  double ratio(const FlowHead& h) const {
    return r_.causal ? 1 : static_cast<double>(h.q.rows) / static_cast<double>(h.k.rows);
  }
  double norm(const FlowHead& h) const { return r_.source_norm ? 1 / ratio(h) : 1; }
  double cut(double x) const { return x > r_.clamp ? r_.clamp : x < -r_.clamp ? -r_.clamp : x; }
  double factor(const FlowHead& h, int64_t i) const {
    return sigmoid_of(h.conserved_sink[i] * ratio(h)) / h.incoming[i];
  }
  int64_t seen(const FlowHead& h, int64_t i) const { return r_.causal ? i + 1 : h.k.rows; }

  // (x_i + eps) . (y_i + eps) + outside
  std::vector<double> dots(const Matrix& x, const Matrix& y) const {
    std::vector<double> d(static_cast<size_t>(x.rows));
    for (int64_t i = 0; i < x.rows; ++i) {
      d[i] = r_.outside;
      for (int64_t f = 0; f < x.columns; ++f) d[i] += (x[i][f] + r_.eps) * (y[i][f] + r_.eps);
    }
    return d;
  }
  // Adds its gradient to dx; returns that of y.
  Matrix dots_gradient(const std::vector<double>& d, const Matrix& x, const Matrix& y, Matrix& dx) const {
    Matrix dy(x.rows, x.columns);
    for (int64_t i = 0; i < x.rows; ++i) {
      for (int64_t f = 0; f < x.columns; ++f) {
        dx[i][f] += d[i] * (y[i][f] + r_.eps);
        dy[i][f] = d[i] * (x[i][f] + r_.eps);
      }
    }
    return dy;
  }
  std::vector<double> inverse(const std::vector<double>& x) const {
    std::vector<double> y(x.size());
    for (size_t i = 0; i < x.size(); ++i) y[i] = position(static_cast<int64_t>(i)) / x[i];
    return y;
  }

  void flows(FlowHead& h) const {
    const int64_t n = h.q.rows, m = h.k.rows;
    h.sink = h.q;
    h.source = h.k;
    for (double& x : h.sink.x) x = sigmoid_of(x);
    for (double& x : h.source.x) x = sigmoid_of(x);
    const std::vector<double> ones(static_cast<size_t>(n > m ? n : m), 1);
    h.source_sum = sums_of(h.source, ones, r_.causal, n);
    h.sink_sum = sums_of(h.sink, ones, r_.causal, m);
    h.incoming = dots(h.sink, h.source_sum);
    h.outgoing = dots(h.source, h.sink_sum);
    h.source_flows = sums_of(h.source, inverse(h.outgoing), r_.causal, n);
    h.sink_flows = sums_of(h.sink, inverse(h.incoming), r_.causal, m);
    h.conserved_sink = dots(h.sink, h.source_flows);
    h.conserved_source = dots(h.source, h.sink_flows);
    for (int64_t i = 0; i < n; ++i) h.conserved_sink[i] /= position(i);
    for (int64_t j = 0; j < m; ++j) h.conserved_source[j] *= norm(h) / position(j);
  }

  void weights() {
    for (FlowHead& h : heads_) {
      const int64_t m = h.k.rows;
      h.weight.assign(static_cast<size_t>(m), 0);
      for (int64_t j = 0; j < m; ++j) {
        double sum = 0;
        const auto share = [&](double other) { sum += std::exp(cut(other) - cut(h.conserved_source[j])); };
        if (r_.head_softmax) {
          for (const FlowHead& other : heads_) share(other.conserved_source[j]);
        } else {
          for (int64_t l = 0; l < (r_.causal ? j + 1 : m); ++l) share(h.conserved_source[l]);
        }
        h.weight[j] = static_cast<double>(r_.causal ? j + 1 : m) / sum;
      }
    }
  }

  void multiply(FlowHead& h) const {
    const int64_t n = h.q.rows, m = h.k.rows, dim_v = h.v.columns;
    h.pairs = Matrix(n, m);
    h.y = h.out = h.size = Matrix(n, dim_v);
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < (m ? seen(h, i) : 0); ++j) {
        for (int64_t f = 0; f < h.q.columns; ++f) h.pairs[i][j] += h.sink[i][f] * h.source[j][f];
        for (int64_t x = 0; x < dim_v; ++x) {
          const double part = h.pairs[i][j] * h.weight[j] * h.v[j][x];
          h.y[i][x] += part;
          h.size[i][x] += std::abs(part);
        }
      }
      for (int64_t x = 0; x < dim_v; ++x) {
        h.out[i][x] = m ? h.y[i][x] * factor(h, i) : 0;
        h.size[i][x] *= m ? factor(h, i) : 0;
      }
    }
  }

  void product_gradients(FlowHead& h) const {
    const int64_t n = h.q.rows, m = h.k.rows, dim_v = h.v.columns;
    h.dpairs = Matrix(n, m);
    h.dq = Matrix(n, h.q.columns);
    h.dk = Matrix(m, h.q.columns);
    h.dv = Matrix(m, dim_v);
    h.dweight.assign(static_cast<size_t>(m), 0);
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < (m ? seen(h, i) : 0); ++j) {
        for (int64_t x = 0; x < dim_v; ++x) {
          const double dy = factor(h, i) * h.dout[i][x];
          h.dpairs[i][j] += dy * h.weight[j] * h.v[j][x];
          h.dv[j][x] += dy * h.pairs[i][j];  // of weight v so far
        }
      }
    }
    for (int64_t j = 0; j < m; ++j) {
      for (int64_t x = 0; x < dim_v; ++x) {
        h.dweight[j] += h.dv[j][x] * h.v[j][x];
        h.dv[j][x] *= h.weight[j];
      }
    }
  }

  // Of the conserved flows as they compete, after the cut.
  std::vector<std::vector<double>> weight_gradients() const {
    std::vector<std::vector<double>> d;
    for (const FlowHead& h : heads_) {
      const int64_t m = h.k.rows;
      std::vector<double> dh(static_cast<size_t>(m));
      for (int64_t j = 0; j < m; ++j) {
        dh[j] = h.weight[j] * h.dweight[j];
        if (r_.head_softmax) {
          for (const FlowHead& o : heads_) dh[j] -= h.weight[j] / m * o.weight[j] * o.dweight[j];
        } else {
          // Source j has its share exp(s_j) / sum in every softmax that it takes part in.
          for (int64_t l = r_.causal ? j : 0; l < m; ++l) {
            const double of_l = static_cast<double>(r_.causal ? l + 1 : m);
            const double share = h.weight[l] / of_l * std::exp(cut(h.conserved_source[j]) - cut(h.conserved_source[l]));
            dh[j] -= share * h.weight[l] * h.dweight[l];
          }
        }
      }
      d.push_back(std::move(dh));
    }
    return d;
  }

  void flow_gradients(FlowHead& h, const std::vector<double>& dcompeting) const {
    const int64_t n = h.q.rows, m = h.k.rows, dim = h.q.columns;
    if (n == 0 || m == 0) return;
    Matrix dsink(n, dim), dsource(m, dim);
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < m; ++j) {
        for (int64_t f = 0; f < dim; ++f) {
          dsink[i][f] += h.dpairs[i][j] * h.source[j][f];
          dsource[j][f] += h.dpairs[i][j] * h.sink[i][f];
        }
      }
    }
    std::vector<double> dincoming(static_cast<size_t>(n)), doutgoing(static_cast<size_t>(m)), dsinks(dincoming),
        dsources(doutgoing);
    for (int64_t i = 0; i < n; ++i) {
      double dfactor = 0;
      for (int64_t x = 0; x < h.v.columns; ++x) dfactor += h.dout[i][x] * h.y[i][x];
      const double a = sigmoid_of(h.conserved_sink[i] * ratio(h));
      dincoming[i] = -dfactor * a / (h.incoming[i] * h.incoming[i]);
      dsinks[i] = dfactor / h.incoming[i] * a * (1 - a) * ratio(h) / position(i);
    }
    for (int64_t j = 0; j < m; ++j) {
      const bool inside = std::abs(h.conserved_source[j]) <= r_.clamp;
      dsources[j] = inside ? dcompeting[j] * norm(h) / position(j) : 0;
    }
    const Matrix dsource_flows = sums_gradient(dots_gradient(dsinks, h.sink, h.source_flows, dsink), r_.causal, m);
    const Matrix dsink_flows = sums_gradient(dots_gradient(dsources, h.source, h.sink_flows, dsource), r_.causal, n);
    divided_gradient(dsource_flows, h.source, h.outgoing, dsource, doutgoing);
    divided_gradient(dsink_flows, h.sink, h.incoming, dsink, dincoming);
    const Matrix dsource_sum = sums_gradient(dots_gradient(dincoming, h.sink, h.source_sum, dsink), r_.causal, m);
    const Matrix dsink_sum = sums_gradient(dots_gradient(doutgoing, h.source, h.sink_sum, dsource), r_.causal, n);
    finish(h.sink, dsink, dsink_sum, h.dq);
    finish(h.source, dsource, dsource_sum, h.dk);
  }

  // Through t x / flow.
  void divided_gradient(const Matrix& d, const Matrix& x, const std::vector<double>& flow, Matrix& dx,
                        std::vector<double>& dflow) const {
    for (int64_t i = 0; i < x.rows; ++i) {
      for (int64_t f = 0; f < x.columns; ++f) {
        dx[i][f] += d[i][f] * position(i) / flow[i];
        dflow[i] -= d[i][f] * x[i][f] * position(i) / (flow[i] * flow[i]);
      }
    }
  }
  static void finish(const Matrix& x, const Matrix& dx, const Matrix& more, Matrix& to) {
    for (size_t i = 0; i < x.x.size(); ++i) to.x[i] = (dx.x[i] + more.x[i]) * x.x[i] * (1 - x.x[i]);
  }
};

}  // namespace attn
