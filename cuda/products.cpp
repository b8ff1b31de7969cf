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

ProductKernel product_for(const Linear& w, int tokens) {
  const Stored f = stored(w.format);
  if (tokens > kMostTokens) return {tile_product(f, w.mostly_zero_inputs ? Order::columns : Order::rows), kTile};
  return (w.mostly_zero_inputs ? sparse_product : small_product)(f, tiles_of(tokens));
}

LinearJobParams params_of(const LinearJob& job, bool skip) {
  LinearJobParams q = {};
  q.w = job.w.data, q.x = job.x.data;
  q.n = round_up(job.w.rows, kPad), q.k = round_up(job.w.cols, kPad), q.rows = job.w.rows;
  q.tokens = job.x.rows, q.rows8 = round_up(job.x.rows, 8);
  q.act = Activation(uint8_t(job.act)), q.skip = skip;
  q.sum = job.sum.as<float>(), q.ld_sum = int32_t(job.sum.stride);
  q.gate = job.gate.as<float>(), q.ld_gate = int32_t(job.gate.stride);
  q.out = pointer(job.out);
  if (!job.sum && !job.out) q.y = job.y.as<float>(), q.ld_y = int32_t(job.y.stride);
  return q;
}

}  // namespace

void CudaBackend::linear(std::span<const LinearJob> jobs) {
  const int tokens = jobs.front().x.rows;
  const bool many = tokens > kMostTokens;
  std::array<Group, 4> groups;
  size_t used = 0;
  const auto launch_all = [&] {
    for (size_t i = 0; i < used; i++) {
      LinearParams& p = groups[i].params;
      launch(groups[i].product.kernel, many ? Grid{tiles(tokens), p.blocks, 1} : Grid{p.blocks, 1, 1}, p);
    }
    used = 0;
  };
  for (const LinearJob& job : jobs) {
    const ProductKernel product = product_for(job.w, tokens);
    const auto fits = [&](const Group& g) { return g.product.kernel == product.kernel && g.params.count < kMostJobs; };
    size_t at = size_t(std::find_if(groups.begin(), groups.begin() + used, fits) - groups.begin());
    if (at == groups.size()) launch_all(), at = 0;
    if (at == used) groups[used++] = {product, {}};
    LinearParams& p = groups[at].params;
    p.job[p.count] = params_of(job, skip_zeros_);
    p.job[p.count++].first = p.blocks;
    p.blocks += blocks_of(round_up(job.w.rows, kPad), product.outputs);
  }
  launch_all();
}

}  // namespace rwkv::cuda
