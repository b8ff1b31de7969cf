#include <algorithm>
#include <array>

#include "cuda/backend.h"

namespace rwkv::cuda {

namespace {

// Jobs for one launch: those of one kernel.
struct Group {
  ProductKernel product = {};
  LinearParams params = {};
};

LinearJobParams params_of(const LinearJob& job, int token, int tokens, bool skip) {
  LinearJobParams q = {};
  const auto row = [&](const Tensor& t) { return t ? t.row(token) : nullptr; };
  // Token after token of an operand lie kChunk bytes apart, whatever their number.
  const auto from = [&](const Operand& x) { return x ? x.data + size_t(token) * kChunk : nullptr; };
  q.w = job.w.data, q.x = from(job.x);
  q.n = round_up(job.w.rows, kPad), q.k = round_up(job.w.cols, kPad), q.rows = job.w.rows;
  q.tokens = tokens, q.rows8 = round_up(job.x.rows, 8);
  q.act = Activation(uint8_t(job.act)), q.skip = skip;
  q.sum = row(job.sum), q.ld_sum = int32_t(job.sum.stride);
  q.gate = row(job.gate), q.ld_gate = int32_t(job.gate.stride);
  q.out = pointer(job.out), q.out.data = from(job.out);
  if (!job.sum && !job.out) q.y = row(job.y), q.ld_y = int32_t(job.y.stride);
  return q;
}

}  // namespace

void CudaBackend::linear(std::span<const LinearJob> jobs) {
  const int rows = jobs.front().x.rows;
  for (int token = 0, tokens; token < rows; token += tokens) {
    tokens = std::min(kMostTokens, rows - token);
    std::array<Group, 4> groups;
    size_t used = 0;
    const auto launch_all = [&] {
      for (size_t i = 0; i < used; i++)
        launch(groups[i].product.kernel, {groups[i].params.blocks, 1, 1}, &groups[i].params);
      used = 0;
    };
    for (const LinearJob& job : jobs) {
      const auto choose = job.w.mostly_zero_inputs ? sparse_product : small_product;
      const ProductKernel product = choose(stored(job.w.format), tiles_of(tokens));
      const auto fits = [&](const Group& g) {
        return g.product.kernel == product.kernel && g.params.count < kMostJobs;
      };
      size_t at = size_t(std::find_if(groups.begin(), groups.begin() + used, fits) - groups.begin());
      if (at == groups.size()) launch_all(), at = 0;
      if (at == used) groups[used++] = {product, {}};
      LinearParams& p = groups[at].params;
      p.job[p.count] = params_of(job, token, tokens, skip_zeros_);
      p.job[p.count++].first = p.blocks;
      p.blocks += round_up(job.w.rows, kPad) / product.outputs;
    }
    launch_all();
  }
}

}  // namespace rwkv::cuda
