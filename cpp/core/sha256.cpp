// SHA-256 by the book (FIPS 180-4), with the processor's own rounds where it has them.
#include "core/sha256.h"

#include <algorithm>
#include <bit>
#include <cstring>

#if defined(__x86_64__)
#include "core/simd/sha256_x86.h"
#endif

namespace rwkv {
namespace {

constexpr size_t kBlock = 64;

constexpr uint32_t kRounds[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

uint32_t big_endian(const std::byte* p) {
  return uint32_t(p[0]) << 24 | uint32_t(p[1]) << 16 | uint32_t(p[2]) << 8 | uint32_t(p[3]);
}

void compress_portable(uint32_t* h, const std::byte* blocks, size_t count) {
  for (; count > 0; --count, blocks += kBlock) {
    uint32_t w[64];
    for (int i = 0; i < 16; ++i) w[i] = big_endian(blocks + 4 * i);
    for (int i = 16; i < 64; ++i) {
      const uint32_t s0 = std::rotr(w[i - 15], 7) ^ std::rotr(w[i - 15], 18) ^ (w[i - 15] >> 3);
      const uint32_t s1 = std::rotr(w[i - 2], 17) ^ std::rotr(w[i - 2], 19) ^ (w[i - 2] >> 10);
      w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    uint32_t v[8];
    std::copy(h, h + 8, v);
    // Instead of moving eight words along each round, the round calls them by their shifted names.
    const auto round = [&](int i, uint32_t a, uint32_t b, uint32_t c, uint32_t& d, uint32_t e, uint32_t f, uint32_t g,
                           uint32_t& last) {
      const uint32_t s1 = std::rotr(e, 6) ^ std::rotr(e, 11) ^ std::rotr(e, 25);
      const uint32_t t1 = last + s1 + (g ^ (e & (f ^ g))) + kRounds[i] + w[i];
      const uint32_t s0 = std::rotr(a, 2) ^ std::rotr(a, 13) ^ std::rotr(a, 22);
      d += t1;
      last = t1 + s0 + ((a & b) | (c & (a | b)));
    };
    for (int i = 0; i < 64; i += 8) {
      round(i + 0, v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7]);
      round(i + 1, v[7], v[0], v[1], v[2], v[3], v[4], v[5], v[6]);
      round(i + 2, v[6], v[7], v[0], v[1], v[2], v[3], v[4], v[5]);
      round(i + 3, v[5], v[6], v[7], v[0], v[1], v[2], v[3], v[4]);
      round(i + 4, v[4], v[5], v[6], v[7], v[0], v[1], v[2], v[3]);
      round(i + 5, v[3], v[4], v[5], v[6], v[7], v[0], v[1], v[2]);
      round(i + 6, v[2], v[3], v[4], v[5], v[6], v[7], v[0], v[1]);
      round(i + 7, v[1], v[2], v[3], v[4], v[5], v[6], v[7], v[0]);
    }
    for (int i = 0; i < 8; ++i) h[i] += v[i];
  }
}

void compress(uint32_t* h, const std::byte* blocks, size_t count) {
#if defined(__x86_64__)
  static const bool has_instructions = sha256_x86_available();
  if (has_instructions) return sha256_x86_compress(h, kRounds, blocks, count);
#endif
  compress_portable(h, blocks, count);
}

}  // namespace

Sha256::Sha256()
    : h_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19}, block_{} {}

void Sha256::update(std::span<const std::byte> bytes) {
  if (bytes.empty()) return;
  const size_t held = length_ % kBlock;
  length_ += bytes.size();
  if (held > 0) {
    const size_t take = std::min(kBlock - held, bytes.size());
    std::memcpy(block_.data() + held, bytes.data(), take);
    bytes = bytes.subspan(take);
    if (held + take < kBlock) return;
    compress(h_.data(), block_.data(), 1);
  }
  const size_t whole = bytes.size() / kBlock;
  if (whole > 0) compress(h_.data(), bytes.data(), whole);
  bytes = bytes.subspan(whole * kBlock);
  if (!bytes.empty()) std::memcpy(block_.data(), bytes.data(), bytes.size());
}

std::array<uint8_t, 32> Sha256::digest() {
  // A one bit, zeros up to 8 bytes before the end of a block, and the length in bits.
  const uint64_t bits = length_ * 8;
  std::array<std::byte, kBlock + 8> tail{};
  tail[0] = std::byte{0x80};
  const size_t held = length_ % kBlock;
  const size_t zeros_end = (held < 56 ? 56 : 56 + kBlock) - held;
  for (size_t i = 0; i < 8; ++i) tail[zeros_end + i] = std::byte(bits >> (56 - 8 * i));
  update(tail.data(), zeros_end + 8);

  std::array<uint8_t, 32> out;
  for (size_t i = 0; i < out.size(); ++i) out[i] = uint8_t(h_[i / 4] >> (24 - 8 * (i % 4)));
  return out;
}

std::string Sha256::hex() {
  std::string out;
  for (const uint8_t byte : digest()) {
    out += "0123456789abcdef"[byte >> 4];
    out += "0123456789abcdef"[byte & 15];
  }
  return out;
}

}  // namespace rwkv
