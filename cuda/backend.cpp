#include "cuda/backend.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "core/error.h"
#include "core/platform.h"
#include "cuda/library.h"
#include "cuda/open.h"

namespace rwkv::cuda {

namespace {

constexpr float kMostHalf = 65504;
constexpr int kMostThreads = 8;               // that read a file
constexpr size_t kResults = size_t(8) << 20;  // bytes that come along with the look at them
constexpr size_t kDense = size_t(4) << 20;    // bytes of rows on their way at a time, or one row
constexpr int kFlagWords = 16, kFlags = kFlagWords * 32;

bool takes_bf16(const DeviceInfo& info) { return info.major >= 8; }

// What a batch of so many rows needs, in its order: every list begins at a multiple of 64 bytes.
size_t batch_bytes(int rows) {
  const auto list = [](size_t count, size_t size) { return (count * size + 63) / 64 * 64; };
  const auto n = size_t(rows);
  return list(kFlagWords, 4) + 4 * list(n, 4) + list(n + 1, 4) + 2 * list(n, 8) +
         list(n / kChunkFrom, sizeof(Wkv7Run)) + list(size_t(most_chunks(rows)), sizeof(Wkv7Chunk));
}

}  // namespace

std::shared_ptr<Backend> open(int index, const DeviceOptions& options) {
  const DeviceApi& api = library(join("cuda:", index));
  return std::make_shared<CudaBackend>(std::make_shared<Context>(api, index), options);
}

bool available() {
  try {
    return takes_bf16(Context(library("cuda:0"), 0).info());
  } catch (const Error&) {
    return false;
  }
}

CudaBackend::CudaBackend(std::shared_ptr<Context> context, const DeviceOptions& options)
    : context_(std::move(context)),
      features_(features_of_environment()),
      threads_(options.threads > 0 ? options.threads : std::min(usable_cores(), kMostThreads)),
      skip_zeros_(options.sparse.value_or(true)),
      tape_(*context_, features_.graphs),
      large_products_(features_.cublaslt ? std::make_unique<LargeProducts>(*context_) : nullptr) {}

// What is still copied must not outlive the memory that it is copied from.
CudaBackend::~CudaBackend() {
  try {
    if (uploading_ && context_->here()) context_->synchronise();
  } catch (const Error&) {  // the device has failed before and said so
  }
}

std::string CudaBackend::description() const {
  const std::string no_graph = context_->why_no_graph();
  return join(context_->name(), " ", context_->info().name, large_products_ ? large_products_->description() : "",
              no_graph.empty() ? "" : ", no graph: ", no_graph);
}

// ---- sizes ----

Format CudaBackend::operand_format(Format weights) const { return Format(uint8_t(operand_of(stored(weights)))); }

size_t CudaBackend::operand_bytes(Format format, int rows, int cols) const {
  return cuda::operand_bytes(stored(format), round_up(rows, 8), round_up(cols, kPad));
}

size_t CudaBackend::linear_bytes(const Linear& w) const {
  const DeviceInfo& info = context_->info();
  RWKV_CHECK(DeviceError, w.format != Format::bf16 || takes_bf16(info), context_->name(),
             ": expected a device of compute capability 8.0 or more for bf16, found ", info.major, ".", info.minor,
             "; fp16 can be used");
  return weight_bytes(stored(w.format), w.mostly_zero_inputs ? Order::columns : Order::rows, round_up(w.rows, kPad),
                      round_up(w.cols, kPad));
}

size_t CudaBackend::state_bytes(const StatePart& part) const {
  return (size_t(part.count()) * size_of(part.dtype) + 63) / 64 * 64;
}

// A processor does some 10^12 multiply-adds a second.
int CudaBackend::panel_rows(int64_t work) const {
  const int64_t rows = 50'000'000'000 / std::max<int64_t>(1, work) * context_->info().processors;
  return int(std::clamp<int64_t>(rows / 64 * 64, 64, 4096));
}

// ---- memory ----

void CudaBackend::Transfer::grow(Context& context, size_t bytes) {
  if (host.size >= bytes) return;
  if (host.data) context.synchronise();  // nothing is copied from it any more
  *this = {};
  Memory of_host = context.pin(bytes);
  device = context.allocate(bytes);
  host = std::move(of_host);  // now that both are there
}

void CudaBackend::prepare(const StepShape& shape) {
  batch_.grow(*context_, batch_bytes(shape.rows));
  if (!results_.data) results_ = context_->pin(kResults);
  const size_t row = size_t(std::max<int64_t>(shape.width, shape.vocab)) * sizeof(float);
  if (const size_t bytes = std::max(kDense, row); dense_.size < bytes) dense_ = {}, dense_ = context_->allocate(bytes);
  prepare_sampling(shape.vocab);
  if (large_products_) large_products_->prepare(shape);
  // Chunks multiply halves, which is less than who keeps activations in float32 wants.
  if (!shape.wkv7 || shape.head_size != kWkvChunk || shape.activations == Format::f32) return;
  most_chunks_ = blocks_of(shape.rows, kWkvChunk);
  const size_t bytes = size_t(most_chunks_) * size_t(shape.heads) * sizeof(Wkv7Piece);
  if (pieces_of_chunks_.size < bytes) pieces_of_chunks_ = {}, pieces_of_chunks_ = context_->allocate(bytes);
  passes_.reserve(size_t(shape.rows) / kChunkFrom + 1);
}

void CudaBackend::launch(Kernel kernel, Grid blocks, const void* params) {
  fetched_ = nullptr;
  Launch one = launch_of(kernel, blocks, params);
  if (features_.dependent) one.flags = kDependent;
  tape_.add(one);
}

void CudaBackend::read(const Tensor& x, float* host) {
  tape_.flush();
  const auto cols = size_t(x.cols), ld = size_t(x.stride);
  const auto address = [](const void* p) { return int64_t(reinterpret_cast<uintptr_t>(p)); };
  const int64_t at = fetched_ ? (address(x.data) - address(fetched_)) / int64_t(sizeof(float)) : -1;
  if (at >= 0 && at + (x.rows - 1) * x.stride + x.cols <= fetched_count_) {
    const float* from = reinterpret_cast<const float*>(results_.data.get()) + at;
    for (int64_t i = 0; i < x.rows; i++) std::copy_n(from + size_t(i) * ld, cols, host + size_t(i) * cols);
    return;
  }
  if (cols == ld) return context_->copy_out(host, x.data, size_t(x.rows) * cols * sizeof(float));
  if (x.rows == 1) return context_->copy_out(host, x.data, cols * sizeof(float));
  each_dense(x, [&](const Tensor& some, const Tensor& dense, int64_t row) {
    copy_rows(some, dense);
    context_->copy_out(host + size_t(row) * cols, dense.data, size_t(some.rows) * cols * sizeof(float));
  });
}

// Rows that lie apart are followed by their statistics, which a kernel writes.
void CudaBackend::write(const Tensor& x, const float* host) {
  tape_.flush();
  const auto cols = size_t(x.cols);
  if (x.stride == x.cols) return context_->copy_in(x.data, host, size_t(x.rows) * cols * sizeof(float));
  fetched_ = nullptr;
  each_dense(x, [&](const Tensor& some, const Tensor& dense, int64_t row) {
    context_->copy_in(dense.data, host + size_t(row) * cols, size_t(some.rows) * cols * sizeof(float));
    const WriteRowsParams p = {
        .from = dense.as<float>(), .x = some.as<float>(), .ld = int32_t(some.stride), .cols = int32_t(some.cols)};
    context_->launch(Kernel::write_rows, {int(some.rows), 1, 1}, &p);
  });
}

void CudaBackend::each_dense(const Tensor& x, const DenseWork& work) {
  const auto step = int64_t(dense_.size / (size_t(x.cols) * sizeof(float)));
  if (step == 0) throw std::logic_error("rows wider than what was prepared for");
  for (int64_t row = 0; row < x.rows; row += step) {
    const int64_t count = std::min(step, x.rows - row);
    work({x.row(row), DType::f32, count, x.cols, x.stride}, {dense_.data.get(), DType::f32, count, x.cols, x.cols},
         row);
  }
}

void CudaBackend::copy_rows(const Tensor& from, const Tensor& to) {
  CopyRowsParams p = {.from = from.as<float>(),
                      .to = to.as<float>(),
                      .ld_from = int32_t(from.stride),
                      .ld_to = int32_t(to.stride),
                      .cols = int32_t(from.cols)};
  // Not on the tape, as it always goes to other memory; what it copies is on its way already.
  tape_.flush();
  context_->launch(Kernel::copy_rows, {int(from.rows), blocks_of(from.cols, kFiniteColumns), 1}, &p);
}

void CudaBackend::synchronise() {
  tape_.flush();
  context_->synchronise();
}

std::vector<int64_t> CudaBackend::state_strides(const StatePart& part) const {
  std::vector<int64_t> strides(part.shape.size(), 1);
  for (size_t i = strides.size() - 1; i-- > 0;) strides[i] = strides[i + 1] * part.shape[i + 1];
  return strides;
}

// A state part lies as its portable form has it, or as the same numbers in halves.
void CudaBackend::read_state(const StatePart& part, const std::byte* device, float* host) const {
  const auto count = size_t(part.count());
  if (part.dtype == DType::f32) return context_->copy_out(host, device, count * sizeof(float));
  std::vector<uint16_t> halves(count);
  context_->copy_out(halves.data(), device, count * sizeof(uint16_t));
  to_f32(halves.data(), DType::f16, count, host);
}
void CudaBackend::write_state(const StatePart& part, std::byte* device, const float* host) const {
  const auto count = size_t(part.count());
  if (part.dtype == DType::f32) return context_->copy_in(device, host, count * sizeof(float));
  std::vector<uint16_t> halves(count);
  std::transform(host, host + count, halves.begin(),
                 [](float v) { return f32_to_f16(std::isfinite(v) ? std::clamp(v, -kMostHalf, kMostHalf) : v); });
  context_->copy_in(device, halves.data(), count * sizeof(uint16_t));
}

// ---- a step ----

void CudaBackend::begin(const Batch& batch) {
  const size_t tokens = batch.token.size(), sequences = batch.src.size();
  if (batch_bytes(int(tokens)) > batch_.host.size) throw std::logic_error("a batch wider than what was prepared for");
  if (uploading_) context_->synchronise();  // the step before has ended in an error
  Carving lists{Arena(batch_.host), Arena(batch_.device)};
  const int32_t* flags = nullptr;
  std::fill_n(lists.place(kFlagWords, flags), kFlagWords, 0);
  std::ranges::copy(batch.token, lists.place(tokens, step_.token));
  int32_t* sequence = lists.place(tokens, step_.sequence);
  for (size_t s = 0; s < sequences; s++)
    std::fill(sequence + batch.start[s], sequence + batch.start[s + 1], int32_t(s));
  std::ranges::copy(batch.start, lists.place(sequences + 1, step_.start));
  std::ranges::copy(batch.rows, lists.place(batch.rows.size(), rows_));
  const auto address = [](const std::byte* p) { return uint64_t(reinterpret_cast<uintptr_t>(p)); };
  std::ranges::transform(batch.src, lists.place(sequences, step_.src), address);
  std::ranges::transform(batch.dst, lists.place(sequences, step_.dst), address);
  place_chunks(batch, lists);
  apart_ = tokens == sequences && std::ranges::equal(batch.src, batch.dst, std::ranges::not_equal_to());
  step_.tokens = int32_t(tokens), step_.sequences = int32_t(sequences);
  flags_ = const_cast<int32_t*>(flags), flags_used_ = 0;
  fetched_ = nullptr;
  context_->upload(batch_.device.data.get(), batch_.host.data.get(), lists.host.used());
  uploading_ = true;
  // A batch of prompts hardly comes again.
  tape_.begin(tokens == sequences && tokens <= kMostTokens);
}

void CudaBackend::embed(const Tensor& table, const Norm& norm, const Batch& batch, Tensor x, Operand out) {
  EmbedParams p = {.table = table.data,
                   .dtype = stored(table.dtype),
                   .ld = int32_t(table.stride),
                   .cols = int32_t(table.cols),
                   .norm = pointers(norm),
                   .x = x.as<float>(),
                   .ld_x = int32_t(x.stride),
                   .out = pointer(out),
                   .token = step_.token};
  launch(Kernel::embed, {int(batch.token.size()), 1, 1}, &p);
}

void CudaBackend::norm(const Tensor& x, const Norm& norm, const Batch&, int first, int count, Tensor y, Operand out) {
  NormParams p = {.x = x.as<float>(),
                  .ld = int32_t(x.stride),
                  .cols = int32_t(x.cols),
                  .norm = pointers(norm),
                  .rows = rows_ + first,
                  .y = y.as<float>(),
                  .ld_y = int32_t(y.stride),
                  .out = pointer(out)};
  launch(Kernel::norm, {count, blocks_of(round_up(int(x.cols), kPad), kRowColumns), 1}, &p);
}

MixParams CudaBackend::mix_params(const Tensor& x, const Norm& norm, size_t shift) const {
  return {.x = x.as<float>(),
          .ld = int32_t(x.stride),
          .cols = int32_t(x.cols),
          .norm = pointers(norm),
          .shift = shift,
          .write = 0,
          .count = 0,
          .step = step_,
          .job = {}};
}

void CudaBackend::mix(const Tensor& x, const Norm& norm, std::span<const MixJob> jobs, size_t shift, const Batch& batch,
                      Shift write) {
  MixParams p = mix_params(x, norm, shift);
  for (const MixJob& job : jobs) {
    p.job[p.count++] = pointers(job);
    const bool last = &job == &jobs.back();
    if (p.count < kMostJobs && !last) continue;
    p.write = last && write == Shift::write;  // the others still read what it replaces
    launch(Kernel::mix, {int(batch.token.size()), blocks_of(round_up(int(x.cols), kPad), kRowColumns), 1}, &p);
    p.count = 0;
  }
}

void CudaBackend::deep_embed(const DeepEmbed& d, const Batch& batch, Operand y) {
  DeepEmbedParams p = {.table = d.table.data,
                       .dtype = stored(d.table.dtype),
                       .d = y.cols,
                       .base = d.base.as<float>(),
                       .z = d.z.as<float>(),
                       .ld_base = int32_t(d.base.stride),
                       .ld_z = int32_t(d.z.stride),
                       .y = pointer(y),
                       .token = step_.token};
  launch(Kernel::deep_embed, {int(batch.token.size()), 1, 1}, &p);
}

void CudaBackend::keep_rows(const Tensor& rows, const Batch&, int first, size_t offset) {
  KeepRowsParams p = {.from = rows.as<float>(),
                      .ld = int32_t(rows.stride),
                      .cols = int32_t(rows.cols),
                      .rows = rows_ + first,
                      .offset = offset,
                      .step = step_};
  launch(Kernel::keep_rows, {int(rows.rows), blocks_of(rows.cols, kFiniteColumns), 1}, &p);
}

// The rows themselves come along while they are few, so whoever reads them does not wait again.
bool CudaBackend::all_finite(const Tensor& x, bool to_be_read) {
  if (flags_used_ == kFlags) {  // begin anew, in order behind those that are still to be written
    std::memset(batch_.host.data.get(), 0, kFlagWords * sizeof(int32_t));
    context_->upload(flags_, batch_.host.data.get(), kFlagWords * sizeof(int32_t));
    flags_used_ = 0;
  }
  const int word = flags_used_ / 32;
  FiniteParams p = {.x = x.as<float>(),
                    .ld = int32_t(x.stride),
                    .cols = int32_t(x.cols),
                    .flag = flags_ + word,
                    .bit = flags_used_++ % 32};
  launch(Kernel::finite, {int(x.rows), blocks_of(x.cols, kFiniteColumns), 1}, &p);
  tape_.flush();
  const int64_t count = (x.rows - 1) * x.stride + x.cols;
  const size_t bytes = size_t(count) * sizeof(float);
  const bool along = to_be_read && bytes <= results_.size;
  if (along) context_->download(results_.data.get(), x.data, bytes);
  int32_t* found = reinterpret_cast<int32_t*>(batch_.host.data.get()) + word;
  context_->download(found, flags_ + word, sizeof(int32_t));
  context_->synchronise();
  uploading_ = false;
  if (along) fetched_ = x.as<float>(), fetched_count_ = count;
  return (uint32_t(*found) >> p.bit & 1) == 0;
}

}  // namespace rwkv::cuda
