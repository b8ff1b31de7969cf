#include "cusim/ptx.h"

#include <cstdio>
#include <vector>

#include "cusim/ptx_kernels.h"
#include "cusim/race.h"

namespace cusim {

namespace {
struct Piece {
  uint64_t from, to;
};
std::vector<Piece> pieces;  // of memory of the device, in ascending order
size_t latest = 0;          // the one that was asked for last
}  // namespace

void watch_nothing() { pieces.clear(), latest = 0; }
void watch(const void* memory, size_t bytes) { pieces.push_back({ptx::address(memory), ptx::address(memory) + bytes}); }

bool ptx::known(uint64_t at, uint64_t bytes) {
  const auto inside = [&](const Piece& p) { return at >= p.from && at + bytes <= p.to; };
  if (latest < pieces.size() && inside(pieces[latest])) return true;
  const auto next =
      std::upper_bound(pieces.begin(), pieces.end(), at, [](uint64_t a, const Piece& p) { return a < p.from; });
  if (next != pieces.begin() && inside(*(next - 1))) return latest = size_t(next - 1 - pieces.begin()), true;
  return inside({address(now.shared), address(now.shared) + now.shared_bytes});
}

namespace {

// Or both NaN with the same payload, of which it is not said what sign a sum has.
bool same(uint32_t a, uint32_t b) {
  const auto nan = [](uint32_t v) { return (v & 0x7fffffff) > 0x7f800000; };
  return a == b || (nan(a) && nan(b) && ((a ^ b) & 0x3fffff) == 0);
}

using Bytes = std::vector<unsigned char>;  // of all allocations
void save(const DeviceMemory& memory, Bytes& all) {
  all.clear();
  memory.each([&](const void* from, uint64_t bytes) {
    const auto* p = static_cast<const unsigned char*>(from);
    all.insert(all.end(), p, p + bytes);
  });
}
void restore(DeviceMemory& memory, const Bytes& all) {
  const unsigned char* from = all.data();
  memory.each([&](void* to, uint64_t bytes) { std::memcpy(to, from, bytes), from += bytes; });
}
std::string difference(const DeviceMemory& memory, const Bytes& expected) {
  std::string said;
  const unsigned char* from = expected.data();
  memory.each([&](const void* at, uint64_t bytes) {
    const unsigned char *found = static_cast<const unsigned char*>(at), *wanted = from;
    from += bytes;
    if (!said.empty() || std::memcmp(found, wanted, bytes) == 0) return;
    for (uint64_t i = 0; said.empty() && i < bytes; i += 4) {
      uint32_t a = 0, b = 0;
      std::memcpy(&a, wanted + i, std::min<uint64_t>(4, bytes - i));
      std::memcpy(&b, found + i, std::min<uint64_t>(4, bytes - i));
      if (same(a, b)) continue;
      char words[40];
      std::snprintf(words, sizeof words, "expected %08x, found %08x", a, b);
      said = "byte " + std::to_string(i) + " of an allocation of " + std::to_string(bytes) + ": " + words;
    }
  });
  return said;
}

}  // namespace

std::string run_translated(const Start& start, const rwkv::cuda::Entry& ptx, DeviceMemory& memory,
                           const Options& options) {
  if (!ptx.call) return run(start, options.schedule);
  Start translated = start;
  translated.call = ptx.call, translated.function = ptx.function;
  const bool counts = !options.counts.empty();
  if (counts) {
    count_begin(uint64_t(start.blocks.x) * start.blocks.y * start.blocks.z);
    translated.before_block = count_block;
  }
  static Bytes before, expected;  // one launch after the other, and they keep their room
  // Two products of k = 8 are rounded twice, one of 16 is not.
  const bool compare = !options.alone && !counts && CUSIM_PTX >= 80;
  if (compare) {
    save(memory, before);
    if (std::string error = run(start, options.schedule); !error.empty()) return error;
    save(memory, expected);
    restore(memory, before);
  }
  std::string error = run(translated, options.schedule);
  if (counts) count_end(start.name, options.counts);
  if (compare && error.empty()) error = difference(memory, expected);
  return error.empty() ? error : "as nvcc compiles it: " + error;
}

}  // namespace cusim

// Those that are linked.
namespace rwkv::cuda {
using Add = void(Entry* table);
[[gnu::weak]] Add ptx_chunk, ptx_rows, ptx_sample, ptx_small, ptx_sparse, ptx_tile, ptx_wkv;
}  // namespace rwkv::cuda

const rwkv::cuda::Entry& cusim::ptx_kernel(uint32_t kernel) {
  using namespace rwkv::cuda;
  static const std::vector<Entry> table = [] {
    std::vector<Entry> t(size_t(Kernel::count));
    for (const auto add : {ptx_chunk, ptx_rows, ptx_sample, ptx_small, ptx_sparse, ptx_tile, ptx_wkv})
      if (add) add(t.data());
    return t;
  }();
  return table[kernel];
}
