// Products of packed matrices and activations, as the tests of the kernels make them: packing written once more, after
// the definitions.
#pragma once
#include <algorithm>
#include <functional>

#include "check.h"
#include "kernel_sets.h"

inline float rounded(Format f, float x) {
  return f == Format::f16 ? f16_to_f32(f32_to_f16(x)) : f == Format::bf16 ? bf16_to_f32(f32_to_bf16(x)) : x;
}

// A group of int8 or int4 as its definition says: what the number of the largest magnitude gives as scale, and the
// numbers.
struct Group {
  float scale = 0;
  int q[kGroup] = {};
};
inline Group quantised_weights(Format f, const float* x, int count) {
  Group g;
  float most = 0;
  for (int i = 0; i < count; i++)
    if (std::isnan(x[i]) || std::fabs(x[i]) > std::fabs(most)) most = x[i];
  if (std::any_of(x, x + count, [](float v) { return std::isnan(v); })) most = kNan;
  const float wide = f == Format::i8 ? std::fabs(most) / 127 : -most / 8;
  g.scale = std::isfinite(most) ? rounded(Format::bf16, wide) : kNan;
  if (std::isfinite(g.scale) && !std::isnormal(g.scale)) g.scale = 0;
  if (!std::isnormal(g.scale)) return g;
  for (int i = 0; i < count; i++) g.q[i] = std::min(int(std::nearbyint(x[i] / g.scale)), f == Format::i8 ? 127 : 7);
  return g;
}
inline bool quantises(Format f) { return f == Format::i8 || f == Format::i4; }

struct Matrix {
  int rows, cols;
  Format format;
  Row values;
  std::vector<std::byte> packed;

  Matrix(int r, int c, Format f, const std::function<float()>& value) : rows(r), cols(c), format(f) {
    const int k = padded_k(f, c);
    values.resize(size_t(r) * size_t(c));
    packed.resize(size_t(panels_of(r)) * panel_bytes(f, k) + 64);
    for (float& v : values) v = rounded(f, value());
    for (int i = 0; i < r; i++) {
      std::byte* panel = data() + size_t(i / kPanel) * panel_bytes(f, k);
      const float* row = &values[size_t(i) * size_t(c)];
      const int lane = i % kPanel;
      for (int j = 0; j < c; j++)
        if (f == Format::f32)
          reinterpret_cast<float*>(panel)[j * kPanel + lane] = row[j];
        else if (f == Format::f16)
          reinterpret_cast<uint16_t*>(panel)[j * kPanel + lane] = f32_to_f16(row[j]);
        else if (f == Format::bf16)
          reinterpret_cast<uint16_t*>(panel)[(j / 2 * kPanel + lane) * 2 + j % 2] = f32_to_bf16(row[j]);
        else if (j % kGroup == 0)
          put(quantised_weights(f, row + j, std::min(kGroup, c - j)), panel + panel_bytes(f, j), lane);
    }
  }
  void put(const Group& group, std::byte* to, int lane) const {
    reinterpret_cast<uint16_t*>(to)[lane] = f32_to_bf16(group.scale);
    to += kPanel * 2;
    for (int i = 0; i < kGroup; i++)
      if (format == Format::i8)
        to[(i / 4 * kPanel + lane) * 4 + i % 4] = std::byte(group.q[i] + 128);
      else
        to[(i / 8 * kPanel + lane) * 4 + i % 4] |= std::byte((group.q[i] + 8) << (i % 8 < 4 ? 0 : 4));
  }
  std::byte* data() { return packed.data() + (64 - reinterpret_cast<uintptr_t>(packed.data()) % 64) % 64; }
};

inline std::vector<std::byte> pack(const Kernels& k, Format f, const Row& x, int tokens, int cols) {
  const int padded = padded_k(f, cols), tiles = tile_count(tokens, tile_of(k, f));
  std::vector<std::byte> out(size_t(tokens) * row_bytes(f, padded), std::byte{0xff});
  for (int i = 0; i < tiles; i++) {
    const int begin = tile_start(tokens, tiles, i), m = tile_start(tokens, tiles, i + 1) - begin;
    k.pack_rows(f, x.data() + size_t(begin) * size_t(cols), size_t(cols), m, 0, cols, padded,
                out.data() + size_t(begin) * row_bytes(f, padded), m, 0);
  }
  return out;
}

