#include <algorithm>
#include <array>

#include "cuda/backend.h"

namespace rwkv::cuda {

LinearJobParams params_of(const LinearJob& job, bool skip) {
  LinearJobParams q = {};
  q.w = job.w.data, q.x = job.x.data;
  q.n = round_up(job.w.rows, kPad), q.k = round_up(job.w.cols, kPad), q.rows = job.w.rows;
  q.tokens = job.x.rows, q.rows8 = round_up(job.x.rows, 8);
  q.act = Activation(uint8_t(job.act)), q.skip = skip, q.stored = uint16_t(stored(job.w.format));
  q.sum = job.sum.as<float>(), q.ld_sum = int32_t(job.sum.stride);
  q.gate = job.gate.as<float>(), q.ld_gate = int32_t(job.gate.stride);
  q.bias = job.bias.as<float>();
  q.out = pointer(job.out);
  if (!job.sum && !job.out) q.y = job.y.as<float>(), q.ld_y = int32_t(job.y.stride);
  return q;
}

namespace {

// Jobs for one launch: those of one kernel.
template <class P>
struct Group {
  ProductKernel product = {};
  P params = {};
};

// Puts jobs in groups, of which there are few; `launch` is called with each that is complete.
template <class P, class Launch>
class Groups {
 public:
  explicit Groups(const Launch& launch) : launch_(launch) {}

  Group<P>& of(ProductKernel product, const auto& has_room) {
    const auto fits = [&](const Group<P>& g) { return g.product.kernel == product.kernel && has_room(g.params); };
    const auto found = std::find_if(groups_.begin(), groups_.begin() + used_, fits);
    if (found != groups_.begin() + used_) return *found;
    if (used_ == groups_.size()) launch_all();
    return groups_[used_++] = {product, {}};
  }
  void launch_all() {
    for (size_t i = 0; i < used_; i++) launch_(groups_[i]);
    used_ = 0;
  }

 private:
  const Launch& launch_;
  std::array<Group<P>, 4> groups_;
  size_t used_ = 0;
};

// What the product of few tokens is made as: 16 bits go along with int8 or int4, if there is any.
Stored made_as(const Linear& w, std::span<const LinearJob> jobs) {
  const auto takes = [](const LinearJob& job) { return quantised(stored(job.w.format)) && !job.w.mostly_zero_inputs; };
  const auto other = std::ranges::find_if(jobs, takes);
  const bool goes_along = w.format == Format::f16 || w.format == Format::bf16;
  return stored(goes_along && other != jobs.end() ? other->w.format : w.format);
}

ProductKernel product_for(const Linear& w, int tokens, std::span<const LinearJob> jobs) {
  const Order order = w.mostly_zero_inputs ? Order::columns : Order::rows;
  if (tokens > kMostTokens) return {tile_product(stored(w.format), order), kTile};
  return order == Order::columns ? sparse_product(stored(w.format), tiles_of(tokens))
                                 : small_product(made_as(w, jobs), tiles_of(tokens));
}

void append(LinearParams& p, const LinearJob& job, int outputs, bool skip) {
  p.job[p.count] = params_of(job, skip);
  p.job[p.count++].first = p.blocks;
  p.blocks += blocks_of(round_up(job.w.rows, kPad), outputs);
}

}  // namespace

void CudaBackend::linear(std::span<const LinearJob> jobs) {
  const int tokens = jobs.front().x.rows;
  const auto start = [&](Group<LinearParams>& g) {
    const int blocks = g.params.blocks;
    launch(g.product.kernel, tokens > kMostTokens ? Grid{tiles(tokens), blocks, 1} : Grid{blocks, 1, 1}, &g.params);
  };
  Groups<LinearParams, decltype(start)> groups(start);
  for (const LinearJob& job : jobs) {
    if (tokens > kMostTokens && large_products_ && large_products_->takes(job.w, tokens) && multiply_plain(job))
      continue;
    const ProductKernel product = product_for(job.w, tokens, jobs);
    auto& group = groups.of(product, [](const LinearParams& p) { return p.count < kMostJobs; });
    append(group.params, job, product.outputs, skip_zeros_);
  }
  groups.launch_all();
}

// False: somebody else must. A matrix by columns is plain as it is.
bool CudaBackend::multiply_plain(const LinearJob& job) {
  const LinearJobParams q = params_of(job, false);
  const bool by_columns = job.w.mostly_zero_inputs, alone = q.y && q.act == Activation::none;
  const auto make_plain = [&](const void* from, void* to, int rows, int lines) {
    const PlainParams p = {.from = from, .to = to, .rows = rows, .lines = lines, .chunks = q.k / 32};
    const int threads = int(kKernels[size_t(Kernel::plain)].threads);
    launch(Kernel::plain, {blocks_of(int64_t(rows) * p.chunks * 4, threads), 1, 1}, &p);
  };
  make_plain(q.x, large_products_->operand(), q.tokens, q.rows8);
  if (!by_columns) make_plain(q.w, large_products_->matrix(), q.n, kBlockRows);
  tape_.flush();
  const PlainProduct product = {.format = stored(job.w.format),
                                .by_columns = by_columns,
                                .w = by_columns ? job.w.data + kHead : large_products_->matrix(),
                                .x = large_products_->operand(),
                                .y = alone ? q.y : large_products_->sums(),
                                .outputs = q.rows,
                                .k = q.k,
                                .tokens = q.tokens,
                                .ld_w = by_columns ? q.n : q.k,
                                .ld_x = q.k,
                                .ld_y = alone ? q.ld_y : q.n};
  if (!large_products_->multiply(product)) return false;
  if (alone) return true;
  const FinishRowsParams p = {.from = large_products_->sums(), .job = q};
  const int columns = 4 * int(kKernels[size_t(Kernel::finish_rows)].threads);
  launch(Kernel::finish_rows, {q.tokens, blocks_of(q.n, columns), 1}, &p);
  return true;
}

void CudaBackend::mix_linear(const Tensor& x, const Norm& norm, std::span<const MixJob> mixes, size_t shift,
                             const Batch& batch, std::span<const LinearJob> jobs, Shift write) {
  const auto lerp_of = [&](const LinearJob& job) {
    return std::ranges::find(mixes, job.x.data, [](const MixJob& m) { return m.out.data; });
  };
  const auto cannot = [&](const LinearJob& job) {
    return job.w.format == Format::f32 || job.w.mostly_zero_inputs || lerp_of(job) == mixes.end();
  };
  if (!features_.fused || !apart_ || batch.token.size() > kMostMixed || mixes.size() > kMostJobs ||
      std::ranges::any_of(jobs, cannot))
    return Backend::mix_linear(x, norm, mixes, shift, batch, jobs, write);
  MixParams mix = mix_params(x, norm, shift);
  for (const MixJob& job : mixes) mix.job[mix.count++] = pointers(job);
  mix.write = write == Shift::write;
  const auto start = [&](Group<MixedParams>& g) {
    g.params.mix = mix;
    mix.write = 0;  // one of them does
    launch(g.product.kernel, {g.params.linear.blocks, 1, 1}, &g.params);
  };
  Groups<MixedParams, decltype(start)> groups(start);
  for (const LinearJob& job : jobs) {
    const ProductKernel product = mixed_product(made_as(job.w, jobs));
    auto& group = groups.of(product, [](const MixedParams& p) { return p.linear.count < kMostJobs; });
    group.params.which[group.params.linear.count] = int32_t(lerp_of(job) - mixes.begin());
    append(group.params.linear, job, product.outputs, skip_zeros_);
  }
  groups.launch_all();
}

}  // namespace rwkv::cuda
