#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace rwkv {

// SHA-256 (FIPS 180-4).
class Sha256 {
 public:
  Sha256();
  void update(std::span<const std::byte> bytes);
  void update(const void* data, size_t bytes) { update({static_cast<const std::byte*>(data), bytes}); }
  std::array<uint8_t, 32> digest();  // ends the computation
  std::string hex();                 // the digest as 64 lower-case digits

 private:
  std::array<uint32_t, 8> h_;
  std::array<std::byte, 64> block_;
  uint64_t length_ = 0;
};

}  // namespace rwkv
