#include "cusim/memory.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>

#include "cusim/context.h"

namespace cusim {

namespace {

constexpr uint64_t kCanary = 256, kPage = 4096;
constexpr unsigned char kMark = 0xa5;

void watch(unsigned char* from, uint64_t bytes, bool on) {
#if CUSIM_ASAN
  on ? __asan_poison_memory_region(from, bytes) : __asan_unpoison_memory_region(from, bytes);
#else
  (void)from, (void)bytes, (void)on;
#endif
}

}  // namespace

DeviceMemory::~DeviceMemory() {
  while (!blocks_.empty()) release(reinterpret_cast<void*>(blocks_.begin()->first));
}

void* DeviceMemory::allocate(uint64_t bytes) {
  if (bytes > free()) return nullptr;
  Block block{nullptr, bytes, (bytes + 2 * kCanary + kPage - 1) / kPage * kPage};
  void* base = mmap(nullptr, block.mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) return nullptr;
  block.base = static_cast<unsigned char*>(base);
  unsigned char* memory = block.base + kCanary;
  std::memset(block.base, kMark, kCanary);
  std::memset(memory + bytes, kMark, kCanary);
  watch(block.base, kCanary, true), watch(memory + bytes, kCanary, true);
  blocks_[reinterpret_cast<uintptr_t>(memory)] = block;
  used_ += bytes;
  if (protect_) mprotect(base, block.mapped, PROT_NONE);
  return memory;
}

std::string DeviceMemory::check(const Block& block) const {
  unsigned char *before = block.base, *behind = block.base + kCanary + block.bytes;
  watch(before, kCanary, false), watch(behind, kCanary, false);
  std::string error;
  for (uint64_t i = 0; i < kCanary && error.empty(); i++) {
    if (behind[i] != kMark)
      error = "byte " + std::to_string(i) + " behind an allocation of " + std::to_string(block.bytes) + " was written";
    else if (before[kCanary - 1 - i] != kMark)
      error = "byte " + std::to_string(i + 1) + " in front of an allocation of " + std::to_string(block.bytes) +
              " was written";
  }
  watch(before, kCanary, true), watch(behind, kCanary, true);
  return error;
}

std::string DeviceMemory::check() const {
  for (const auto& [address, block] : blocks_)
    if (std::string error = check(block); !error.empty()) return error;
  return {};
}

std::string DeviceMemory::release(void* memory) {
  const auto found = blocks_.find(reinterpret_cast<uintptr_t>(memory));
  if (found == blocks_.end()) return "memory is released that was never allocated";
  const Block block = found->second;
  if (protect_) mprotect(block.base, block.mapped, PROT_READ | PROT_WRITE);
  const std::string error = check(block);
  watch(block.base, kCanary, false), watch(block.base + kCanary + block.bytes, kCanary, false);
  munmap(block.base, block.mapped);
  used_ -= block.bytes;
  blocks_.erase(found);
  return error;
}

bool DeviceMemory::holds(const void* from, uint64_t bytes) const {
  const auto at = reinterpret_cast<uintptr_t>(from);
  auto next = blocks_.upper_bound(at);
  if (next == blocks_.begin()) return false;
  --next;
  return at - next->first <= next->second.bytes && bytes <= next->second.bytes - (at - next->first);
}

void DeviceMemory::open(bool reachable) {
  if (!protect_) return;
  for (const auto& [address, block] : blocks_)
    mprotect(block.base, block.mapped, reachable ? PROT_READ | PROT_WRITE : PROT_NONE);
}

}  // namespace cusim
