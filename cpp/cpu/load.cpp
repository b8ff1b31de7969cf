// Weights on their way from a file into memory: every thread reads rows and packs what it has read while that is still
// in its cache, so reading and packing overlap and neither waits for the other.
#include <algorithm>
#include <atomic>
#include <mutex>

#include "cpu/backend.h"
#include "cpu/pack.h"

namespace rwkv::cpu {

void CpuBackend::each_rows(int64_t rows, int64_t step, const RowWork& work) {
  std::atomic<int64_t> next = 0;
  std::exception_ptr error;
  std::mutex failing;
  pool_.run([&](int worker) {
    try {
      for (int64_t row; (row = next.fetch_add(step)) < rows;) work(worker, row, std::min(step, rows - row));
    } catch (...) {
      next = rows;  // for the others too
      const std::lock_guard lock(failing);
      if (!error) error = std::current_exception();
    }
  });
  if (error) std::rethrow_exception(error);
}

void CpuBackend::read_rows(const RowSource& source, int64_t row, int64_t count, std::byte* to) const {
  const FlushDenormals as_they_are(false);
  source.read(row, count, to);
}

void CpuBackend::pack(const Linear& w, const RowSource& source) {
  const size_t row_size = size_t(w.cols) * rwkv::size_of(source.dtype);
  const int64_t step = std::max<int64_t>(1, int64_t(source.bytes / (row_size * kPanel))) * kPanel;
  const auto staging_size = size_t(std::min<int64_t>(step, w.rows)) * row_size;
  std::vector<std::unique_ptr<std::byte[]>> staging(size_t(pool_.size()));
  each_rows(w.rows, step, [&](int worker, int64_t row, int64_t count) {
    auto& rows = staging[size_t(worker)];
    if (!rows) rows = std::make_unique_for_overwrite<std::byte[]>(staging_size);
    read_rows(source, row, count, rows.get());
    pack_panels(w, int(row), int(count), rows.get(), source.dtype);
  });
}

void CpuBackend::copy(const Tensor& table, const RowSource& source) {
  const size_t row_size = size_t(table.stride) * rwkv::size_of(table.dtype);
  const int64_t step = std::max<int64_t>(1, int64_t(source.bytes / row_size));
  each_rows(table.rows, step, [&](int, int64_t row, int64_t count) {
    read_rows(source, row, count, table.as<std::byte>() + size_t(row) * row_size);
  });
}

void CpuBackend::pack_panels(const Linear& w, int row, int count, const std::byte* rows, DType dtype) const {
  const int k = w.cols;
  const size_t element = rwkv::size_of(dtype), stride = panel_bytes(w.format, padded_k(w.format, k));
  float block[kGroup];
  for (int p = 0; p < panels_of(count); p++) {
    std::byte* panel = w.data + size_t(row / kPanel + p) * stride;
    for (int k0 = 0; k0 < k; k0 += kGroup) {
      const int kn = std::min(kGroup, k - k0);
      // Rows past the matrix stay zero, as the arena is.
      for (int r = 0; r < std::min(kPanel, count - p * kPanel); r++) {
        const std::byte* from = rows + (size_t(p * kPanel + r) * size_t(k) + size_t(k0)) * element;
        kernels_.widen(from, dtype, kn, block);
        pack_weights(w.format, block, r, kn, panel + panel_bytes(w.format, k0));
      }
    }
  }
}

}  // namespace rwkv::cpu
