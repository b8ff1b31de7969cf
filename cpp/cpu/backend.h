#pragma once
#include <algorithm>
#include <cstring>
#include <exception>

#include "backend/backend.h"
#include "cpu/kernels.h"
#include "cpu/pieces.h"
#include "cpu/sample.h"
#include "cpu/threads.h"

namespace rwkv::cpu {

constexpr int kWkvTokens = 48;  // tokens of one head per kernel call: their results stay in L1

// The verbs as loops over rows, heads and panels on a pool of threads.
class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(const DeviceOptions& options);

  std::string description() const override;
  Format operand_format(Format weights) const override { return cpu::operand_format(weights); }
  size_t operand_bytes(Format, int rows, int cols) const override;
  int64_t row_stride(int64_t cols) const override;
  size_t linear_bytes(const Linear& w) const override;
  size_t column_bytes(const Linear& w) const override;
  size_t state_bytes(const StatePart&) const override;
  std::vector<int64_t> state_strides(const StatePart&) const override;
  size_t slab_bytes() const override { return size_t(8) << 20; }
  int panel_rows(int64_t work) const override;
  int result_rows() const override { return 48; }

  Memory allocate(size_t bytes) override;
  void prepare(const StepShape& shape) override;
  bool reads_mapped() const override { return true; }
  void pack(const Linear& w, const RowSource& source) override;
  void copy(const Tensor& table, const RowSource& source) override;
  void pack_columns(const Linear& w) override;
  void read(const Tensor& x, float* host) override;
  void write(const Tensor& x, const float* host) override;
  void copy_rows(const Tensor& from, const Tensor& to) override;
  void read_foreign(const void* device, size_t bytes, void* host) override { std::memcpy(host, device, bytes); }
  void read_state(const StatePart&, const std::byte* device, float* host) const override;
  void write_state(const StatePart&, std::byte* device, const float* host) const override;

  void embed(const Tensor& table, const Norm&, const Batch&, Tensor x, Operand out) override;
  void norm(const Tensor& x, const Norm&, const Batch&, int first, int count, Tensor y, Operand out) override;
  void mix(const Tensor& x, const Norm&, std::span<const MixJob>, size_t shift, const Batch&, Shift) override;
  void linear(std::span<const LinearJob>) override;
  bool adapts() const override { return true; }
  void pick(std::span<const PickJob>) override;
  void deep_embed(const DeepEmbed&, const Batch&, Operand y) override;
  bool all_finite(const Tensor& x, bool to_be_read) override;
  void sample(std::span<const SampleJob>, std::span<TokenLogprob> drawn) override;
  void wkv4(const Wkv4&, const Batch&, Operand y) override;
  void wkv6(const Wkv6&, StatePlace state, const Batch&, Operand y) override;
  void wkv7(const Wkv7&, StatePlace state, const Batch&, Operand y) override;

 private:
  float* room(int worker) const { return reinterpret_cast<float*>(scratch_[size_t(worker)].data.get()); }
  bool skip_zeros(const LinearJob& job);  // true if the job is done
  // work(worker, row, count) for all rows, `step` at a time and on all threads; throws what one of them throws first.
  using RowWork = std::function<void(int worker, int64_t row, int64_t count)>;
  void each_rows(int64_t rows, int64_t step, const RowWork& work);
  void read_rows(const RowSource& source, int64_t row, int64_t count, std::byte* to) const;
  void pack_panels(const Linear& w, int row, int count, const std::byte* rows, DType dtype) const;
  void widen(const Tensor& table, int64_t row, float* y) const;
  void layer_norm(const float* x, const Norm&, int n, float* y) const;
  struct Columns {
    int begin, end;
  };
  void mix_tile(const Tensor& x, const Norm&, std::span<const MixJob>, size_t shift, const Batch&, Shift, int begin,
                int end, Columns, float* scratch) const;
  // kernel(stretch, n) for every group of n = `size` channels (the last may have fewer) and at most kWkvTokens rows of
  // a sequence, in order of its rows; packs what the kernel leaves in the stretch's y.
  struct Stretch;
  template <class Kernel>
  void recur(int channels, int size, const Batch&, Operand y, const Kernel& kernel);
  // Where rows [begin, begin + count) of columns [k0, k0 + kn) go in an operand.
  void pack_rows(const float* x, size_t ld, int begin, int count, int k0, int kn, const Operand& out) const;

  const Kernels& kernels_;
  ThreadPool pool_;
  Pieces pieces_;
  std::vector<Memory> scratch_;  // one per worker
  int64_t width_ = 0;
  const std::optional<bool> sparse_;
  std::vector<int32_t> live_;               // room for the columns of the widest matrix that may be skipped in
  std::vector<SampleScratch> sampling_;     // one per worker, grown to the widest row it has sampled
  std::vector<std::exception_ptr> errors_;  // of each worker's jobs the first
};

}  // namespace rwkv::cpu
