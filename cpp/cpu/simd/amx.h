// AVX-512 with tiles (AMX): eight two-dimensional registers of at most 16 rows of 64 bytes, and products of two of
// them. Numbers 0 to 3 are sums (tokens x rows of W), 4 and 5 activations, 6 and 7 weights.
#pragma once
#include "cpu/simd/avx512.h"

namespace rwkv::cpu {
namespace {

#define RWKV_TILES

constexpr int kTileRows = 16;

// Assembly, because g++ does not know which memory the intrinsics read and write.
template <int N>
inline void load_tile(const void* p, long stride) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(p), "r"(stride), "i"(N) : "memory");
}
template <int N>
inline void store_tile(void* p, long stride) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(p), "r"(stride), "i"(N) : "memory");
}
template <int N>
inline void clear_tile() {
  __asm__ volatile("tilezero %%tmm%c0" : : "i"(N));
}
// C += A B of pairs of bf16: the first of all pairs are summed up from zero, and the second ones.
template <int C, int A, int B>
inline void multiply_pair_tiles() {
  __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}
// C += A B of signed and unsigned bytes.
template <int C, int A, int B>
inline void multiply_tiles() {
  __asm__ volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}

inline Ints swap_neighbours(Ints a) { return _mm512_shuffle_epi32(a, _MM_PERM_CDAB); }
// Of a the lower 16 bits of each lane, of b the upper ones.
inline Ints join_halves(Ints a, Ints b) { return _mm512_mask_blend_epi16(0xaaaaaaaa, a, b); }

// The tiles' shapes, which belong to the thread. No destructor: cleaning up after exceptions would be a second symbol.
class TileShapes {
 public:
  int tokens() const { return tokens_; }
  // For that many tokens, 1 to 32, the first 16 in the tiles 0, 1 and 4, the others in 2, 3 and 5. Clears all tiles.
  void change(int tokens) {
    alignas(64) Shapes shapes = {};
    tokens_ = tokens;
    const int low = tokens < kTileRows ? tokens : kTileRows;
    const int rows[] = {low, low, tokens - low, tokens - low, low, tokens - low, kTileRows, kTileRows};
    for (int i = 0; i < 8; i++) {
      shapes.rows[i] = uint8_t(rows[i]);
      shapes.row_bytes[i] = rows[i] > 0 ? 64 : 0;
    }
    __asm__ volatile("ldtilecfg %0" : : "m"(shapes) : "memory");
  }

  void release() {
    tokens_ = 0;
    __asm__ volatile("tilerelease" : : : "memory");
  }

 private:
  struct Shapes {
    uint8_t palette = 1, start_row = 0, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  };
  int tokens_ = 0;
};

// sums[v] += (numbers[v] + offset) * (w[v] * scale), for two vectors. Assembly, because g++ moves the loads ahead and
// spills what they bring, and because the order among the instructions for tiles decides how much of both is done at
// once.
inline void add_scaled(Floats (&sums)[2], const float* numbers, const float& offset, const float& scale,
                       const Floats (&w)[2]) {
  Floats a, b, c, d;
  __asm__ volatile(
      "vbroadcastss %[scale], %[a]\n\t"
      "vbroadcastss %[offset], %[b]\n\t"
      "vaddps %[low], %[b], %[c]\n\t"
      "vaddps %[high], %[b], %[b]\n\t"
      "vmulps %[w0], %[a], %[d]\n\t"
      "vmulps %[w1], %[a], %[a]\n\t"
      "vfmadd231ps %[c], %[d], %[sum0]\n\t"
      "vfmadd231ps %[b], %[a], %[sum1]"
      : [sum0] "+v"(sums[0]), [sum1] "+v"(sums[1]), [a] "=&v"(a), [b] "=&v"(b), [c] "=&v"(c), [d] "=&v"(d)
      : [w0] "v"(w[0]), [w1] "v"(w[1]), [scale] "m"(scale), [offset] "m"(offset),
        [low] "m"(*reinterpret_cast<const Floats*>(numbers)),
        [high] "m"(*reinterpret_cast<const Floats*>(numbers + 16)));
}

}  // namespace
}  // namespace rwkv::cpu
