// Weights on their way from a file to the device: several threads read rows into pinned memory, each with a piece of
// its own that is copied and packed on the device.
#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <thread>

#include "cuda/backend.h"

namespace rwkv::cuda {

namespace {

constexpr size_t kPiece = size_t(4) << 20;  // bytes of a file at a time

int64_t piece_rows(const RowSource& source, size_t row) {
  return std::max<int64_t>(1, int64_t(std::max(kPiece, source.bytes) / row));
}

}  // namespace

void CudaBackend::each_rows(int64_t rows, int64_t step, size_t bytes, const RowWork& work) {
  const int64_t pieces = (rows + step - 1) / step;
  const auto threads = size_t(std::min<int64_t>(threads_, pieces));
  pieces_.resize(std::max(pieces_.size(), threads));
  std::atomic<int64_t> next = 0;
  std::exception_ptr error;
  std::mutex failing;
  const auto run = [&](Transfer& piece) {
    try {
      piece.grow(*context_, bytes);
      for (int64_t row; (row = next.fetch_add(step)) < rows;) work(piece, row, std::min(step, rows - row));
    } catch (...) {
      next = rows;  // for the others too
      const std::lock_guard lock(failing);
      if (!error) error = std::current_exception();
    }
  };
  {
    std::vector<std::jthread> others;
    for (size_t i = 1; i < threads; i++) others.emplace_back(run, std::ref(pieces_[i]));
    run(pieces_.front());
  }
  if (error) std::rethrow_exception(error);
}

void CudaBackend::pack(const Linear& w, const RowSource& source) {
  const size_t row = size_t(w.cols) * size_of(source.dtype);
  const int64_t step = (piece_rows(source, row) + kPad - 1) / kPad * kPad;  // and whole panels of packed files
  const size_t bytes = size_t(std::min<int64_t>(step, w.rows)) * row;
  const Kernel kernel = pack_kernel(stored(w.format), w.mostly_zero_inputs ? Order::columns : Order::rows);
  each_rows(w.rows, step, bytes, [&](Transfer& piece, int64_t first, int64_t count) {
    source.read(first, count, piece.host.data.get());
    context_->upload(piece.device.data.get(), piece.host.data.get(), size_t(count) * row);
    const PackParams p = {.from = piece.device.data.get(),
                          .dtype = stored(source.dtype),
                          .row = int32_t(first),
                          .count = int32_t(count),
                          .rows = w.rows,
                          .cols = w.cols,
                          .to = w.data};
    context_->launch(kernel, {blocks_of(count, kBlockRows), round_up(w.cols, kPad) / kGroup, 1}, &p);
    context_->synchronise();
  });
}

void CudaBackend::copy(const Tensor& table, const RowSource& source) {
  const size_t row = size_t(table.stride) * size_of(table.dtype);
  const int64_t step = piece_rows(source, row);
  each_rows(table.rows, step, size_t(std::min(step, table.rows)) * row,
            [&](Transfer& piece, int64_t first, int64_t count) {
              source.read(first, count, piece.host.data.get());
              context_->upload(table.as<std::byte>() + size_t(first) * row, piece.host.data.get(), size_t(count) * row);
              context_->synchronise();
            });
}

}  // namespace rwkv::cuda
