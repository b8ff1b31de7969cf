// Matrices of a device, packed there, for the tests of the CUDA kernels.
#pragma once
#include "cuda_operands.h"

// (n, k) numbers as a file of `dtype` has them. What they should become is written down once more in products.h.
struct Weights {
  Stored format;
  Order order;
  int n, k;
  Row values;  // (n, k) as the format holds them
  Buffer<unsigned char> bytes;

  Weights(Device& d, Random& random, Stored f, Order o, int rows, int cols, Stored dtype = Stored::f32)
      : Weights(d, f, o, rows, cols, dtype, as_file(dtype, random.row(size_t(rows * cols)))) {}
  Weights(Device& d, Stored f, Order o, int rows, int cols, Stored dtype, const Row& x, int piece = 1 << 20)
      : format(f),
        order(o),
        n(rows),
        k(cols),
        bytes(d, std::vector<unsigned char>(cuda::weight_bytes(f, o, padded_n(), padded_k()))) {
    for (int row = 0; row < n; row += piece) {
      const int count = std::min(piece, n - row);
      std::vector<unsigned char> rows_of_file;
      for (int i = row * k; i < (row + count) * k; i++) {
        const float v = x[size_t(i)];
        const uint16_t h = dtype == Stored::f16 ? f32_to_f16(v) : f32_to_bf16(v);
        const auto* from = dtype == Stored::f32 ? reinterpret_cast<const unsigned char*>(&v)
                                                : reinterpret_cast<const unsigned char*>(&h);
        rows_of_file.insert(rows_of_file.end(), from, from + (dtype == Stored::f32 ? 4 : 2));
      }
      const Buffer<unsigned char> file(d, rows_of_file);
      const cuda::PackParams p{file, dtype, row, count, n, k, bytes.data()};
      d.launch(cuda::pack_kernel(format, order), {(count + 15) / 16, padded_k() / 64, 1}, &p);
      d.ask(d.api.synchronise(d.handle(), &d.fault));
    }
    values = x;
    for (int i = 0; i < n; i++)
      for (int j = 0; j < k; j += 64) {
        float* group = &values[size_t(i * k + j)];
        const int count = std::min(64, k - j);
        if (!cuda::quantised(f)) {
          for (int c = 0; c < count; c++) group[c] = as_operand(f, group[c]);
          continue;
        }
        for (int c = 0; c < count; c++) group[c] = std::fpclassify(group[c]) == FP_SUBNORMAL ? 0 : group[c];
        const Group g = quantised_weights(format_of(f), group, count);
        for (int c = 0; c < count; c++) group[c] = float(g.q[c]) * g.scale;
      }
  }
  int padded_n() const { return rounded_up(n, 64); }
  int padded_k() const { return rounded_up(k, 64); }

  static Row as_file(Stored dtype, Row x) {
    for (float& v : x) v = rounded(format_of(dtype), v);
    return x;
  }
  bool marked_not_finite() const { return order == Order::columns && bytes.read()[0] != 0; }
  // (n, k) numbers, from where they lie.
  Row unpack() const {
    const std::vector<unsigned char> all = bytes.read();
    Row x;
    for (int row = 0; row < n; row++)
      for (int col = 0; col < k; col++) {
        const unsigned char* from = &all[cuda::weight_at(format, order, padded_n(), padded_k(), row, col)];
        float v = 0;
        uint16_t h = 0, scale = 0;
        if (format == Stored::f32) std::memcpy(&v, from, 4);
        if (format == Stored::f16 || format == Stored::bf16) std::memcpy(&h, from, 2);
        if (format == Stored::f16) v = f16_to_f32(h);
        if (format == Stored::bf16) v = bf16_to_f32(h);
        if (format == Stored::i8) v = float(*from - 128);
        if (format == Stored::i4) v = float((*from >> (cuda::high_nibble(order, row, col) ? 4 : 0) & 15) - 8);
        if (cuda::quantised(format)) {
          std::memcpy(&scale, &all[cuda::scale_at(format, order, padded_n(), padded_k(), row, col / 64)], 2);
          v *= bf16_to_f32(scale);
        }
        x.push_back(v);
      }
    return x;
  }
};
