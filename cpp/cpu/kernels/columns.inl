// y = W x of one token whose inputs are mostly zero, from the columns of the others (columns.h says why the bits are
// those of the panels).
//
// A few live columns at a time pass over their rows' sums, which stay in L1. Meanwhile the next ones are fetched into
// L2, whole columns one after the other: which they are is known, but no hardware could guess it. Not so on Intel with
// AVX-512, which reads columns no faster for it, and for 100 us afterwards everything else more slowly.
#pragma once
#include <string.h>

#include "cpu/columns.h"
#include "cpu/kernels/linear.inl"

namespace rwkv::cpu {
namespace {

constexpr int kSumRows = 2048;  // of a pass: 8 KB of sums
constexpr int kTogether = 8;    // columns of floats that one pass adds
constexpr bool kFetch = kLanes < 16 || kStreamNear == 0;

// Pieces of columns to fetch, all of the same number of lines.
struct Pieces {
  const std::byte* at[kGroup + 2];
  int count = 0, piece = 0, line = 0, lines;

  explicit Pieces(size_t bytes) : lines(int(bytes) / kLine) {}
  void clear() { count = piece = line = 0; }
  void add(const std::byte* p) { at[count++] = p; }
  void fetch(int n) {
    for (; kFetch && n > 0 && piece < count; n--) {
      prefetch_l2(at[piece] + line * kLine);
      if (++line == lines) line = 0, piece++;
    }
  }
};

template <Format F>
inline Floats load_weights(const std::byte* p) {
  if constexpr (F == Format::f32)
    return load(reinterpret_cast<const float*>(p));
  else if constexpr (F == Format::f16)
    return load_f16(p);
  else
    return floats(shift_left<16>(load_u16(p)));
}
template <Format F>
inline float input(const std::byte* x, int k) {
  uint32_t word = 0;
  if constexpr (operand_format(F) == Format::f32) {
    memcpy(&word, x + size_t(k) * 4, 4);
  } else {
    uint16_t half;
    memcpy(&half, x + size_t(k) * 2, 2);
    word = uint32_t(half) << 16;
  }
  float value;
  memcpy(&value, &word, 4);
  return value;
}

template <Format F>
void add_columns(const std::byte* columns, size_t ld, size_t row, int n, const Product& p, const LiveColumns& c,
                 float* sums) {
  constexpr size_t kSize = F == Format::f32 ? 4 : 2;
  constexpr int kLines = kTogether * kColumnRows * int(kSize) / kLine;  // of so many rows
  const auto column = [&](int i) { return columns + (size_t(c.live[i]) * ld + row) * kSize; };
  const auto upto = [&](int i) { return i < c.count ? i : c.count - 1; };
  Pieces next(size_t(n) * kSize);
  const auto prepare = [&](int i) {
    next.clear();
    for (int u = 0; u < kTogether && i + u < c.count; u++) next.add(column(i + u));
  };
  prepare(0);
  next.fetch(kTogether * next.lines);
  for (int i = 0; i < c.count; i += kTogether) {
    const std::byte* w[kTogether];
    Floats x[kTogether];
    for (int u = 0; u < kTogether; u++) {  // past the end: a column that is there anyway, times zero
      w[u] = column(upto(i + u));
      x[u] = all(i + u < c.count ? input<F>(p.x, c.live[i + u]) : 0.0f);
    }
    prepare(i + kTogether);
    for (int r = 0; r < n; r += kColumnRows) {
      next.fetch(kLines);
#pragma GCC unroll 64
      for (int v = r; v < r + kColumnRows; v += kLanes) {
        Floats sum = load(sums + v);
#pragma GCC unroll 64
        for (int u = 0; u < kTogether; u++) sum = fma(x[u], load_weights<F>(w[u] + size_t(v) * kSize), sum);
        store(sums + v, sum);
      }
    }
  }
}

// The live columns of kChain at a time, the first half of them apart.
template <>
void add_columns<Format::bf16>(const std::byte* columns, size_t ld, size_t row, int n, const Product& p,
                               const LiveColumns& c, float* sums) {
  constexpr int kVectors = kColumnRows / kLanes, kLines = kColumnRows * 2 / kLine;
  const auto column = [&](int i) { return columns + (size_t(c.live[i]) * ld + row) * 2; };
  const auto first_of = [&](int i, int k) {  // of the live columns from the i-th on, the first at k or later
    while (i < c.count && c.live[i] < k) i++;
    return i;
  };
  Pieces next(size_t(n) * 2);
  const auto prepare = [&](int i) {
    next.clear();
    for (int end = i < c.count ? first_of(i, (c.live[i] / kChain + 1) * kChain) : i; i < end; i++) next.add(column(i));
  };
  prepare(0);
  next.fetch(next.count * next.lines);
  for (int i = 0; i < c.count;) {
    const int k = c.live[i] / kChain * kChain, middle = first_of(i, k + kChain / 2), end = first_of(middle, k + kChain);
    const std::byte* w[kChain];
    float x[kChain];
    for (int u = i; u < end; u++) w[u - i] = column(u), x[u - i] = input<Format::bf16>(p.x, c.live[u]);
    prepare(end);
    const auto add_half = [&](Floats(&half)[kVectors], int r, int u, int to) {
      for (Floats& sum : half) sum = zero();
      for (; u < to; u++)
#pragma GCC unroll 64
        for (int v = 0; v < kVectors; v++)
          half[v] = fma(all(x[u]), load_weights<Format::bf16>(w[u] + size_t(r + v * kLanes) * 2), half[v]);
    };
    for (int r = 0; r < n; r += kColumnRows) {
      next.fetch(kLines * next.count);
      Floats low[kVectors], high[kVectors];
      add_half(low, r, 0, middle - i);
      add_half(high, r, middle - i, end - i);
#pragma GCC unroll 64
      for (int v = 0; v < kVectors; v++) {
        float* sum = sums + r + v * kLanes;
        store(sum, add(load(sum), add(low[v], high[v])));
      }
    }
    i = end;
  }
}

// The live columns of a group of int8, four at a time, and what they are multiplied with.
struct Quads {
  const std::byte* column[kGroup / 4][4];
  uint32_t x[kGroup / 4][kParts8];
  int count;

