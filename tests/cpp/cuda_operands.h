// Activations and operands on both sides, for the tests of the CUDA kernels.
#pragma once
#include "check.h"
#include "cuda_device.h"
#include "products.h"

using cuda::Kernel;
using cuda::Order;
using cuda::Stored;

constexpr Stored kStored[] = {Stored::f32, Stored::f16, Stored::bf16, Stored::i8, Stored::i4};
constexpr Stored kOperands[] = {Stored::f32, Stored::f16, Stored::bf16};

// A device does from compute capability 8.0 on; all of them hold such numbers.
inline bool multiplies_bf16() {
  static const bool does = Device().info.major >= 8;
  return does;
}
// Formats of weights that a device multiplies with.
inline std::vector<Stored> multiplied() {
  std::vector<Stored> all(std::begin(kStored), std::end(kStored));
  if (!multiplies_bf16()) std::erase(all, Stored::bf16);
  return all;
}

inline Format format_of(Stored f) { return Format(f); }
inline int rounded_up(int n, int to) { return (n + to - 1) / to * to; }
inline float as_operand(Stored f, float v) {
  if (f == Stored::f16 && std::isfinite(v)) v = std::clamp(v, -65504.0f, 65504.0f);
  return rounded(format_of(f), v);
}

// (tokens, cols) rows of a device, `ld` floats apart.
struct Rows {
  int tokens, cols, ld;
  Buffer<float> buffer;
  Rows(Device& d, int t, int c) : tokens(t), cols(c), ld(cuda::row_stride(c)), buffer(d, size_t(t) * size_t(ld)) {}
  Rows(Device& d, int t, int c, const Row& dense)
      : tokens(t), cols(c), ld(cuda::row_stride(c)), buffer(d, spread(t, c, dense)) {}
  static Row spread(int t, int c, const Row& dense) {  // with the statistics, as Python's textbook has them
    const int ld = cuda::row_stride(c);
    Row rows(size_t(t) * size_t(ld), kNan);
    for (int i = 0; i < t; i++) {
      float* row = rows.data() + i * ld;
      std::copy_n(dense.data() + i * c, c, row);
      for (int from = 0; from < c; from += 16) {
        const int n = std::min(16, c - from);
        double mean = 0, squares = 0;
        for (int j = 0; j < n; j++) mean += double(row[from + j]) / n;
        for (int j = 0; j < n; j++) squares += std::pow(double(row[from + j]) - mean, 2);
        row[rounded_up(c, 16) + from / 8] = float(mean), row[rounded_up(c, 16) + from / 8 + 1] = float(squares);
      }
    }
    return rows;
  }
  Row dense() const {
    const Row all = buffer.read();
    Row rows;
    for (int i = 0; i < tokens; i++) rows.insert(rows.end(), all.begin() + i * ld, all.begin() + i * ld + cols);
    return rows;
  }
  // Whether what lies behind the numbers are their statistics.
  bool has_statistics() const {
    const Row found = buffer.read(), expected = spread(tokens, cols, dense());
    for (int i = 0; i < tokens; i++)
      for (int j = rounded_up(cols, 16); j < rounded_up(cols, 16) + (cols + 15) / 16 * 2; j++)
        if (!near(double(found[size_t(i * ld + j)]), double(expected[size_t(i * ld + j)]), 1e-5)) return false;
    return true;
  }
};

// An operand of a device, set to NaN before somebody writes it.
struct DeviceOperand {
  Stored format;
  int tokens, cols, rows8;
  Buffer<unsigned char> buffer;
  DeviceOperand(Device& d, Stored f, int t, int c)
      : format(f),
        tokens(t),
        cols(c),
        rows8(rounded_up(t, 8)),
        buffer(d, cuda::operand_bytes(f, rows8, rounded_up(c, 64))) {}
  DeviceOperand(Device& d, Stored f, int t, int c, const Row& dense)
      : format(f), tokens(t), cols(c), rows8(rounded_up(t, 8)), buffer(d, laid_out(f, t, c, dense)) {}

