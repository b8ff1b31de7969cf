// The verbs that only some versions use, through the interface of a backend: an operand is read back as its product
// with the identity.
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "backend/backend.h"
#include "check.h"

using namespace rwkv;

namespace {

constexpr int kC = 40, kRows = 31;

struct Device {
  std::shared_ptr<Backend> backend;
  Arena arena;
  std::mt19937 random{1};

  explicit Device(int threads = 3) : backend(open_backend("cpu", {threads})), arena(backend->allocate(1 << 20)) {
    backend->prepare({.width = 80});
  }
  Tensor tensor(int rows, int cols, float scale = 1, float mean = 0) {
    const Tensor t = arena.take(DType::f32, rows, cols, backend->row_stride(cols));
    std::normal_distribution<float> normal(mean, scale);
    for (int i = 0; i < rows; i++)
      for (int j = 0; j < cols; j++) t.row(i)[j] = normal(random);
    return t;
  }
  Operand operand(int rows, int cols, Format format = Format::f32) {
    return {arena.take(backend->operand_bytes(format, rows, cols)), format, rows, cols};
  }
  Linear linear(int rows, int cols, Format format = Format::f32) {
    Linear w{.format = format, .rows = rows, .cols = cols};
    w.data = arena.take(backend->linear_bytes(w));
    return w;
  }
  void pack(const Linear& w, const std::vector<float>& numbers) {
    backend->pack(w, {DType::f32, 4096, [&](int64_t row, int64_t count, std::byte* to) {
                        std::memcpy(to, &numbers[size_t(row * w.cols)], size_t(count * w.cols) * sizeof(float));
                      }});
  }
  Linear random_linear(int rows, int cols, Format format) {
    const Linear w = linear(rows, cols, format);
    std::vector<float> numbers(size_t(rows) * size_t(cols));
    for (float& v : numbers) v = std::normal_distribution<float>(0, 1)(random);
    pack(w, numbers);
    return w;
  }
  Operand normed(const Tensor& x, Format format) {
    const Norm norm{tensor(1, int(x.cols), 0.1f, 1), tensor(1, int(x.cols))};
    std::vector<int32_t> all(size_t(x.rows));
    for (size_t i = 0; i < all.size(); i++) all[i] = int32_t(i);
    Batch batch;
    batch.rows = all;
    const Operand out = operand(int(x.rows), int(x.cols), format);
    backend->norm(x, norm, batch, 0, int(x.rows), {}, out);
    return out;
  }
  Tensor unpack(const Operand& x) {
    const Linear identity = linear(x.cols, x.cols);
    std::vector<float> one(size_t(x.cols) * size_t(x.cols));
    for (int i = 0; i < x.cols; i++) one[size_t(i * x.cols + i)] = 1;
    pack(identity, one);
    const Tensor y = tensor(x.rows, x.cols);
    const LinearJob job[] = {{x, identity, y}};
    backend->linear(job);
    return y;
  }
};

// Three sequences, one of them a single token, that step in place.
struct Sequences {
  std::vector<int32_t> token = std::vector<int32_t>(kRows), start = {0, 17, 18, kRows};
  std::vector<const std::byte*> src;
  std::vector<std::byte*> dst;

  explicit Sequences(const Tensor& slots) {
    for (int i = 0; i < 3; i++) dst.push_back(reinterpret_cast<std::byte*>(slots.row(i)));
    src.assign(dst.begin(), dst.end());
  }
  operator Batch() const { return {token, start, src, dst}; }
  int of(int row) const { return row < 17 ? 0 : row < 18 ? 1 : 2; }
  bool begins(int row) const { return row == start[size_t(of(row))]; }
};

std::vector<float> values(const Tensor& t) {
  std::vector<float> v;
  for (int64_t i = 0; i < t.rows; i++) v.insert(v.end(), t.row(i), t.row(i) + t.cols);
  return v;
}

}  // namespace

TEST(a_lerp_of_its_own_for_every_token_and_a_shift_that_waits) {
  for (int threads : {1, 3}) {
    Device d(threads);
    const Tensor x = d.tensor(kRows, kC), slots = d.tensor(3, kC), mu = d.tensor(1, kC), dynamic = d.tensor(kRows, kC);
    const Norm norm{d.tensor(1, kC, 0.1f, 1), d.tensor(1, kC)};
    const std::vector<float> before = values(slots);
    const Sequences sequences(slots);
    const Operand plain = d.operand(kRows, kC), moved = d.operand(kRows, kC), xn = d.operand(kRows, kC);
    std::vector<int32_t> all(kRows);
    for (int i = 0; i < kRows; i++) all[size_t(i)] = i;
    const Tensor normed = d.tensor(kRows, kC);
    Batch every_row = sequences;
    every_row.rows = all;
    d.backend->norm(x, norm, every_row, 0, kRows, normed, xn);

    const MixJob first[] = {{mu, plain}};
    d.backend->mix(x, norm, first, 0, sequences, Backend::Shift::keep);
    CHECK(values(slots) == before);
    const MixJob second[] = {{mu, moved, dynamic}};
    d.backend->mix(x, norm, second, 0, sequences);

    const Tensor a = d.unpack(plain), b = d.unpack(moved);
    for (int i = 0; i < kRows; i++)
      for (int j = 0; j < kC; j++) {
        const float previous = sequences.begins(i) ? before[size_t(sequences.of(i) * kC + j)] : normed.row(i - 1)[j];
        const double now = double(normed.row(i)[j]), step = double(previous) - now, m = double(mu.row(0)[j]);
        CHECK(std::fabs(double(a.row(i)[j]) - (now + step * m)) < 1e-5);
        CHECK(std::fabs(double(b.row(i)[j]) - (now + step * (m + double(dynamic.row(i)[j])))) < 1e-5);
      }
    for (int s = 0; s < 3; s++)
      for (int j = 0; j < kC; j++) CHECK(slots.row(s)[j] == normed.row(sequences.start[size_t(s) + 1] - 1)[j]);
  }
}

