#pragma once
#include <optional>
#include <vector>

#include "backend/backend.h"
#include "cuda/context.h"
#include "cuda/large_products.h"
#include "cuda/params.h"
#include "cuda/stream.h"
#include "cuda/tape.h"

namespace rwkv::cuda {

static_assert(uint8_t(Format::f32) == uint8_t(Stored::f32) && uint8_t(Format::f16) == uint8_t(Stored::f16) &&
              uint8_t(Format::bf16) == uint8_t(Stored::bf16) && uint8_t(Format::i8) == uint8_t(Stored::i8) &&
              uint8_t(Format::i4) == uint8_t(Stored::i4));
static_assert(uint8_t(Act::none) == uint8_t(Activation::none) && uint8_t(Act::tanh) == uint8_t(Activation::tanh) &&
              uint8_t(Act::sigmoid) == uint8_t(Activation::sigmoid) &&
              uint8_t(Act::silu) == uint8_t(Activation::silu) && uint8_t(Act::relu2) == uint8_t(Activation::relu2));

// The verbs as launches on one device. Launches are not waited for: `all_finite`, `read` and `sample` wait.
class CudaBackend final : public Backend {
 public:
  CudaBackend(std::shared_ptr<Context> context, const DeviceOptions& options);
  ~CudaBackend() override;

  std::string description() const override;
  DeviceId device() const override { return {DeviceId::cuda, context_->index()}; }
  Format operand_format(Format weights) const override;
  size_t operand_bytes(Format, int rows, int cols) const override;
  int64_t row_stride(int64_t cols) const override { return cuda::row_stride(int(cols)); }
  size_t linear_bytes(const Linear& w) const override;
  size_t column_bytes(const Linear&) const override { return 0; }  // such a matrix lies by columns only
  size_t state_bytes(const StatePart&) const override;
  std::vector<int64_t> state_strides(const StatePart&) const override;
  size_t slab_bytes() const override { return size_t(32) << 20; }
  int panel_rows(int64_t work) const override;
  int result_rows() const override { return 256; }

  Memory allocate(size_t bytes) override { return context_->allocate(bytes); }
  void prepare(const StepShape& shape) override;
  std::unique_ptr<WeightStream> stream(int layers, size_t bytes) override {
    return std::make_unique<LayerStream>(context_, tape_, layers, bytes);
  }
  bool reads_mapped() const override { return false; }
  void pack(const Linear& w, const RowSource& source) override;
  void copy(const Tensor& table, const RowSource& source) override;
  void pack_columns(const Linear&) override {}
  void read(const Tensor& x, float* host) override;
  void write(const Tensor& x, const float* host) override;
  void copy_rows(const Tensor& from, const Tensor& to) override;
  void synchronise() override;
  void settle() override { context_->settle(); }
  void read_foreign(const void* device, size_t bytes, void* host) override { context_->copy_out(host, device, bytes); }
  void read_state(const StatePart&, const std::byte* device, float* host) const override;
  void write_state(const StatePart&, std::byte* device, const float* host) const override;

  void enter() override { caller_.emplace(context_->driver()); }
  void leave() override { caller_.reset(); }
  void begin(const Batch&) override;
  void end() override { tape_.flush(); }
  void embed(const Tensor& table, const Norm&, const Batch&, Tensor x, Operand out) override;
  void norm(const Tensor& x, const Norm&, const Batch&, int first, int count, Tensor y, Operand out) override;
  void mix(const Tensor& x, const Norm&, std::span<const MixJob>, size_t shift, const Batch&, Shift) override;
  void linear(std::span<const LinearJob>) override;
  void mix_linear(const Tensor& x, const Norm&, std::span<const MixJob>, size_t shift, const Batch&,
                  std::span<const LinearJob>, Shift) override;
  void deep_embed(const DeepEmbed&, const Batch&, Operand y) override;
  bool all_finite(const Tensor& x, bool to_be_read) override;
  void keep_rows(const Tensor& rows, const Batch&, int first, size_t offset) override;
  void sample(std::span<const SampleJob>, std::span<TokenLogprob> drawn) override;
  void wkv4(const Wkv4&, const Batch&, Operand y) override;
  void wkv6(const Wkv6&, StatePlace state, const Batch&, Operand y) override;
  void wkv7(const Wkv7&, StatePlace state, const Batch&, Operand y) override;
  void linear_wkv6(const LinearJob&, const Wkv6&, StatePlace state, const Batch&, Operand y) override;
  void linear_wkv7(std::span<const LinearJob>, const Wkv7&, StatePlace state, const Batch&, Operand y) override;

