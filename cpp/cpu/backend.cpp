#include "cpu/backend.h"

#include <algorithm>
#include <cstring>

#include "core/error.h"
#include "core/platform.h"
#include "cpu/columns.h"

namespace rwkv::cpu {

namespace {

constexpr int kMixColumns = 256;  // columns of one lerp per packing call: they stay in L1; whole groups

int sequence_of(const Batch& batch, int row) {
  return int(std::upper_bound(batch.start.begin(), batch.start.end(), row) - batch.start.begin()) - 1;
}

bool is_matrix(const StatePart& part) { return part.shape.size() == 3; }

}  // namespace

CpuBackend::CpuBackend(const DeviceOptions& options)
    : kernels_(choose_kernels()), pool_(options.threads, options.pin), pieces_(pool_.size()), sparse_(options.sparse) {
  scratch_.resize(size_t(pool_.size()));
  sampling_.resize(size_t(pool_.size()));
  errors_.resize(size_t(pool_.size()));
}

std::string CpuBackend::description() const {
  return join("cpu ", kernels_.name, ", ", pool_.size(), pool_.size() == 1 ? " thread" : " threads");
}

// ---- memory ----

Memory CpuBackend::allocate(size_t bytes) { return {map_pages(bytes), bytes}; }

void CpuBackend::prepare(const StepShape& shape) {
  const int64_t width = shape.width;
  if (width <= width_) return;
  width_ = width;
  // The greatest need is mix: the normalised rows of a tile, the one before it and one to spare, and a block of lerps.
  // A recurrence needs kWkvTokens rows of an item.
  const int64_t mix = (kernels_.tile + 2) * row_stride(width) + int64_t(kernels_.tile) * kMixColumns;
  const int64_t wkv = int64_t(kWkvTokens) * std::max<int64_t>(2 * width, kPanel);
  for (Memory& m : scratch_) m = allocate(size_t(std::max({mix, wkv, int64_t(kRoom)})) * sizeof(float));
}

size_t CpuBackend::operand_bytes(Format format, int rows, int cols) const {
  return size_t(rows) * row_bytes(format, padded_k(format, cols));
}

// Whole panels, and never a multiple of 4 KiB: the rows of a tile would all want the same few lines of the L1 cache.
int64_t CpuBackend::row_stride(int64_t cols) const {
  const int64_t panels = panels_of(int(cols));
  return (panels % 32 == 0 ? panels + 1 : panels) * kPanel;
}

size_t CpuBackend::linear_bytes(const Linear& w) const { return panels::matrix_bytes(w.format, w.rows, w.cols); }

size_t CpuBackend::column_bytes(const Linear& w) const {
  if (!w.mostly_zero_inputs || !sparse_.value_or(true) || !has_columns(w.format)) return 0;
  return kColumnHead + cpu::column_bytes(w.format, column_rows(w.rows), padded_k(w.format, w.cols));
}

// Whose work takes some 50 ms on a small machine; whole tiles of the products that have the largest, of 32 tokens.
int CpuBackend::panel_rows(int64_t work) const {
  constexpr int64_t kBudget = 16'800'000'000, kTile = 32;
  return int(std::clamp<int64_t>(kBudget / work / kTile * kTile, kTile, 288));
}

void CpuBackend::read(const Tensor& x, float* host) {
  for (int64_t i = 0; i < x.rows; i++, host += x.cols) std::copy_n(x.row(i), x.cols, host);
}

void CpuBackend::write(const Tensor& x, const float* host) {
  for (int64_t i = 0; i < x.rows; i++, host += x.cols) std::copy_n(host, x.cols, x.row(i));
}

void CpuBackend::copy_rows(const Tensor& from, const Tensor& to) {
  for (int64_t i = 0; i < from.rows; i++) std::copy_n(from.row(i), from.cols, to.row(i));
}

void CpuBackend::pack_columns(const Linear& w) {
  const int k = padded_k(w.format, w.cols), groups = (k + kGroup - 1) / kGroup;
  std::atomic<bool> finite{true};
  pool_.run([&](int worker) {
    const Share share(groups, worker, pool_.size());
    for (int i = share.begin; i < share.end; i++)
      if (!turn_columns(w.format, w.data, w.rows, k, i * kGroup, w.columns))
        finite.store(false, std::memory_order_relaxed);
  });
  allow_skipping(w.columns, finite.load(std::memory_order_relaxed));
  live_.resize(std::max(live_.size(), size_t(k)));
}

// A vector lies as it is. A matrix lies per head as [key][value], values padded to whole vectors.
size_t CpuBackend::state_bytes(const StatePart& part) const {
  if (!is_matrix(part)) return size_t(part.count()) * sizeof(float);
  return size_t(part.shape[0] * part.shape[2]) * size_t(padded_n(int(part.shape[1]))) * sizeof(float);
}

std::vector<int64_t> CpuBackend::state_strides(const StatePart& part) const {
  if (!is_matrix(part)) return {1};
  const int64_t values = padded_n(int(part.shape[1]));
  return {part.shape[2] * values, 1, values};
}

void CpuBackend::read_state(const StatePart& part, const std::byte* device, float* host) const {
  const auto* d = reinterpret_cast<const float*>(device);
  if (!is_matrix(part)) return void(std::memcpy(host, d, size_t(part.count()) * sizeof(float)));
  const int64_t heads = part.shape[0], values = part.shape[1], keys = part.shape[2], ld = padded_n(int(values));
  for (int64_t h = 0; h < heads; h++, host += values * keys, d += keys * ld)
    for (int64_t k0 = 0; k0 < keys; k0 += 16)
      for (int64_t v = 0; v < values; v++)
        for (int64_t k = k0; k < std::min(k0 + 16, keys); k++) host[v * keys + k] = d[k * ld + v];
}

void CpuBackend::write_state(const StatePart& part, std::byte* device, const float* host) const {
  auto* d = reinterpret_cast<float*>(device);
  if (!is_matrix(part)) return void(std::memcpy(d, host, size_t(part.count()) * sizeof(float)));
  const int64_t heads = part.shape[0], values = part.shape[1], keys = part.shape[2], ld = padded_n(int(values));
  std::memset(d, 0, state_bytes(part));
  for (int64_t h = 0; h < heads; h++, host += values * keys, d += keys * ld)
    for (int64_t k0 = 0; k0 < keys; k0 += 16)
      for (int64_t v = 0; v < values; v++)
        for (int64_t k = k0; k < std::min(k0 + 16, keys); k++) d[k * ld + v] = host[v * keys + k];
}

// ---- rows ----

void CpuBackend::layer_norm(const float* x, const Norm& norm, int n, float* y) const {
  kernels_.layer_norm(x, norm.weight.as<float>(), norm.bias.as<float>(), n, norm.eps, y);
}

void CpuBackend::pack_rows(const float* x, size_t ld, int begin, int count, int k0, int kn, const Operand& out) const {
  const int k = padded_k(out.format, out.cols), tiles = tile_count(out.rows, tile_of(kernels_, out.format));
  const int k_end = k0 + kn == out.cols ? k : k0 + kn;
  const auto start = [&](int i) { return tile_start(out.rows, tiles, i); };
  int tile = tile_at(out.rows, tiles, begin);
  for (int row = begin; row < begin + count; tile++) {
    const int at = row - start(tile), width = start(tile + 1) - start(tile);
    const int rows = std::min(width - at, begin + count - row);
    std::byte* data = out.data + size_t(start(tile)) * row_bytes(out.format, k);
    kernels_.pack_rows(out.format, x + size_t(row - begin) * ld, ld, rows, k0, kn, k_end, data, width, at);
    row += rows;
  }
}

void CpuBackend::widen(const Tensor& table, int64_t row, float* y) const {
  const size_t at = size_t(row) * size_t(table.stride) * rwkv::size_of(table.dtype);
  kernels_.widen(table.as<const std::byte>() + at, table.dtype, int(table.cols), y);
}

void CpuBackend::embed(const Tensor& table, const Norm& norm, const Batch& batch, Tensor x, Operand out) {
  const int rows = int(batch.token.size()), tiles = tile_count(rows, kernels_.tile), c = int(table.cols);
  pool_.run([&](int worker) {
    auto* wide = room(worker);
    float* normed = wide + row_stride(c);
    const Share share(tiles, worker, pool_.size());
    for (int i = share.begin; i < share.end; i++) {
      const int begin = tile_start(rows, tiles, i), end = tile_start(rows, tiles, i + 1);
      for (int row = begin; row < end; row++) {
        float* to = x ? x.row(row) : normed + int64_t(row - begin) * row_stride(c);
        widen(table, batch.token[size_t(row)], wide);
        layer_norm(wide, norm, c, to);
      }
      if (out)
        pack_rows(x ? x.row(begin) : normed, size_t(x ? x.stride : row_stride(c)), begin, end - begin, 0, c, out);
    }
  });
}

void CpuBackend::deep_embed(const DeepEmbed& p, const Batch& batch, Operand y) {
  const int rows = int(batch.token.size()), tiles = tile_count(rows, kernels_.tile), d = int(p.z.cols);
  pool_.run([&](int worker) {
    auto* matrix = room(worker);
    float* products = matrix + p.table.cols;
    const Share share(tiles, worker, pool_.size());
    for (int i = share.begin; i < share.end; i++) {
      const int begin = tile_start(rows, tiles, i), end = tile_start(rows, tiles, i + 1);
      for (int row = begin; row < end; row++) {
        widen(p.table, batch.token[size_t(row)], matrix);
        kernels_.small_product(p.z.row(row), matrix, p.base.row(row), d, products + int64_t(row - begin) * d);
      }
      pack_rows(products, size_t(d), begin, end - begin, 0, d, y);
    }
  });
}

void CpuBackend::norm(const Tensor& x, const Norm& norm, const Batch& batch, int first, int n, Tensor y, Operand out) {
  const int tiles = tile_count(n, kernels_.tile), c = int(x.cols);
  pool_.run([&](int worker) {
    auto* buffer = room(worker);
    const Share share(tiles, worker, pool_.size());
    for (int i = share.begin; i < share.end; i++) {
      const int begin = tile_start(n, tiles, i), end = tile_start(n, tiles, i + 1);
      for (int row = begin; row < end; row++) {
        float* to = buffer + int64_t(row - begin) * row_stride(c);
        layer_norm(x.row(batch.rows[size_t(first + row)]), norm, c, to);
        if (y) std::copy_n(to, c, y.row(row));
      }
      if (out) pack_rows(buffer, size_t(row_stride(c)), begin, end - begin, 0, c, out);
    }
  });
}

void CpuBackend::mix(const Tensor& x, const Norm& norm, std::span<const MixJob> jobs, size_t shift, const Batch& batch,
                     Shift write) {
  const int rows = int(batch.token.size()), tiles = tile_count(rows, kernels_.tile), c = int(x.cols);
  pool_.run([&](int worker) {
    auto* scratch = room(worker);
    // Where there are fewer tiles than threads, everybody normalises all rows and takes some columns.
    const bool whole = tiles >= pool_.size();
    const Share share(tiles, whole ? worker : 0, whole ? pool_.size() : 1),
        groups((c + kGroup - 1) / kGroup, worker, pool_.size());
    const Columns columns = whole ? Columns{0, c} : Columns{groups.begin * kGroup, std::min(groups.end * kGroup, c)};
    if (columns.begin >= columns.end) return;
    for (int i = share.begin; i < share.end; i++)
      mix_tile(x, norm, jobs, shift, batch, write, tile_start(rows, tiles, i), tile_start(rows, tiles, i + 1), columns,
               scratch);
  });
}

void CpuBackend::mix_tile(const Tensor& x, const Norm& norm, std::span<const MixJob> jobs, size_t shift,
                          const Batch& batch, Shift write, int begin, int end, Columns columns, float* scratch) const {
  const int c = int(x.cols);
  const int64_t ld = row_stride(c);
  float* xn = scratch + ld;  // row -1 is the one before the tile
  float* last = xn + kernels_.tile * ld;
  float* lerped = last + ld;

  const float* previous[64];
  int sequence = sequence_of(batch, begin);
  const int first = sequence;
  for (int row = begin; row < end; row++) {
    if (row == batch.start[size_t(sequence) + 1]) sequence++;
    layer_norm(x.row(row), norm, c, xn + (row - begin) * ld);
    if (row == batch.start[size_t(sequence)]) {
      previous[row - begin] = reinterpret_cast<const float*>(batch.src[size_t(sequence)] + shift);
    } else {
      if (row == begin) layer_norm(x.row(row - 1), norm, c, xn - ld);
      previous[row - begin] = xn + (row - begin - 1) * ld;
    }
  }
  for (const MixJob& job : jobs)
    for (int k0 = columns.begin; k0 < columns.end; k0 += kMixColumns) {
      const int kn = std::min(kMixColumns, columns.end - k0);
      for (int i = 0; i < end - begin; i++)
        kernels_.lerp(xn + i * ld + k0, previous[i] + k0, job.mu.as<float>() + k0,
                      job.dynamic ? job.dynamic.row(begin + i) + k0 : nullptr, kn, lerped + i * kMixColumns);
      pack_rows(lerped, kMixColumns, begin, end - begin, k0, kn, job.out);
    }
  if (write == Shift::keep) return;
  // Whoever has read a sequence's old shift writes its new one: src and dst may be the same slot.
  for (int s = first; s <= sequence; s++) {
    if (batch.start[size_t(s)] < begin) continue;
    layer_norm(x.row(batch.start[size_t(s) + 1] - 1), norm, c, last);
    auto* to = reinterpret_cast<float*>(batch.dst[size_t(s)] + shift);
    std::copy(last + columns.begin, last + columns.end, to + columns.begin);
  }
}

// ---- results ----

bool CpuBackend::all_finite(const Tensor& x, bool) {
  std::atomic<bool> finite{true};
  pool_.run([&](int worker) {
    // Columns, not rows: there is often but one row.
    const Share share(int(x.cols), worker, pool_.size());
    for (int64_t i = 0; i < x.rows; i++)
      if (!kernels_.all_finite(x.row(i) + share.begin, size_t(share.end - share.begin)))
        finite.store(false, std::memory_order_relaxed);
  });
  return finite.load(std::memory_order_relaxed);
}

void CpuBackend::sample(std::span<const SampleJob> jobs, std::span<TokenLogprob> drawn) {
  RWKV_CHECK(Error, drawn.size() == jobs.size(), "drawn: expected room for ", jobs.size(), " tokens, found ",
             drawn.size());
  const int n = int(jobs.size()), workers = std::min(n, pool_.size());
  int64_t widest = 0;
  for (const SampleJob& job : jobs) widest = std::max(widest, job.logits.cols);
  for (int worker = 0; worker < workers; worker++) sampling_[size_t(worker)].reserve(size_t(widest));
  const auto work = [&](int worker) {
    if (worker >= workers) return;
    const Share share(n, worker, workers);
    try {
      for (int i = share.begin; i < share.end; i++)
        drawn[size_t(i)] = sample_row(kernels_, jobs[size_t(i)], sampling_[size_t(worker)]);
    } catch (...) {
      errors_[size_t(worker)] = std::current_exception();
    }
  };
  if (n == 1) {  // not worth waking the others
    FlushDenormals flush;
    work(0);
  } else {
    pool_.run(work);
  }
  // Shares are in order, so the first worker's error is the first job's.
  std::exception_ptr first;
  for (std::exception_ptr& error : errors_) {
    if (error && !first) first = error;
    error = nullptr;
  }
  if (first) std::rethrow_exception(first);
}

}  // namespace rwkv::cpu
