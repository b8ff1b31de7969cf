// Rows out of the tiles of an operand, in which they lie interleaved, into tiles of their own.
#include <algorithm>
#include <cstring>

#include "cpu/backend.h"

namespace rwkv::cpu {

namespace {

// Rows that lie together in a tile of `from` and in one of `to`.
struct Stretch {
  const std::byte* from;
  std::byte* to;
  int width, at;        // of the tile, and where in it they begin
  int to_width, to_at;  // and the same there
  int rows;
};

// All k columns: a number, or a pair of halves, of every row; then the next.
void pick_words(const Stretch& s, int words) {
  for (int i = 0; i < words; i++)
    std::memcpy(s.to + (size_t(i) * size_t(s.to_width) + size_t(s.to_at)) * 4,
                s.from + (size_t(i) * size_t(s.width) + size_t(s.at)) * 4, size_t(s.rows) * 4);
}

// The same of bf16 as tiles want it: 32 columns of every row; then the next.
void pick_chains(const Stretch& s, int chains) {
  constexpr size_t kRow = kChain * 2;
  for (int i = 0; i < chains; i++)
    std::memcpy(s.to + (size_t(i) * size_t(s.to_width) + size_t(s.to_at)) * kRow,
                s.from + (size_t(i) * size_t(s.width) + size_t(s.at)) * kRow, size_t(s.rows) * kRow);
}

// Where a number of bf16 lies in a tile, in numbers.
size_t place_of(bool chains, int width, int row, int column) {
  const auto at = [&](int every) { return size_t(column / every) * size_t(width) + size_t(row); };
  constexpr int kHalf = kChain / 2;
  if (!chains) return at(2) * 2 + size_t(column % 2);
  return at(kChain) * kChain + size_t(column % kHalf ^ 1) * 2 + size_t(column % kChain / kHalf);
}
// From such a tile to one of few tokens; the other way does not occur.
void pick_pairs(const Stretch& s, int k) {
  const auto* from = reinterpret_cast<const uint16_t*>(s.from);
  auto* to = reinterpret_cast<uint16_t*>(s.to);
  for (int column = 0; column < k; column++)
    for (int i = 0; i < s.rows; i++)
      to[place_of(false, s.to_width, s.to_at + i, column)] = from[place_of(true, s.width, s.at + i, column)];
}

// Of every group the numbers, the scales and the corrections.
void pick_groups(const Stretch& s, int groups) {
  for (int i = 0; i < groups; i++) {
    const std::byte* from = s.from + size_t(i) * row_bytes(Format::i8, kGroup) * size_t(s.width);
    std::byte* to = s.to + size_t(i) * row_bytes(Format::i8, kGroup) * size_t(s.to_width);
    for (const size_t bytes : {size_t(kGroup), sizeof(float), sizeof(int32_t)}) {
      std::memcpy(to + size_t(s.to_at) * bytes, from + size_t(s.at) * bytes, size_t(s.rows) * bytes);
      from += size_t(s.width) * bytes, to += size_t(s.to_width) * bytes;
    }
  }
}

// Whole tiles of the result.
void pick_tiles(const Kernels& kernels, const PickJob& job, int begin, int end) {
  const Format format = job.from.format;
  const int k = padded_k(format, job.from.cols), tile = tile_of(kernels, format);
  const int from_tiles = tile_count(job.from.rows, tile), to_tiles = tile_count(job.to.rows, tile);
  for (int t = begin; t < end; t++) {
    const int first = tile_start(job.to.rows, to_tiles, t), last = tile_start(job.to.rows, to_tiles, t + 1);
    for (int row = first; row < last;) {
      const int source = tile_at(job.from.rows, from_tiles, job.first + row);
      const int start = tile_start(job.from.rows, from_tiles, source);
      const int stop = tile_start(job.from.rows, from_tiles, source + 1);
      const Stretch s{job.from.data + size_t(start) * row_bytes(format, k),
                      job.to.data + size_t(first) * row_bytes(format, k),
                      stop - start,
                      job.first + row - start,
                      last - first,
                      row - first,
                      std::min(last - row, stop - job.first - row)};
      const bool bf16 = format == Format::bf16;
      if (format == Format::i8)
        pick_groups(s, k / kGroup);
      else if (!bf16 || !pairs_in_tiles(kernels, s.width))
        pick_words(s, bf16 ? k / 2 : k);
      else if (pairs_in_tiles(kernels, s.to_width))
        pick_chains(s, (k + kChain - 1) / kChain);
      else
        pick_pairs(s, k);
      row += s.rows;
    }
  }
}

}  // namespace

void CpuBackend::pick(std::span<const PickJob> jobs) {
  const auto tiles_of = [&](const PickJob& job) { return tile_count(job.to.rows, tile_of(kernels_, job.to.format)); };
  int total = 0;
  for (const PickJob& job : jobs) total += tiles_of(job);
  pool_.run([&](int worker) {
    const Share share(total, worker, pool_.size());
    int at = 0;
    for (const PickJob& job : jobs) {
      const int tiles = tiles_of(job);
      pick_tiles(kernels_, job, std::max(share.begin - at, 0), std::min(share.end - at, tiles));
      at += tiles;
    }
  });
}

}  // namespace rwkv::cpu
