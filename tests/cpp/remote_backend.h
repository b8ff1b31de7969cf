// A device whose memory nobody else can look at, as a GPU's: the CPU behind pointers that are moved by a constant out
// of what a process may address. Its verbs move them back; whoever follows one elsewhere crashes. Each device has its
// own constant, so a pointer of another is found as well. It also holds its callers to what the interface says: one
// Batch between begin and end, read from the host when it is begun.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "backend/backend.h"
#include "core/error.h"
#include "cpu/backend.h"

namespace remote {

using namespace rwkv;

class RemoteBackend : public Backend {
 public:
  // Steps of all such devices that have begun and not ended; one that an error ends is open until the next.
  static inline int open_steps = 0;
  static inline std::atomic<int64_t> held = 0;  // bytes of all of them that somebody has

  RemoteBackend(int index, const DeviceOptions& options) : inner_(options), index_(index) {}
  ~RemoteBackend() override { open_steps -= begun_ != nullptr; }

  std::string description() const override { return join("remote:", index_); }
  DeviceId device() const override { return {DeviceId::cuda, index_}; }

  Format operand_format(Format weights) const override { return inner_.operand_format(weights); }
  size_t operand_bytes(Format format, int rows, int cols) const override {
    return inner_.operand_bytes(format, rows, cols);
  }
  int64_t row_stride(int64_t cols) const override { return inner_.row_stride(cols) + 16; }  // not the CPU's
  size_t linear_bytes(const Linear& w) const override { return inner_.linear_bytes(w); }
  size_t column_bytes(const Linear& w) const override { return inner_.column_bytes(w); }
  size_t state_bytes(const StatePart& part) const override { return inner_.state_bytes(part); }
  std::vector<int64_t> state_strides(const StatePart& part) const override { return inner_.state_strides(part); }
  size_t slab_bytes() const override { return size_t(32) << 20; }
  int panel_rows(int64_t) const override { return 70; }
  int result_rows() const override { return 5; }

  Memory allocate(size_t bytes) override {
    const Memory memory = inner_.allocate(bytes);
    held += int64_t(bytes);
    const auto release = [memory, bytes](std::byte*) { held -= int64_t(bytes); };
    return {std::shared_ptr<std::byte>(out(memory.data.get()), release), memory.size};
  }
  void prepare(const StepShape& shape) override {
    expect(shape.rows > 0 && shape.rows <= 70, "as many rows as were asked for");
    inner_.prepare(shape);
  }
  bool reads_mapped() const override { return false; }
  void pack(const Linear& w, const RowSource& source) override { inner_.pack(in(w), source); }
  void copy(const Tensor& table, const RowSource& source) override { inner_.copy(in(table), source); }
  void pack_columns(const Linear& w) override { inner_.pack_columns(in(w)); }
  void read(const Tensor& x, float* host) override { inner_.read(in(x), of_host(host)); }
  void write(const Tensor& x, const float* host) override { inner_.write(in(x), of_host(host)); }
  void copy_rows(const Tensor& from, const Tensor& to) override { inner_.copy_rows(in(from), in(to)); }
  void read_foreign(const void* device, size_t bytes, void* host) override {
    inner_.read_foreign(in(static_cast<const std::byte*>(device)), bytes, of_host(static_cast<std::byte*>(host)));
  }
  void read_state(const StatePart& part, const std::byte* device, float* host) const override {
    inner_.read_state(part, in(device), of_host(host));
  }
  void write_state(const StatePart& part, std::byte* device, const float* host) const override {
    inner_.write_state(part, in(device), of_host(host));
  }

