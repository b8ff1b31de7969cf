// Products with up to 64 tokens: against sums in float64 of the numbers that the format holds, and with one another.
#include "cuda_jobs.h"

namespace {

// All jobs of one format in one launch, for the tiles given (0: as few as hold the tokens).
void multiply(Device& d, const std::vector<Job>& jobs, int tiles = 0, bool skip = false) {
  if (tiles == 0) tiles = cuda::tiles_of(jobs[0].x->tokens);
  const bool by_rows = jobs[0].w->order == Order::rows;
  const auto choice = (by_rows ? cuda::small_product : cuda::sparse_product)(jobs[0].w->format, tiles);
  cuda::LinearParams p{};
  for (const Job& job : jobs) {
    cuda::LinearJobParams& q = p.job[p.count++];
    q = params_of(job);
    q.skip = skip, q.first = p.blocks;
    p.blocks += q.n / choice.outputs;
  }
  d.launch(choice.kernel, {p.blocks, 1, 1}, &p);
}

}  // namespace

TEST(products_of_every_format_and_shape) {
  Random random;
  const int tokens[] = {1, 7, 8, 9, 17, 33, 64};
  for (const char* schedule : schedules())
    for (Stored f : multiplied())
      for (auto [n, k] : {std::pair{1, 1}, {37, 70}, {64, 64}, {100, 300}}) {
        const int t = tokens[random.below(7)];
        Device d(schedule);
        const Weights w(d, random, f, Order::rows, n, k);
        const Row x = activations(random, f, t * k, random.below(3) * 45);
        const DeviceOperand operand(d, cuda::operand_of(f), t, k, x);
        Rows y(d, t, n);
        multiply(d, {{&w, &operand, &y}});
        CHECK(distance(y.dense(), product(w, x, t)) < kTolerance);
      }
}

TEST(what_follows_the_sums) {
  Random random;
  for (const char* schedule : schedules())
    for (Stored f : multiplied())
      for (auto [n, t] : {std::pair{37, 3}, {64, 9}, {100, 20}}) {
        Device d(schedule);
        const Weights w(d, random, f, Order::rows, n, 70);
        check_what_follows(d, random, w, t, [&](const std::vector<Job>& jobs) { multiply(d, jobs); });
      }
}

TEST(a_row_has_the_same_bits_in_any_batch) {
  Random random;
  constexpr int kMost = 64;
  for (const char* schedule : schedules())
    for (Stored f : multiplied()) {
      const int n = 70, k = 200;
      Device d(schedule);
      const Weights w(d, random, f, Order::rows, n, k), other(d, random, f, Order::rows, 20, k);
      const Row x = activations(random, f, kMost * k, 30);
      Row reference;
      for (int t : {kMost, 1, 13, 31}) {
        for (int tiles : {1, 2, 4, 8}) {
          if (tiles * 8 < t || (f == Stored::f32 && tiles == 4)) continue;
          // The neighbours may be anything, and so may the other jobs.
          Row rows = x;
          if (t > 1) std::fill_n(rows.begin() + k, k, t % 2 ? kNan : 3.0f);
          const DeviceOperand operand(d, cuda::operand_of(f), t, k, rows);
          Rows y(d, t, n), z(d, t, 20);
          multiply(d, {{&other, &operand, &z}, {&w, &operand, &y}}, tiles);
          const Row found = y.dense();
          const Row first(found.begin(), found.begin() + n), last(found.end() - n, found.end());
          if (reference.empty()) reference = found;
          CHECK(::same(first, Row(reference.begin(), reference.begin() + n)));
          if (t > 2) CHECK(::same(last, Row(reference.begin() + (t - 1) * n, reference.begin() + t * n)));
        }
      }
    }
}

TEST(halves_beside_int8_and_int4_have_the_bits_they_have_alone) {
  Random random;
  for (const char* schedule : schedules())
    for (Stored f : {Stored::i8, Stored::i4})
      for (Stored half : {Stored::f16, Stored::bf16})
        for (int t : {3, 9, 20, 64}) {
          if (half == Stored::bf16 && !multiplies_bf16()) continue;
          const int n = 70, k = 200;
          Device d(schedule);
          const Weights w(d, random, half, Order::rows, n, k), other(d, random, f, Order::rows, 40, k);
          const DeviceOperand x(d, half, t, k, activations(random, half, t * k, 0)),
              y(d, Stored::f16, t, k, activations(random, f, t * k, 0));
          Rows alone(d, t, n), beside(d, t, n), z_alone(d, t, 40), z_beside(d, t, 40);
          multiply(d, {{&w, &x, &alone}});
          multiply(d, {{&other, &y, &z_alone}});
          multiply(d, {{&other, &y, &z_beside}, {&w, &x, &beside}});
          CHECK(::same(beside.dense(), alone.dense()) && ::same(z_beside.dense(), z_alone.dense()));
        }
}

