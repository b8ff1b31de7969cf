// Blocks of narrow weights as those of a wider format: what many tokens are multiplied with, so that numbers are taken
// apart once and not for every tile. The numbers stay what they are, and with them all results.
#pragma once
#include "cpu/kernels/bytes.inl"

namespace rwkv::cpu {
namespace {

// Where int4 is multiplied as it is, its halves are taken apart for each tile, beside the multiplications.
static constexpr Format unpacked_format(Format f) {
  if (f == Format::i4 && kUnpackHalves) return Format::i8;
  return f == Format::f16 ? Format::f32 : f;
}

// `kn` columns of a panel.
template <Format F>
void unpack(const std::byte* w, int kn, std::byte* to) {
  if constexpr (F == Format::f16) {
    for (int i = 0; i < kn * kPanel; i += kLanes, w += kLanes * 2, to += kLanes * 4)
      store(reinterpret_cast<float*>(to), load_f16(w));
  } else {
    constexpr int kWord = kPanel * 4;                       // four columns of bytes
    const Ints other_offset = all((128 - 8) * 0x01010101);  // a number is stored as itself and 8, or 128, more
    for (int k = 0; k < kn; k += kGroup) {
      memcpy(to, w, kPanel * 2);
      w += kPanel * 2, to += kPanel * 2;
      for (int c = 0; c < kGroup; c += 8, w += kWord, to += 2 * kWord)
        for (int v = 0; v < kWord; v += kLanes * 4) {
          const Ints bytes = load_ints(w + v);
          store_ints(to + v, add(low_halves(bytes), other_offset));
          store_ints(to + kWord + v, add(high_halves(bytes), other_offset));
        }
    }
  }
}

// Room for blocks of some panels.
template <Format F, Format kTo, int Panels, int Columns>
struct Unpacked {
  static constexpr size_t kBytes = kTo == F ? 0 : panel_bytes(kTo, Columns);
  alignas(64) std::byte data[kBytes * Panels + 1];

  Unpacked() {}  // leaves `data` as it is
  const std::byte* block(const std::byte* w, int panel, int kn) {
    if constexpr (kTo == F) return w;
    std::byte* to = data + kBytes * size_t(panel);
    if constexpr (kTo != F) unpack<F>(w, kn, to);
    return to;
  }
};

}  // namespace
}  // namespace rwkv::cpu
