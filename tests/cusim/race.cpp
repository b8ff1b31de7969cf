#include "cusim/race.h"

#include <cstdint>
#include <map>
#include <string>
#include <unordered_map>

#include "cusim/fibers.h"

namespace cusim {

namespace {

// Who, when and which bytes of a word: what a block's and a warp's barriers order has other numbers.
struct Access {
  unsigned block = 0, thread = 0, barriers = 0, lanes = 0, bytes = 0;
};
// The last writer, and two readers of different threads: one of them is another one than who writes next. Of threads
// that have different bytes of a word only the last ones are known.
struct Word {
  Access writer, readers[2];
};

std::map<uintptr_t, size_t> watched;
std::unordered_map<uintptr_t, Word> words;

bool ordered(const Access& a, const Access& b) {
  if ((a.bytes & b.bytes) == 0 || (a.block == b.block && a.thread == b.thread)) return true;
  if (a.block != b.block) return false;
  return a.barriers != b.barriers || (a.thread / 32 == b.thread / 32 && a.lanes != b.lanes);
}

std::string where(uintptr_t at) {
  const auto shared = reinterpret_cast<uintptr_t>(now.shared);
  if (at - shared < now.shared_bytes) return "byte " + std::to_string(at - shared) + " of shared memory";
  const auto block = std::prev(watched.upper_bound(at));
  return "byte " + std::to_string(at - block->first) + " of an allocation of " + std::to_string(block->second);
}

[[noreturn]] void report(const Access& before, bool wrote, const Access& a, bool writes, uintptr_t at) {
  static std::string text;  // see fail
  text = std::string("race: ") + (writes ? "writes " : "reads ") + where(at) + ", which thread " +
         std::to_string(before.thread) + (before.block == a.block ? "" : " of another block") +
         (wrote ? " has written" : " has read");
  fail(text.c_str(), {});
}

bool is_watched(uintptr_t at) {
  if (at - reinterpret_cast<uintptr_t>(now.shared) < now.shared_bytes) return true;
  const auto next = watched.upper_bound(at);
  return next != watched.begin() && at - std::prev(next)->first < std::prev(next)->second;
}

void note(const void* address, size_t bytes, bool writes) {
  const auto from = reinterpret_cast<uintptr_t>(address);
  if (!now.running || !is_watched(from)) return;
  Access a{(now.block.z * now.blocks.y + now.block.y) * now.blocks.x + now.block.x, now.thread.x, now.barriers,
           now.lanes, 0};
  // Shared memory of another block is other memory.
  const bool shared = from - reinterpret_cast<uintptr_t>(now.shared) < now.shared_bytes;
  for (uintptr_t at = from / 4; at < (from + bytes + 3) / 4; at++) {
    const uintptr_t first = from > at * 4 ? from - at * 4 : 0, last = from + bytes - at * 4;
    a.bytes = (last < 4 ? (1u << last) - 1 : 15u) & 15u << first;
    Word& word = words[at];
    if (shared && word.writer.block != a.block) word.writer = {};
    if (shared && word.readers[0].block != a.block) word.readers[0] = word.readers[1] = {};
    if (!ordered(word.writer, a)) report(word.writer, true, a, writes, at * 4);
    if (!writes) {
      if (word.readers[0].thread != a.thread || word.readers[0].block != a.block) word.readers[1] = word.readers[0];
      word.readers[0] = a;
      continue;
    }
    for (const Access& reader : word.readers)
      if (!ordered(reader, a)) report(reader, false, a, true, at * 4);
    word.writer = a;
  }
}

}  // namespace

void watch_nothing() { watched.clear(), words.clear(); }
void watch(const void* memory, size_t bytes) { watched[reinterpret_cast<uintptr_t>(memory)] = bytes; }
void note_copy(void* to, const void* from, bool wanted) {
  if (wanted) note(from, 16, false);
  note(to, 16, true);
}

}  // namespace cusim

// ---- what compilers call ----
#define CUSIM_HOOKS(bytes) \
  void __tsan_read##bytes(void* p) { cusim::note(p, bytes, false); } \
  void __tsan_write##bytes(void* p) { cusim::note(p, bytes, true); } \
  void __tsan_unaligned_read##bytes(void* p) { cusim::note(p, bytes, false); } \
  void __tsan_unaligned_write##bytes(void* p) { cusim::note(p, bytes, true); }

extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
CUSIM_HOOKS(1)
CUSIM_HOOKS(2)
CUSIM_HOOKS(4)
CUSIM_HOOKS(8)
CUSIM_HOOKS(16)
void __tsan_read_range(void* p, size_t bytes) { cusim::note(p, bytes, false); }
void __tsan_write_range(void* p, size_t bytes) { cusim::note(p, bytes, true); }
// Atomic operations conflict with nothing that kernels do beside them.
int __tsan_atomic32_fetch_or(volatile int* p, int v, int) { return __atomic_fetch_or(p, v, __ATOMIC_RELAXED); }
unsigned char __tsan_atomic8_load(const volatile unsigned char* p, int) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
}