TEST(small_matrices_of_tokens_and_a_bias_and_a_gate_before_an_operand) {
  constexpr int kV = 9, kD = 5, kF = 37;
  std::vector<float> expected;
  for (int threads : {1, 2, 3}) {
    Device d(threads);
    std::vector<uint16_t> halves(kV * kD * kD);
    for (uint16_t& h : halves) h = f32_to_bf16(std::normal_distribution<float>(0, 1)(d.random));
    const Tensor table{halves.data(), DType::bf16, kV, kD * kD, kD * kD};
    const Tensor base = d.tensor(kRows, kD * kD), z = d.tensor(kRows, kD), slots = d.tensor(3, kC);
    Sequences sequences(slots);
    for (int i = 0; i < kRows; i++) sequences.token[size_t(i)] = i * 5 % kV;
    const Operand y = d.operand(kRows, kD);
    d.backend->deep_embed({table, base, z}, sequences, y);
    const Tensor found = d.unpack(y);
    for (int i = 0; i < kRows; i++) {
      const uint16_t* row = &halves[size_t(i * 5 % kV * kD * kD)];
      for (int j = 0; j < kD; j++) {
        double sum = 0;
        for (int k = 0; k < kD; k++) {
          float stored;
          to_f32(row + k * kD + j, DType::bf16, 1, &stored);
          sum += double(z.row(i)[k]) * (double(stored) + double(base.row(i)[k * kD + j]));
        }
        CHECK(std::fabs(double(found.row(i)[j]) - sum) < 1e-5);
      }
    }

    // relu^2 of a product with a bias, times the gate, as the next operand
    const Linear w = d.linear(kF, kD);
    const Tensor weights = d.tensor(kF, kD);
    std::vector<float> dense;
    for (int i = 0; i < kF; i++) dense.insert(dense.end(), weights.row(i), weights.row(i) + kD);
    d.pack(w, dense);
    const Tensor partial = d.tensor(kRows, kF), factors = d.tensor(kRows, kF), bias = d.tensor(1, kF);
    const Operand out = d.operand(kRows, kF);
    const LinearJob job[] = {{y, w, partial, Act::relu2, out, {}, factors, bias}};
    d.backend->linear(job);
    const Tensor gated = d.unpack(out);
    for (int i = 0; i < kRows; i++)
      for (int j = 0; j < kF; j++) {
        double sum = double(bias.row(0)[j]);
        for (int k = 0; k < kD; k++) sum += double(found.row(i)[k]) * double(dense[size_t(j * kD + k)]);
        const double relu = std::fmax(sum, 0);
        CHECK(std::fabs(double(gated.row(i)[j]) - relu * relu * double(factors.row(i)[j])) <
              1e-5 * (1 + std::fabs(sum * sum)));
      }
    const std::vector<float> all = values(gated);
    if (expected.empty()) expected = all;
    CHECK(all == expected);
  }
}

TEST(an_embedding_as_rows_and_as_an_operand) {
  Device d;
  const Tensor table = d.tensor(9, kC), slots = d.tensor(3, kC), x = d.tensor(kRows, kC), y = d.tensor(kRows, kC);
  const Norm norm{d.tensor(1, kC, 0.1f, 1), d.tensor(1, kC)};
  Sequences sequences(slots);
  for (int i = 0; i < kRows; i++) sequences.token[size_t(i)] = i * 5 % 9;
  const Operand both = d.operand(kRows, kC), alone = d.operand(kRows, kC);
  d.backend->embed(table, norm, sequences, x);
  d.backend->embed(table, norm, sequences, y, both);
  d.backend->embed(table, norm, sequences, {}, alone);
  CHECK(values(x) == values(y) && values(d.unpack(both)) == values(x) && values(d.unpack(alone)) == values(x));
}