// Number c of token t in a tile of m.
inline float dequantised(const std::byte* tile, int m, int t, int c) {
  const std::byte* group = tile + row_bytes(Format::i8, c / kGroup * kGroup) * size_t(m);
  const int i = c % kGroup;
  return float(int8_t(group[t * kGroup + i])) * reinterpret_cast<const float*>(group + kGroup * m)[t];
}

// The same of bf16.
inline float narrow(const Kernels& k, const std::byte* tile, int m, int t, int c) {
  const auto* halves = reinterpret_cast<const uint16_t*>(tile);
  if (!pairs_in_tiles(k, m)) return bf16_to_f32(halves[(c / 2 * m + t) * 2 + c % 2]);
  const int pair = c % (kChain / 2) ^ 1, second = c % kChain / (kChain / 2);
  return bf16_to_f32(halves[((c / kChain * m + t) * kChain / 2 + pair) * 2 + second]);
}

// The operand as rows again, its padding included.
inline Row unpack(const Kernels& k, Format f, const std::vector<std::byte>& operand, int tokens, int cols) {
  const int padded = padded_k(f, cols), tiles = tile_count(tokens, tile_of(k, f));
  Row out(size_t(tokens) * size_t(padded));
  for (int i = 0; i < tiles; i++) {
    const int begin = tile_start(tokens, tiles, i), m = tile_start(tokens, tiles, i + 1) - begin;
    const std::byte* tile = operand.data() + size_t(begin) * row_bytes(f, padded);
    for (int t = 0; t < m; t++)
      for (int c = 0; c < padded; c++)
        out[size_t(begin + t) * size_t(padded) + size_t(c)] = f == Format::i8 ? dequantised(tile, m, t, c)
                                                              : f == Format::f32
                                                                  ? reinterpret_cast<const float*>(tile)[c * m + t]
                                                                  : narrow(k, tile, m, t, c);
  }
  return out;
}

struct Outcome {
  Row y, active, sum, gated, out;  // tokens x rows; `out` with its padding
};
inline Outcome multiply(const Kernels& k, Matrix& w, const Row& x, int tokens, const std::vector<int>& cuts = {},
                        Act act = Act::none, Format next = Format::f32) {
  const FlushDenormals flush;
  const Format out_format = operand_format(next);
  const int panels = panels_of(w.rows);
  const size_t ld = size_t(panels) * kPanel, out_k = size_t(padded_k(out_format, w.rows));
  const std::vector<std::byte> operand = pack(k, operand_format(w.format), x, tokens, w.cols);
  const auto run = [&](std::byte* out, float* sum, const float* gate, Act act) {
    Row y(size_t(tokens) * ld, 12345.0f), room(kRoom, 12345.0f);
    const Product p{w.data(),
                    w.format,
                    padded_k(w.format, w.cols),
                    operand.data(),
                    tokens,
                    y.data(),
                    ld,
                    act,
                    out,
                    out_format,
                    int(out_k),
                    w.rows,
                    sum,
                    ld,
                    gate,
                    ld,
                    nullptr,
                    room.data()};
    int from = 0;
    for (int cut : cuts) k.product(p, from, cut), from = cut;
    k.product(p, from, panels);
    return y;
  };
  const auto rows = [&](const Row& y) {
    Row r;
    for (int t = 0; t < tokens; t++) r.insert(r.end(), y.begin() + t * int(ld), y.begin() + t * int(ld) + w.rows);
    return r;
  };
  Outcome o;
  o.y = rows(run(nullptr, nullptr, nullptr, Act::none));
  o.active = rows(run(nullptr, nullptr, nullptr, act));
  Row sum(size_t(tokens) * ld, 1.0f), gated = sum;
  const Row gate(sum.size(), 3.0f);
  run(nullptr, sum.data(), nullptr, Act::none);
  run(nullptr, gated.data(), gate.data(), Act::none);
  o.sum = rows(sum), o.gated = rows(gated);
  Row expected = o.y;
  for (float& y : expected) y += 1.0f;
  CHECK(same(o.sum, expected));
  std::vector<std::byte> out(size_t(tokens) * row_bytes(out_format, int(out_k)), std::byte{0xff});
  run(out.data(), nullptr, nullptr, act);
  o.out = unpack(k, out_format, out, tokens, w.rows);
  for (size_t i = 0; i < o.out.size(); i++)
    CHECK(i % out_k < size_t(w.rows) || o.out[i] == 0 || (out_format == Format::i8 && std::isnan(o.out[i])));
  return o;
}

constexpr Format kFormats[] = {Format::f32, Format::f16, Format::bf16, Format::i8, Format::i4};