  cuda::OperandPointer pointer() const { return {buffer.data(), rows8, format}; }
  static std::vector<unsigned char> laid_out(Stored f, int t, int c, const Row& dense) {
    const int rows8 = rounded_up(t, 8), k = rounded_up(c, 64);
    std::vector<unsigned char> bytes(cuda::operand_bytes(f, rows8, k), 0xff);
    for (int i = 0; i < t; i++)
      for (int j = 0; j < k; j++) {
        const float v = j < c ? dense[size_t(i * c + j)] : 0;
        unsigned char* to = &bytes[cuda::operand_at(f, rows8, i, j)];
        const uint16_t h = f == Stored::f16 ? f32_to_f16(v) : f32_to_bf16(v);
        f == Stored::f32 ? std::memcpy(to, &v, 4) : std::memcpy(to, &h, 2);
      }
    return bytes;
  }
  // As rows again; checks that the padding is zeros.
  Row dense() const {
    const std::vector<unsigned char> bytes = buffer.read();
    Row rows;
    for (int i = 0; i < tokens; i++)
      for (int j = 0; j < rounded_up(cols, 64); j++) {
        const unsigned char* from = &bytes[cuda::operand_at(format, rows8, i, j)];
        float v;
        uint16_t h;
        std::memcpy(&v, from, format == Stored::f32 ? 4 : 2), std::memcpy(&h, from, 2);
        if (format != Stored::f32) v = format == Stored::f16 ? f16_to_f32(h) : bf16_to_f32(h);
        if (j < cols)
          rows.push_back(v);
        else
          CHECK(v == 0);
      }
    return rows;
  }
};

// States as kernels whose names end so keep them: the same numbers in halves, in the bytes of floats; and back.
inline bool keeps_halves(Kernel kernel) {
  return std::string_view(cuda::kKernels[size_t(kernel)].name).ends_with("_state16");
}
inline Row in_halves(const Row& numbers) {
  std::vector<uint16_t> halves((numbers.size() + 1) / 2 * 2);
  std::transform(numbers.begin(), numbers.end(), halves.begin(),
                 [](float v) { return f32_to_f16(as_operand(Stored::f16, v)); });
  Row bytes(halves.size() / 2);
  std::memcpy(bytes.data(), halves.data(), halves.size() * 2);
  return bytes;
}
inline Row from_halves(const Row& bytes, size_t count) {
  std::vector<uint16_t> halves(bytes.size() * 2);
  std::memcpy(halves.data(), bytes.data(), halves.size() * 2);
  Row numbers(count);
  std::transform(halves.begin(), halves.begin() + int64_t(count), numbers.begin(), f16_to_f32);
  return numbers;
}
inline void round_to_halves(Row& numbers) {
  for (float& v : numbers) v = as_operand(Stored::f16, v);
}

// A ragged batch: sequences of so many rows, states in buffers of their own.
struct Sequences {
  std::vector<int32_t> start = {0}, sequence, token;
  std::vector<uint64_t> src, dst;
  std::vector<std::unique_ptr<Buffer<float>>> before, after;
  std::unique_ptr<Buffer<int32_t>> d_start, d_sequence, d_token;
  std::unique_ptr<Buffer<uint64_t>> d_src, d_dst;

  Sequences(Device& d, const std::vector<int>& lengths, const std::vector<Row>& states, bool in_place) {
    for (size_t s = 0; s < lengths.size(); s++) {
      start.push_back(start.back() + lengths[s]);
      sequence.insert(sequence.end(), size_t(lengths[s]), int32_t(s));
      before.push_back(std::make_unique<Buffer<float>>(d, states[s]));
      if (!in_place) after.push_back(std::make_unique<Buffer<float>>(d, states[s].size()));
      src.push_back(reinterpret_cast<uint64_t>(before[s]->data()));
      dst.push_back(reinterpret_cast<uint64_t>((in_place ? before : after)[s]->data()));
    }
    token.assign(sequence.size(), 0);
    d_start = std::make_unique<Buffer<int32_t>>(d, start), d_sequence = std::make_unique<Buffer<int32_t>>(d, sequence);
    d_token = std::make_unique<Buffer<int32_t>>(d, token);
    d_src = std::make_unique<Buffer<uint64_t>>(d, src), d_dst = std::make_unique<Buffer<uint64_t>>(d, dst);
  }
  int rows() const { return start.back(); }
  int count() const { return int(src.size()); }
  Row state(size_t s) const { return (after.empty() ? before : after)[s]->read(); }
  cuda::StepPointers pointers() const {
    return {d_token->data(), d_sequence->data(), d_start->data(), d_src->data(), d_dst->data(), rows(), count()};
  }
};

// The largest difference, as a share of the largest number that was expected.
inline double distance(const Row& found, const Row& expected) {
  double most = 0, size = 1e-30;
  if (found.size() != expected.size()) return 1e30;
  for (size_t i = 0; i < found.size(); i++) {
    const double d = std::fabs(double(found[i]) - double(expected[i]));
    if (!(d <= most)) most = std::isnan(d) ? 1e30 : d;
    size = std::max(size, std::fabs(double(expected[i])));
  }
  return most / size;
}
