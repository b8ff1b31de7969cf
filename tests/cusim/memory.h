// Memory of a simulated device: every allocation by itself between canaries, which AddressSanitizer watches where it is
// on; or, protected, in pages that nobody can read or write but while the device works.
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>

namespace cusim {

class DeviceMemory {
 public:
  DeviceMemory(uint64_t total, bool protect) : total_(total), protect_(protect) {}
  ~DeviceMemory();
  DeviceMemory(const DeviceMemory&) = delete;

  void* allocate(uint64_t bytes);                      // zeroed; null: not so much is free
  std::string release(void* memory);                   // what was wrong
  std::string check() const;                           // of all canaries
  bool holds(const void* from, uint64_t bytes) const;  // inside one allocation
  void open(bool reachable);                           // protected memory, before and after the device works
  template <class F>
  void each(F f) const {  // f(memory, bytes)
    for (const auto& [address, block] : blocks_) f(reinterpret_cast<void*>(address), block.bytes);
  }
  uint64_t total() const { return total_; }
  uint64_t free() const { return total_ - used_; }

 private:
  struct Block {
    unsigned char* base;
    uint64_t bytes, mapped;
  };
  std::string check(const Block& block) const;
  std::map<uintptr_t, Block> blocks_;  // by the address that was handed out
  uint64_t total_, used_ = 0;
  bool protect_;
};

}  // namespace cusim
