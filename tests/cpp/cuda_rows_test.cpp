// The kernels that go along rows, against the CPU's and against formulas in float64.
#include "cuda_operands.h"

namespace {

constexpr int kColumns[] = {1, 5, 40, 100, 600};

struct NormOf {
  Row weight, bias;
  Buffer<float> d_weight, d_bias;
  NormOf(Device& d, Random& random, int c)
      : weight(random.row(size_t(c), 2)), bias(random.row(size_t(c))), d_weight(d, weight), d_bias(d, bias) {}
  cuda::NormPointers pointers() const { return {d_weight, d_bias, 1e-5f}; }
};

Row shifted(Random& random, size_t n, float mean) {
  Row x = random.row(n);
  for (float& v : x) v += mean;
  return x;
}

Row normed(const Row& x, const NormOf& norm, int c) {
  Row y(x.size());
  for (size_t i = 0; i < x.size(); i += size_t(c))
    choose_kernels().layer_norm(&x[i], norm.weight.data(), norm.bias.data(), c, 1e-5f, &y[i]);
  return y;
}

// Of rows whose mean is far from zero float32 itself keeps no more.
double tolerance(float mean) { return mean == 0 ? 1e-5 : 2e-3; }

bool is_operand(const Row& found, const Row& exact, Stored f, double more) {
  return distance(found, exact) <= more + (f == Stored::f32 ? 0 : f == Stored::f16 ? 0x1p-11 : 0x1p-8);
}

std::vector<unsigned char> table_of(const Row& values, Stored f) {
  std::vector<unsigned char> bytes;
  for (float v : values) {
    const uint16_t h = f == Stored::f16 ? f32_to_f16(v) : f32_to_bf16(v);
    const auto* from =
        f == Stored::f32 ? reinterpret_cast<const unsigned char*>(&v) : reinterpret_cast<const unsigned char*>(&h);
    bytes.insert(bytes.end(), from, from + (f == Stored::f32 ? 4 : 2));
  }
  return bytes;
}

}  // namespace

TEST(embedding_writes_normed_rows_with_statistics_and_an_operand) {
  Random random;
  for (const char* schedule : schedules())
    for (int c : kColumns)
      for (Stored f : kOperands) {
        Device d(schedule);
        constexpr int kV = 4, kT = 5;
        const Row values = random.row(size_t(kV * c), 3);
        const NormOf norm(d, random, c);
        const Buffer<unsigned char> table(d, table_of(values, f));
        const Buffer<int32_t> token(d, std::vector<int32_t>{3, 0, 3, 1, 2});
        Rows x(d, kT, c);
        DeviceOperand out(d, f, kT, c);
        const cuda::EmbedParams p{table, f, c, c, norm.pointers(), x.buffer, x.ld, out.pointer(), token};
        d.launch(Kernel::embed, {kT, 1, 1}, &p);
        Row rows;
        for (int t : {3, 0, 3, 1, 2})
          for (int i = 0; i < c; i++) rows.push_back(rounded(format_of(f), values[size_t(t * c + i)]));
        const Row expected = normed(rows, norm, c);
        CHECK(distance(x.dense(), expected) < 1e-5);
        CHECK(x.has_statistics());
        CHECK(is_operand(out.dense(), expected, f, 1e-5));
      }
}

TEST(norm_takes_the_rows_it_is_asked_for) {
  Random random;
  for (const char* schedule : schedules())
    for (int c : kColumns)
      for (float mean : {0.0f, 1000.0f}) {
        Device d(schedule);
        const Row dense = shifted(random, size_t(6 * c), mean);
        const NormOf norm(d, random, c);
        const Rows x(d, 6, c, dense);
        const Buffer<int32_t> rows(d, std::vector<int32_t>{4, 0, 5});
        Rows y(d, 3, c);
        DeviceOperand out(d, Stored::f16, 3, c);
        const cuda::NormParams p{x.buffer, x.ld, c, norm.pointers(), rows, y.buffer, y.ld, out.pointer()};
        d.launch(Kernel::norm, {3, (rounded_up(c, 64) + 511) / 512, 1}, &p);
        const Row all = normed(dense, norm, c);
        Row expected;
        for (int t : {4, 0, 5}) expected.insert(expected.end(), all.begin() + t * c, all.begin() + (t + 1) * c);
        CHECK(distance(y.dense(), expected) < tolerance(mean));
        CHECK(is_operand(out.dense(), expected, Stored::f16, tolerance(mean)));
      }
}