 private:
  // Memory that is copied and its pair on the device, as large as the largest use so far.
  struct Transfer {
    Memory host, device;
    void grow(Context& context, size_t bytes);
  };
  // The two, carved alike.
  struct Carving {
    Arena host, device;
    template <class T>
    T* place(size_t count, const T*& on_device) {
      on_device = reinterpret_cast<const T*>(device.take(count * sizeof(T)));
      return reinterpret_cast<T*>(host.take(count * sizeof(T)));
    }
  };
  using RowWork = std::function<void(Transfer& piece, int64_t row, int64_t count)>;
  // work(piece, row, count) for all rows, `step` at a time, on several threads with a piece of `bytes` each.
  void each_rows(int64_t rows, int64_t step, size_t bytes, const RowWork& work);
  using DenseWork = std::function<void(const Tensor& some, const Tensor& dense, int64_t row)>;
  // Of all rows of x, as many at a time as `dense_` has room for, one behind the other.
  void each_dense(const Tensor& x, const DenseWork& work);
  void launch(Kernel kernel, Grid blocks, const void* params);
  [[noreturn]] void refuse(const SampleJob& job, const SampleResult& found);
  bool multiply_plain(const LinearJob& job);
  MixParams mix_params(const Tensor& x, const Norm& norm, size_t shift) const;
  Wkv6Params wkv6_params(const Wkv6& w, StatePlace state, const Operand& y) const;
  Wkv7Params wkv7_params(const Wkv7& w, StatePlace state, const Operand& y) const;
  bool takes_ranks(std::span<const LinearJob> jobs, int head_size) const;
  template <class Params>
  void launch_decode(Kernel first, std::span<const LinearJob> jobs, StatePlace state, Params p);
  void place_chunks(const Batch& batch, Carving& lists);
  void prepare_sampling(int64_t vocabulary);
  void sample_some(std::span<const SampleJob> jobs, std::span<TokenLogprob> drawn);

  const std::shared_ptr<Context> context_;
  const Features features_;
  const int threads_;  // that read files
  const bool skip_zeros_;
  Tape tape_;
  const std::unique_ptr<LargeProducts> large_products_;  // by another library; null: none is wanted

  std::optional<Caller> caller_;  // of the step that has begun
  Transfer batch_;                // of it
  bool uploading_ = false;        // and is perhaps still copied
  StepPointers step_ = {};
  const int32_t* rows_ = nullptr;  // that want a result, on the device
  // Sequences long enough for RWKV-7's recurrence in chunks, some at a time, and the others.
  struct Pass {
    const Wkv7Run* run;
    const Wkv7Chunk* chunk;
    int runs, chunks;
  };
  std::vector<Pass> passes_;
  const int32_t* short_ = nullptr;
  int shorts_ = 0;
  Memory pieces_of_chunks_;
  int most_chunks_ = 0;       // for which there is room at a time; 0: all go row by row
  int32_t* flags_ = nullptr;  // bits that tell what is not finite, each used once in a step
  int flags_used_ = 0;
  bool apart_ = false;  // every row is a sequence, whose state goes elsewhere

  Memory results_;                  // pinned: what was looked at last, for whoever reads it next
  const float* fetched_ = nullptr;  // where that lies on the device; null: nowhere
  int64_t fetched_count_ = 0;

  std::vector<Transfer> pieces_;  // of the threads that read files
  Memory dense_;                  // rows on their way from or to the host
  Transfer sampling_;
  Memory sample_scratch_;
};

// A tensor's and an operand's fields as kernels want them.
inline Stored stored(Format format) { return Stored(uint8_t(format)); }
inline Stored stored(DType dtype) {
  return dtype == DType::f32 ? Stored::f32 : dtype == DType::f16 ? Stored::f16 : Stored::bf16;
}
inline OperandPointer pointer(const Operand& x) { return {x.data, round_up(x.rows, 8), stored(x.format)}; }
inline NormPointers pointers(const Norm& n) { return {n.weight.as<float>(), n.bias.as<float>(), n.eps}; }
inline MixJobParams pointers(const MixJob& job) {
  return {job.mu.as<float>(), job.dynamic.as<float>(), int32_t(job.dynamic.stride), pointer(job.out)};
}
LinearJobParams params_of(const LinearJob& job, bool skip);
inline int blocks_of(int64_t n, int size) { return int((n + size - 1) / size); }

}  // namespace rwkv::cuda
