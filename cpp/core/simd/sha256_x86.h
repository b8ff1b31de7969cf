// SHA-256 rounds by the x86 SHA extensions. Ask first whether this processor has them.
#pragma once
#include <cstddef>
#include <cstdint>

namespace rwkv {

bool sha256_x86_available();
// Takes `count` blocks of 64 bytes into the eight words of `h`; `rounds` are the 64 round constants.
void sha256_x86_compress(uint32_t* h, const uint32_t* rounds, const std::byte* blocks, size_t count);

}  // namespace rwkv