TEST(wkv4_finds_its_state_and_channels_for_any_number_of_threads) {
  constexpr int kA = 75;  // two whole groups of channels and a part of one
  std::vector<float> expected;
  for (int threads : {1, 2, 3}) {
    Device d(threads);
    const Tensor r = d.tensor(kRows, kA), k = d.tensor(kRows, kA, 3), v = d.tensor(kRows, kA);
    const Tensor slots = d.tensor(3, 5 + 3 * kA), decay = d.tensor(1, kA, 0.1f, -1), bonus = d.tensor(1, kA);
    for (int s = 0; s < 3; s++)
      for (int j = 0; j < kA; j++) slots.row(s)[5 + kA + j] = std::fabs(slots.row(s)[5 + kA + j]);
    const std::vector<float> before = values(slots);
    const Operand y = d.operand(kRows, kA);
    const Sequences sequences(slots);
    const size_t at = 5 * sizeof(float), part = kA * sizeof(float);
    d.backend->wkv4({r, k, v, decay, bonus, at, at + part, at + 2 * part}, sequences, y);
    const Tensor found = d.unpack(y);

    for (int s = 0; s < 3; s++)
      for (int j = 0; j < kA; j++) {
        const float* state = &before[size_t(s * (5 + 3 * kA) + 5 + j)];
        const double w = double(decay.row(0)[j]), u = double(bonus.row(0)[j]);
        double a = double(state[0]) * std::exp(double(state[2 * kA])),
               b = double(state[kA]) * std::exp(double(state[2 * kA]));
        for (int i = sequences.start[size_t(s)]; i < sequences.start[size_t(s) + 1]; i++) {
          const double key = std::exp(double(k.row(i)[j])), value = double(v.row(i)[j]);
          const double mean = (a + std::exp(u) * key * value) / (b + std::exp(u) * key);
          CHECK(std::fabs(double(found.row(i)[j]) - double(r.row(i)[j]) * mean) < 1e-4);
          a = std::exp(w) * a + key * value, b = std::exp(w) * b + key;
        }
        const float* after = slots.row(s) + 5 + j;
        const double top = std::exp(double(after[2 * kA]));
        CHECK(std::fabs(double(after[0]) * top - a) < 1e-4 * (1 + std::fabs(a)));
        CHECK(std::fabs(double(after[kA]) * top - b) < 1e-4 * (1 + b));
      }
    for (int s = 0; s < 3; s++)  // nothing before its parts
      for (int j = 0; j < 5; j++) CHECK(slots.row(s)[j] == before[size_t(s * (5 + 3 * kA) + j)]);
    const std::vector<float> all = values(found);
    if (expected.empty()) expected = all;
    CHECK(all == expected);
  }
}

TEST(rows_of_an_operand_as_one_of_their_own) {
  for (const Format format : {Format::f32, Format::bf16, Format::i8}) {
    Device d;
    const Operand x = d.normed(d.tensor(kRows, 100), format);
    const Linear w = d.random_linear(kC, 100, format);
    const Tensor all = d.tensor(kRows, kC);
    const LinearJob whole[] = {{x, w, all}};
    d.backend->linear(whole);
    std::vector<PickJob> picks;
    for (const auto& [first, count] : {std::pair(0, 1), std::pair(5, 13), std::pair(30, 1), std::pair(3, 28)})
      picks.push_back({x, first, d.operand(count, 100, format)});
    d.backend->pick(picks);
    for (const PickJob& p : picks) {
      const Tensor y = d.tensor(p.to.rows, kC);
      const LinearJob job[] = {{p.to, w, y}};
      d.backend->linear(job);
      for (int i = 0; i < p.to.rows; i++) CHECK(std::memcmp(y.row(i), all.row(p.first + i), kC * sizeof(float)) == 0);
    }
  }
}

TEST(what_follows_a_product_that_is_there) {
  constexpr int kF = 100;
  for (const int rows : {1, 5, kRows})
    for (const Act act : {Act::none, Act::tanh, Act::sigmoid, Act::silu, Act::relu2})
      for (const Format format : {Format::f32, Format::bf16, Format::i8}) {
        Device d;
        const Operand x = d.normed(d.tensor(rows, kC), Format::f32);
        const Linear w = d.random_linear(kF, kC, Format::f32);
        const Tensor y = d.tensor(rows, kF), z = d.tensor(rows, kF), gate = d.tensor(rows, kF);
        const LinearJob at_once[] = {{x, w, y, act}}, product[] = {{x, w, z}};
        d.backend->linear(at_once);
        d.backend->linear(product);
        const Linear nothing{.rows = kF};
        const Operand none{nullptr, Format::f32, rows, 0};
        const LinearJob rest[] = {{none, nothing, z, act}};
        d.backend->linear(rest);
        CHECK(values(y) == values(z));

        const Operand a = d.operand(rows, kF, format), b = d.operand(rows, kF, format);
        const LinearJob gated[] = {{x, w, y, act, a, {}, gate}}, gated_rest[] = {{none, nothing, z, act, b, {}, gate}};
        d.backend->linear(gated);
        d.backend->linear(product);
        d.backend->linear(gated_rest);
        CHECK(std::memcmp(a.data, b.data, d.backend->operand_bytes(format, rows, kF)) == 0);
      }
}

CHECK_MAIN
