// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", 2011): random bits as a
// pure function of a key and a counter, so that whoever draws, in whatever order, draws the same.
#pragma once
#include <array>
#include <cstdint>

namespace rwkv {

constexpr std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t even = uint64_t{0xD2511F53} * counter[0], odd = uint64_t{0xCD9E8D57} * counter[2];
    counter = {static_cast<uint32_t>(odd >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(odd),
               static_cast<uint32_t>(even >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(even)};
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
  return counter;
}

// Uniform in [0, 1), a multiple of 2^-53.
constexpr double philox_uniform(uint64_t seed, uint64_t counter) {
  const auto word = [](uint64_t x, int i) { return static_cast<uint32_t>(x >> 32 * i); };
  const auto bits = philox4x32({word(counter, 0), word(counter, 1), 0, 0}, {word(seed, 0), word(seed, 1)});
  return static_cast<double>((uint64_t{bits[0]} << 32 | bits[1]) >> 11) * 0x1p-53;
}

}  // namespace rwkv
