// Jobs of products and what they should give, in float64, for the tests of the CUDA kernels.
#pragma once
#include "cuda_weights.h"

using cuda::Activation;

struct Job {
  const Weights* w;
  const DeviceOperand* x;
  Rows* y = nullptr;
  Rows* sum = nullptr;
  const Rows* gate = nullptr;
  const DeviceOperand* out = nullptr;
  Activation act = Activation::none;
  const Buffer<float>* bias = nullptr;
};
inline cuda::LinearJobParams params_of(const Job& job) {
  cuda::LinearJobParams q{};
  q.w = job.w->bytes.data(), q.x = job.x->buffer.data();
  q.n = job.w->padded_n(), q.k = job.w->padded_k(), q.rows = job.w->n;
  q.tokens = job.x->tokens, q.rows8 = job.x->rows8, q.act = job.act, q.stored = uint16_t(job.w->format);
  if (job.y) q.y = job.y->buffer, q.ld_y = job.y->ld;
  if (job.sum) q.sum = job.sum->buffer, q.ld_sum = job.sum->ld;
  if (job.gate) q.gate = job.gate->buffer, q.ld_gate = job.gate->ld;
  if (job.out) q.out = job.out->pointer();
  if (job.bias) q.bias = *job.bias;
  return q;
}

// Activations as the operand's format holds them, so many in a hundred of them zeros.
inline Row activations(Random& random, Stored weights, int count, int zeros) {
  Row x = random.row(size_t(count), 2);
  for (float& v : x) v = random.below(100) < zeros ? 0 : as_operand(cuda::operand_of(weights), v);
  return x;
}

inline Row product(const Weights& w, const Row& x, int tokens) {
  Row y;
  for (int t = 0; t < tokens; t++)
    for (int i = 0; i < w.n; i++) {
      double sum = 0;
      for (int j = 0; j < w.k; j++) sum += double(w.values[size_t(i * w.k + j)]) * double(x[size_t(t * w.k + j)]);
      y.push_back(float(sum));
    }
  return y;
}

inline double act(Activation a, double x) {
  if (a == Activation::tanh) return std::tanh(x);
  if (a == Activation::sigmoid) return 1 / (1 + std::exp(-x));
  if (a == Activation::silu) return x / (1 + std::exp(-x));
  return a == Activation::relu2 ? std::pow(std::max(x, 0.0), 2) : x;
}

constexpr double kTolerance = 3e-5;

// What follows the sums of products of w with t tokens, of jobs that `multiply` launches together: the residual and its
// statistics, with a gate and without, and a few activations and operands.
template <class Multiply>
void check_what_follows(Device& d, Random& random, const Weights& w, int t, const Multiply& multiply) {
  const int n = w.n;
  const Row x = activations(random, w.format, t * w.k, 0), expected = product(w, x, t);
  const Row old = random.row(size_t(t * n)), gates = random.row(size_t(t * n), 2);
  const DeviceOperand operand(d, cuda::operand_of(w.format), t, w.k, x);
  const Rows gate(d, t, n, gates);
  Rows sum(d, t, n, old), gated(d, t, n, old);
  multiply({{&w, &operand, nullptr, &sum}, {&w, &operand, nullptr, &gated, &gate}});
  Row plain, with_gate;
  for (size_t i = 0; i < expected.size(); i++) {
    plain.push_back(old[i] + expected[i]);
    with_gate.push_back(float(double(old[i]) + double(gates[i]) * double(expected[i])));
  }
  CHECK(distance(sum.dense(), plain) < kTolerance && sum.has_statistics());
  CHECK(distance(gated.dense(), with_gate) < kTolerance && gated.has_statistics());

  for (Stored next : kOperands) {
    const Activation a = Activation(random.below(5));
    Rows y(d, t, n);
    const DeviceOperand out(d, next, t, n), out_gated(d, next, t, n);
    const Row biases = random.row(size_t(n));
    const Buffer<float> bias(d, biases);
    multiply({{&w, &operand, &y, nullptr, nullptr, nullptr, a},
              {&w, &operand, nullptr, nullptr, nullptr, &out, a},
              {&w, &operand, nullptr, nullptr, &gate, &out_gated, a, &bias}});
    Row active, active_gated;
    for (size_t i = 0; i < expected.size(); i++) {
      active.push_back(float(act(a, double(expected[i]))));
      const double biased = double(expected[i]) + double(biases[i % size_t(n)]);
      active_gated.push_back(float(act(a, biased) * double(gates[i])));
    }
    const double step = next == Stored::f32 ? 0 : next == Stored::f16 ? 0x1p-11 : 0x1p-8;
    CHECK(distance(y.dense(), active) < 3 * kTolerance);
    CHECK(distance(out.dense(), active) < 3 * kTolerance + step);
    CHECK(distance(out_gated.dense(), active_gated) < 3 * kTolerance + step);
  }
}