TEST(columns_have_the_bits_of_rows_with_and_without_skipping) {
  Random random;
  const int tokens[] = {1, 7, 9, 33, 64};
  for (const char* schedule : schedules())
    for (Stored f : multiplied())
      for (int zeros : {0, 90, 100}) {
        const int n = 70, k = 200, t = tokens[random.below(5)];
        Device d(schedule);
        const Row numbers = random.row(size_t(n * k)), old = random.row(size_t(t * n));
        const Weights rows(d, f, Order::rows, n, k, Stored::f32, numbers),
            columns(d, f, Order::columns, n, k, Stored::f32, numbers);
        Row x = activations(random, f, t * k, zeros);
        for (float& v : x)
          if (v == 0 && random.below(2)) v = -0.0f;
        const DeviceOperand operand(d, cuda::operand_of(f), t, k, x);
        Rows expected(d, t, n, old);
        multiply(d, {{&rows, &operand, nullptr, &expected}});
        for (bool skip : {false, true})
          for (int tiles : {1, 2}) {
            Rows sum(d, t, n, old);
            multiply(d, {{&columns, &operand, nullptr, &sum}}, tiles, skip);
            CHECK(::same(sum.dense(), expected.dense()) && sum.has_statistics());
          }
      }
}

// What is not loaded may be anything, which the head does not know of here (of int8 and int4 a number, which times zero
// changes nothing). More inputs than a warp looks through at a time, and shares that end at any of them.
TEST(only_columns_with_an_input_are_loaded) {
  Random random;
  for (const char* schedule : schedules())
    for (Stored f : multiplied())
      for (int k : {700, 8 * 1024 + 200}) {
        const int n = 64, t = 11;
        Device d(schedule);
        const Row numbers = random.row(size_t(n * k));
        const Weights rows(d, f, Order::rows, n, k, Stored::f32, numbers),
            columns(d, f, Order::columns, n, k, Stored::f32, numbers);
        Row x = activations(random, f, t * k, 90);
        for (int i = 0; i < t * k; i++)
          if (i % k % 64 < 7) x[size_t(i)] = 0;
        std::vector<unsigned char> bytes = columns.bytes.read();
        const int line = n * cuda::bits_of(f) / 8;
        for (int j = 0; j < k; j++) {
          bool live = false;
          for (int i = 0; i < t; i++) live |= x[size_t(i * k + j)] != 0;
          if (!live) std::fill_n(&bytes[size_t(cuda::kHead + j * line)], line, uint8_t(0xff));
        }
        columns.bytes.write(bytes);
        const DeviceOperand operand(d, cuda::operand_of(f), t, k, x);
        Rows expected(d, t, n);
        multiply(d, {{&rows, &operand, &expected}});
        for (int tiles : {1, 2}) {  // the tokens in turns, and together
          Rows y(d, t, n);
          multiply(d, {{&columns, &operand, &y}}, tiles, true);
          CHECK(::same(y.dense(), expected.dense()));
        }
      }
}

TEST(an_infinite_weight_is_not_skipped) {
  Random random;
  for (const char* schedule : schedules())
    for (Stored f : multiplied()) {
      Device d(schedule);
      Row numbers = random.row(70 * 70);
      numbers[5 * 70 + 66] = kInf;
      const Weights columns(d, f, Order::columns, 70, 70, Stored::f32, numbers);
      const DeviceOperand operand(d, cuda::operand_of(f), 2, 70, Row(140));
      Rows y(d, 2, 70);
      multiply(d, {{&columns, &operand, &y}}, 1, true);
      const Row found = y.dense();
      for (int i = 0; i < 140; i++) CHECK(std::isnan(found[size_t(i)]) == (i % 70 == 5));
    }
}

TEST(numbers_that_are_not_finite_come_through) {
  Random random;
  for (const char* schedule : schedules())
    for (Stored f : multiplied()) {
      Device d(schedule);
      Row x = activations(random, f, 3 * 70, 0);
      x[70 + 66] = kNan;
      const Weights w(d, random, f, Order::rows, 37, 70);
      const DeviceOperand operand(d, cuda::operand_of(f), 3, 70, x);
      Rows y(d, 3, 37);
      multiply(d, {{&w, &operand, &y}});
      const Row found = y.dense();
      for (int i = 0; i < 3 * 37; i++) CHECK(std::isnan(found[size_t(i)]) == (i / 37 == 1));
    }
}

CHECK_MAIN
