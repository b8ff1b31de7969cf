// The recurrences on the pool: who takes which heads of which sequences.
#include <algorithm>
#include <numeric>

#include "cpu/backend.h"

namespace rwkv::cpu {

namespace {

size_t head_bytes(int n) { return size_t(n) * size_t(padded_n(n)) * sizeof(float); }

}  // namespace

// What a kernel gets: these rows of one sequence, these channels; its state before and after.
struct CpuBackend::Stretch {
  int row, tokens, group, channel;
  const std::byte* src;
  std::byte* dst;
  float* y;
  size_t ldy;

  float* rows(const Tensor& t) const { return t ? t.row(row) + channel : nullptr; }
  const float* channels(const Tensor& t) const { return t ? t.as<float>() + channel : nullptr; }
};

template <class Kernel>
void CpuBackend::recur(int channels, int size, const Batch& batch, Operand y, const Kernel& kernel) {
  // An item is as many groups of channels of one sequence as keep what an operand packs together whole: chains of bf16,
  // groups of int8. Items one behind the other are cut into pieces of equally many tokens at item borders.
  const int whole = y.format == Format::i8 ? kGroup : y.format == Format::bf16 ? kChain : 1;
  const int groups = (channels + size - 1) / size;
  const int joined = whole / std::gcd(whole, size), items = (groups + joined - 1) / joined;
  const int64_t total = int64_t(batch.token.size()) * items;
  pool_.run([&](int worker) {
    auto* scratch = room(worker);
    const int64_t begin = total * worker / pool_.size(), end = total * (worker + 1) / pool_.size();
    for (size_t s = 0; s < batch.src.size(); s++) {
      const int first = batch.start[s], last = batch.start[s + 1];
      const int64_t base = int64_t(first) * items, tokens = last - first;
      const auto item_at = [&](int64_t at) {
        return int(std::clamp<int64_t>((at - base + tokens - 1) / tokens, 0, items));
      };
      const int i0 = begin <= base ? 0 : item_at(begin), i1 = end <= base ? 0 : item_at(end);
      if (i0 >= i1) continue;
      // All items of a few rows before the next rows: a row is a page, and a processor keeps track of few.
      for (int row = first; row < last; row += kWkvTokens)
        for (int i = i0; i < i1; i++) {
          const int count = std::min(kWkvTokens, last - row), from = i * joined * size;
          const int width = std::min(joined * size, channels - from);
          const std::byte* src = row == first ? batch.src[s] : batch.dst[s];
          for (int c = 0; c < width; c += size)
            kernel(Stretch{row, count, (from + c) / size, from + c, src, batch.dst[s], scratch + c, size_t(width)},
                   std::min(size, width - c));
          pack_rows(scratch, size_t(width), row, count, from, width, y);
        }
    }
  });
}

void CpuBackend::wkv4(const Wkv4& p, const Batch& batch, Operand y) {
  recur(int(p.decay.cols), kPanel, batch, y, [&](const Stretch& s, int n) {
    const auto src = [&](size_t part) { return reinterpret_cast<const float*>(s.src + part) + s.channel; };
    const auto dst = [&](size_t part) { return reinterpret_cast<float*>(s.dst + part) + s.channel; };
    kernels_.wkv4({n, s.tokens, size_t(p.r.stride), s.rows(p.r), s.rows(p.k), s.rows(p.v), s.channels(p.decay),
                   s.channels(p.bonus), src(p.a), src(p.b), src(p.m), dst(p.a), dst(p.b), dst(p.m), s.y, s.ldy});
  });
}

void CpuBackend::wkv6(const Wkv6& p, StatePlace state, const Batch& batch, Operand y) {
  recur(p.heads * p.head_size, p.head_size, batch, y, [&](const Stretch& s, int n) {
    const size_t slot = state.at + head_bytes(n) * size_t(s.group);
    kernels_.wkv6({n, s.tokens, size_t(p.r.stride), s.rows(p.r), s.rows(p.k), s.rows(p.v), s.rows(p.g), s.rows(p.w),
                   s.channels(p.decay), s.channels(p.bonus), s.channels(p.out.weight), s.channels(p.out.bias),
                   p.out.eps, reinterpret_cast<const float*>(s.src + slot), reinterpret_cast<float*>(s.dst + slot), s.y,
                   s.ldy});
  });
}

void CpuBackend::wkv7(const Wkv7& p, StatePlace state, const Batch& batch, Operand y) {
  recur(p.heads * p.head_size, p.head_size, batch, y, [&](const Stretch& s, int n) {
    const size_t slot = state.at + head_bytes(n) * size_t(s.group);
    kernels_.wkv7({n,
                   s.tokens,
                   size_t(p.r.stride),
                   s.rows(p.r),
                   s.rows(p.w),
                   s.rows(p.k),
                   s.rows(p.v),
                   s.rows(p.a),
                   s.rows(p.g),
                   s.rows(p.v_mix),
                   s.rows(p.v_first),
                   s.channels(p.w0),
                   s.channels(p.a0),
                   s.channels(p.v0),
                   s.channels(p.k_k),
                   s.channels(p.k_a),
                   s.channels(p.r_k),
                   s.channels(p.out.weight),
                   s.channels(p.out.bias),
                   p.out.eps,
                   reinterpret_cast<const float*>(s.src + slot),
                   reinterpret_cast<float*>(s.dst + slot),
                   s.y,
                   s.ldy});
  });
}

}  // namespace rwkv::cpu