  // Past the last: a column that is there anyway, times zero.
  Quads(const std::byte* columns, size_t ld, const std::byte* numbers, const int32_t* live, int n)
      : count((n + 3) / 4) {
    for (int i = 0; i < count; i++) {
      int8_t q[4];
      for (int j = 0; j < 4; j++) {
        const int at = 4 * i + j, k = live[at < n ? at : n - 1] % kGroup;
        column[i][j] = columns + size_t(k) * ld;
        q[j] = at < n ? int8_t(numbers[k]) : int8_t(0);
      }
#ifdef RWKV_DOT_BYTES
      memcpy(x[i], q, 4);
#else
      const int16_t halves[2][2] = {{q[0], q[2]}, {q[1], q[3]}};
      memcpy(x[i], halves, 8);
#endif
    }
  }
};

// Adds the group's products to kColumnRows sums, whose columns begin `at` bytes behind those of the quads.
inline void add_group(const Quads& quads, size_t at, int correction, float scale, const std::byte* scales,
                      float* sums) {
#pragma GCC unroll 64
  for (int part = 0; part < 16; part += kLanes) {
    Ints dots[4] = {all(correction), all(correction), all(correction), all(correction)};
    for (int i = 0; i < quads.count; i++) {
      Ints w[4];
      lanes_of_columns(quads.column[i], at + size_t(part) * 4, w);
#ifdef RWKV_DOT_BYTES
      const Ints x = all(int(quads.x[i][0]));
#pragma GCC unroll 64
      for (int v = 0; v < 4; v++) dots[v] = dot_bytes(dots[v], w[v], x);
#else
      const Ints even = all(int(quads.x[i][0])), odd = all(int(quads.x[i][1]));
#pragma GCC unroll 64
      for (int v = 0; v < 4; v++)
        dots[v] = dot_shorts(dot_shorts(dots[v], even_bytes(w[v]), even), odd_bytes(w[v]), odd);
#endif
    }
#pragma GCC unroll 64
    for (int v = 0; v < 4; v++) {
      const int row = v * 16 + part;
      const Floats factor = mul(load_weights<Format::bf16>(scales + row * 2), all(scale));
      store(sums + row, fma(to_floats(dots[v]), factor, load(sums + row)));
    }
  }
}

template <>
void add_columns<Format::i8>(const std::byte* columns, size_t ld, size_t row, int n, const Product& p,
                             const LiveColumns& c, float* sums) {
  const size_t group_bytes = column_bytes(Format::i8, ld, kGroup);
  const auto first_of = [&](int k, int i) {  // of the live columns from the i-th on, the first at k or later
    while (i < c.count && c.live[i] < k) i++;
    return i;
  };
  Pieces next((size_t(n)));
  const auto prepare = [&](const std::byte* group, int i, int end) {
    next.clear();
    next.add(group + row * 2), next.add(group + row * 2 + n);  // the scales
    for (; i < end; i++) next.add(group + (2 + size_t(c.live[i] % kGroup)) * ld + row);
  };
  int i = 0, end = first_of(kGroup, 0);
  prepare(columns, 0, end);
  next.fetch(next.count * next.lines);
  for (int k = 0; k < p.k; k += kGroup, columns += group_bytes) {
    const std::byte* x = p.x + row_bytes(Format::i8, k);
    float scale;
    int correction;
    memcpy(&scale, x + kGroup, 4);
    memcpy(&correction, x + kGroup + 4, 4);
    const int following = k + kGroup < p.k ? first_of(k + 2 * kGroup, end) : end;
    next.clear();
    if (k + kGroup < p.k) prepare(columns + group_bytes, end, following);
    if (scale == 0) {  // all numbers of the group are zero, and nothing is added
      next.fetch(next.count * next.lines);
    } else {
      const Quads quads(columns + ld * 2 + row, ld, x, c.live + i, end - i);
      for (int r = 0; r < n; r += kColumnRows) {
        next.fetch(next.count);
        add_group(quads, size_t(r), correction, scale, columns + (row + size_t(r)) * 2, sums + r);
      }
    }
    i = end, end = following;
  }
}

void column_product(const Product& p, const LiveColumns& c, int p0, int p1) {
  alignas(64) float sums[kSumRows];
  const size_t ld = column_rows(c.rows);
  for (int panel = p0; panel < p1; panel += kSumRows / kPanel) {
    const int end = p1 - panel < kSumRows / kPanel ? p1 : panel + kSumRows / kPanel;
    const int n = (end - panel + 1) / 2 * kColumnRows;
    memset(sums, 0, size_t(n) * 4);
    const auto add = p.format == Format::f32    ? add_columns<Format::f32>
                     : p.format == Format::f16  ? add_columns<Format::f16>
                     : p.format == Format::bf16 ? add_columns<Format::bf16>
                                                : add_columns<Format::i8>;
    add(c.columns + kColumnHead, ld, size_t(panel) * kPanel, n, p, c, sums);
    for (int i = panel; i < end; i++) {
      memcpy(p.y + i * kPanel, sums + (i - panel) * kPanel, kPanel * 4);
      finish(p, i, 0, 1);
    }
  }
}

// ---- which columns are live ----

// What of every number tells whether it is zero: all but the sign.
void live_floats(const std::byte* x, int k, int most, int32_t* live, int& n) {
  for (int i = 0; i < k && n <= most; i += kLanes) {
    const Floats values = load_first(reinterpret_cast<const float*>(x) + i, k - i);
    for (uint32_t found = nonzero(bit_and(bits(values), all(0x7fffffff))); found != 0; found &= found - 1)
      live[n++] = i + __builtin_ctz(found);
  }
}

// Of each pair the odd column first.
void live_pairs(const std::byte* x, int k, int most, int32_t* live, int& n) {
  for (int i = 0; i < k / 2 && n <= most; i += kLanes) {
    const Ints pairs = bits(load_first(reinterpret_cast<const float*>(x) + i, k / 2 - i));
    const uint32_t odd = nonzero(bit_and(pairs, all(0x7fff0000))), even = nonzero(bit_and(pairs, all(0x7fff)));
    for (uint32_t found = odd | even; found != 0; found &= found - 1) {
      const int at = __builtin_ctz(found);
      live[n] = 2 * (i + at) + 1, n += int(odd >> at & 1);
      live[n] = 2 * (i + at), n += int(even >> at & 1);
    }
  }
}

void live_bytes(const std::byte* x, int k, int most, int32_t* live, int& n) {
  for (int i = 0; i < k && n <= most; i += kGroup, x += row_bytes(Format::i8, kGroup))
    for (int word = 0; word < kGroup / 4; word += kLanes) {
      const Ints numbers = load_ints(x + word * 4);
      for (int byte = 0; byte < 4; byte++) {
        uint32_t found = nonzero(bit_and(numbers, all(int(0xffu << 8 * byte))));
        for (; found != 0; found &= found - 1) live[n++] = i + 4 * (word + __builtin_ctz(found)) + byte;
      }
    }
}

int live_columns(Format format, const std::byte* x, int k, int most, int32_t* live) {
  int n = 0;
  const auto find = format == Format::bf16 ? live_pairs : format == Format::i8 ? live_bytes : live_floats;
  find(x, k, most, live, n);
  return n <= most ? n : -1;
}

}  // namespace
}  // namespace rwkv::cpu
