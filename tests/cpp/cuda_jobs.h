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
};
inline cuda::LinearJobParams params_of(const Job& job) {
  cuda::LinearJobParams q{};
  q.w = job.w->bytes.data(), q.x = job.x->buffer.data();
  q.n = job.w->padded_n(), q.k = job.w->padded_k(), q.rows = job.w->n;
  q.tokens = job.x->tokens, q.rows8 = job.x->rows8, q.act = job.act;
  if (job.y) q.y = job.y->buffer, q.ld_y = job.y->ld;
  if (job.sum) q.sum = job.sum->buffer, q.ld_sum = job.sum->ld;
  if (job.gate) q.gate = job.gate->buffer, q.ld_gate = job.gate->ld;
  if (job.out) q.out = job.out->pointer();
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