TEST(mix_lerps_with_the_row_before_and_moves_the_shift) {
  Random random;
  for (const char* schedule : schedules())
    for (int c : kColumns)
      for (bool in_place : {false, true})
        for (int write : {0, 1}) {
          Device d(schedule);
          constexpr int kBefore = 3;  // floats of a slot in front of the part
          const std::vector<int> lengths = {4, 1, 2};
          const std::vector<Row> states(3, random.row(size_t(kBefore + c)));
          const Sequences batch(d, lengths, states, in_place);
          const int t = batch.rows();
          const Row dense = random.row(size_t(t * c), 2), mu = random.row(size_t(c)), moved = random.row(size_t(t * c));
          const NormOf norm(d, random, c);
          const Rows x(d, t, c, dense), dynamic(d, t, c, moved);
          const Buffer<float> d_mu(d, mu);
          const DeviceOperand plain(d, Stored::f32, t, c), more(d, Stored::f16, t, c);
          cuda::MixParams p{x.buffer, x.ld, c, norm.pointers(), kBefore * 4, write, 2, batch.pointers(), {}};
          p.job[0] = {d_mu, nullptr, 0, plain.pointer()};
          p.job[1] = {d_mu, dynamic.buffer, dynamic.ld, more.pointer()};
          d.launch(Kernel::mix, {t, (rounded_up(c, 64) + 511) / 512, 1}, &p);

          const Row xn = normed(dense, norm, c);
          Row first, second;
          for (int i = 0; i < t; i++)
            for (int j = 0; j < c; j++) {
              const size_t s = size_t(batch.sequence[size_t(i)]), at = size_t(i * c + j);
              const double now = double(xn[at]);
              const double previous = double(i == batch.start[s] ? states[s][size_t(kBefore + j)] : xn[at - size_t(c)]);
              first.push_back(float(now + (previous - now) * double(mu[size_t(j)])));
              second.push_back(float(now + (previous - now) * (double(mu[size_t(j)]) + double(moved[at]))));
            }
          CHECK(distance(plain.dense(), first) < 1e-5);
          CHECK(is_operand(more.dense(), second, Stored::f16, 1e-5));
          for (size_t s = 0; s < 3; s++) {
            const Row state = batch.state(s);
            const Row part(state.begin() + kBefore, state.end()), old(states[s].begin() + kBefore, states[s].end());
            const Row last(xn.begin() + (batch.start[s + 1] - 1) * c, xn.begin() + batch.start[s + 1] * c);
            if (write)
              CHECK(distance(part, last) < 1e-5);
            else
              CHECK(in_place ? ::same(part, old) : std::isnan(part[0]));
            CHECK(in_place ? ::same(state.data(), states[s].data(), kBefore) : std::isnan(state[0]));
          }
        }
}

TEST(deep_embedding_multiplies_each_row_with_a_matrix_of_its_own) {
  Random random;
  for (const char* schedule : schedules())
    for (int n : {1, 5, 32, 70}) {
      Device d(schedule);
      constexpr int kV = 3, kT = 4;
      const std::vector<int32_t> tokens = {2, 0, 1, 2};
      const Row values = random.row(size_t(kV * n * n)), bases = random.row(size_t(kT * n * n)),
                zs = random.row(size_t(kT * n));
      const Buffer<unsigned char> table(d, table_of(values, Stored::bf16));
      const Buffer<int32_t> token(d, tokens);
      const Rows base(d, kT, n * n, bases), z(d, kT, n, zs);
      const DeviceOperand y(d, Stored::f32, kT, n);
      const cuda::DeepEmbedParams p{table, Stored::bf16, n, base.buffer, z.buffer, base.ld, z.ld, y.pointer(), token};
      d.launch(Kernel::deep_embed, {kT, 1, 1}, &p);
      Row expected(size_t(kT * n));
      for (int t = 0; t < kT; t++) {
        Row matrix;
        for (int i = 0; i < n * n; i++)
          matrix.push_back(rounded(Format::bf16, values[size_t(tokens[size_t(t)] * n * n + i)]));
        choose_kernels().small_product(&zs[size_t(t * n)], matrix.data(), &bases[size_t(t * n * n)], n,
                                       &expected[size_t(t * n)]);
      }
      CHECK(distance(y.dense(), expected) < 1e-6);
    }
}

TEST(what_is_not_finite_is_found_wherever_it_is) {
  Random random;
  for (const char* schedule : schedules())
    for (int c : {1, 40, 5000})
      for (float bad : {0.0f, kNan, kInf, -kInf}) {
        Device d(schedule);
        Row dense = random.row(size_t(2 * c));
        if (bad != 0) dense[size_t(2 * c - 1)] = bad;
        const Rows x(d, 2, c, dense);
        const Buffer<int32_t> flags(d, std::vector<int32_t>{0, 1});
        const cuda::FiniteParams p{x.buffer, x.ld, c, flags.data() + 1, 4};
        d.launch(Kernel::finite, {2, (c + 4095) / 4096, 1}, &p);
        CHECK((flags.read() == std::vector<int32_t>{0, bad != 0 ? 17 : 1}));
      }
}

TEST(rows_from_elsewhere_get_statistics) {
  Random random;
  for (const char* schedule : schedules())
    for (int c : kColumns) {
      Device d(schedule);
      const Row dense = shifted(random, size_t(3 * c), 10);
      const Buffer<float> from(d, dense);
      const Rows x(d, 3, c);
      const cuda::WriteRowsParams p{from, x.buffer, x.ld, c};
      d.launch(Kernel::write_rows, {3, 1, 1}, &p);
      CHECK(::same(x.dense(), dense));
      CHECK(x.has_statistics());
    }
}

TEST(operands_of_halves_hold_large_numbers_and_keep_what_is_not_finite) {
  for (const char* schedule : schedules()) {
    Device d(schedule);
    const Row weight = {1e30f, -1e30f, 65519.0f, 0, kNan, kInf}, zeros(6);
    const Row dense = {1, -1, 1, -1, 1, -1};
    const Rows x(d, 1, 6, dense);
    const Buffer<float> d_weight(d, weight), d_bias(d, zeros);
    const Buffer<int32_t> rows(d, std::vector<int32_t>{0});
    const DeviceOperand out(d, Stored::f16, 1, 6);
    const cuda::NormParams p{x.buffer, x.ld, 6, {d_weight, d_bias, 0}, rows, nullptr, 0, out.pointer()};
    d.launch(Kernel::norm, {1, 1, 1}, &p);
    CHECK(::same(out.dense(), Row{65504, 65504, 65504, 0, kNan, -kInf}));
  }
}

CHECK_MAIN