  void begin(const Batch& batch) override {
    open_steps += begun_ == nullptr;
    begun_ = &batch;
    token_.assign(batch.token.begin(), batch.token.end());
    start_.assign(batch.start.begin(), batch.start.end());
    rows_.assign(batch.rows.begin(), batch.rows.end());
    src_.clear(), dst_.clear();
    for (const std::byte* p : batch.src) src_.push_back(in(p));
    for (std::byte* p : batch.dst) dst_.push_back(in(p));
    own_ = {token_, start_, src_, dst_, rows_};
  }
  void end() override {
    expect(begun_, "a step to end");
    begun_ = nullptr;
    open_steps--;
  }
  void embed(const Tensor& table, const Norm& norm, const Batch& batch, Tensor x, Operand operand) override {
    inner_.embed(in(table), in(norm), in(batch), in(x), in(operand));
  }
  void norm(const Tensor& x, const Norm& norm, const Batch& batch, int first, int count, Tensor y,
            Operand operand) override {
    inner_.norm(in(x), in(norm), in(batch), first, count, in(y), in(operand));
  }
  void mix(const Tensor& x, const Norm& norm, std::span<const MixJob> jobs, size_t shift, const Batch& batch,
           Shift write) override {
    std::vector<MixJob> own;
    for (const MixJob& job : jobs) own.push_back({in(job.mu), in(job.out), in(job.dynamic)});
    inner_.mix(in(x), in(norm), own, shift, in(batch), write);
  }
  void linear(std::span<const LinearJob> jobs) override {
    expect(begun_, "products within a step");
    std::vector<LinearJob> own;
    for (const LinearJob& job : jobs)
      own.push_back({in(job.x), in(job.w), in(job.y), job.act, in(job.out), in(job.sum), in(job.gate), in(job.bias)});
    inner_.linear(own);
  }
  void deep_embed(const DeepEmbed& p, const Batch& batch, Operand y) override {
    inner_.deep_embed({in(p.table), in(p.base), in(p.z)}, in(batch), in(y));
  }
  bool all_finite(const Tensor& x, bool to_be_read) override { return inner_.all_finite(in(x), to_be_read); }
  void sample(std::span<const SampleJob> jobs, std::span<TokenLogprob> drawn) override {
    std::vector<SampleJob> own(jobs.begin(), jobs.end());
    for (SampleJob& job : own) {
      if (job.on_device)
        job.logits = in(job.logits);
      else
        of_host(job.logits.as<float>());
    }
    inner_.sample(own, drawn);
  }
  void wkv4(const Wkv4& p, const Batch& batch, Operand y) override {
    inner_.wkv4({in(p.r), in(p.k), in(p.v), in(p.decay), in(p.bonus), p.a, p.b, p.m}, in(batch), in(y));
  }
  void wkv6(const Wkv6& p, StatePlace state, const Batch& batch, Operand y) override {
    inner_.wkv6(
        {in(p.r), in(p.k), in(p.v), in(p.g), in(p.w), in(p.decay), in(p.bonus), in(p.out), p.heads, p.head_size}, state,
        in(batch), in(y));
  }
  void wkv7(const Wkv7& p, StatePlace state, const Batch& batch, Operand y) override {
    inner_.wkv7({in(p.r), in(p.w), in(p.k), in(p.v), in(p.a), in(p.g), in(p.v_mix), in(p.v_first), in(p.w0), in(p.a0),
                 in(p.v0), in(p.k_k), in(p.k_a), in(p.r_k), in(p.out), p.heads, p.head_size},
                state, in(batch), in(y));
  }

 private:
  // The bits above those of any address that a program may use.
  uintptr_t mark() const { return uintptr_t(index_ + 1) << 48; }

  template <class T>
  T* out(T* p) const {
    return reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(p) + mark());
  }
  template <class T>
  T* in(T* p) const {
    if (!p) return p;
    const auto address = reinterpret_cast<uintptr_t>(p);
    expect(address >> 48 == mark() >> 48, "memory of this device");
    return reinterpret_cast<T*>(address - mark());
  }
  template <class T>
  T* of_host(T* p) const {
    expect(reinterpret_cast<uintptr_t>(p) >> 48 == 0, "memory of the host");
    return p;
  }
  Tensor in(Tensor t) const {
    t.data = in(t.data);
    return t;
  }
  Operand in(Operand x) const {
    x.data = in(x.data);
    return x;
  }
  Linear in(Linear w) const {
    w.data = in(w.data), w.columns = in(w.columns);
    return w;
  }
  Norm in(Norm n) const { return {in(n.weight), in(n.bias), n.eps}; }
  const Batch& in(const Batch& batch) const {
    expect(begun_ == &batch, "the batch that was begun");
    return own_;
  }
  void expect(bool condition, const char* what) const {
    if (!condition) throw std::logic_error(join("remote:", index_, ": expected ", what, ", found another"));
  }

  cpu::CpuBackend inner_;
  const int index_;
  const Batch* begun_ = nullptr;
  Batch own_;
  std::vector<int32_t> token_, start_, rows_;
  std::vector<const std::byte*> src_;
  std::vector<std::byte*> dst_;
};

}  // namespace remote
