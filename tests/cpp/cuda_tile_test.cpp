// Products with more than 64 tokens: against sums in float64 of the numbers that the format holds, and with themselves.
#include "cuda_jobs.h"

namespace {

constexpr Order kOrders[] = {Order::rows, Order::columns};

// All jobs of one format in one launch.
void multiply(Device& d, const std::vector<Job>& jobs) {
  cuda::LinearParams p{};
  int tokens = 0;
  for (const Job& job : jobs) {
    cuda::LinearJobParams& q = p.job[p.count++];
    q = params_of(job);
    q.first = p.blocks;
    p.blocks += cuda::tiles(q.n);
    tokens = std::max(tokens, q.tokens);
  }
  d.launch(cuda::tile_product(jobs[0].w->format, jobs[0].w->order), {cuda::tiles(tokens), p.blocks, 1}, &p);
}

Row rows_of(const Row& all, int cols, int from, int count) {
  return Row(all.begin() + from * cols, all.begin() + (from + count) * cols);
}

}  // namespace

TEST(products_of_every_format_order_and_shape) {
  Random random;
  struct Shape {
    int tokens, n, k;
  };
  for (const char* schedule : schedules())
    for (Stored f : multiplied())
      for (Order o : kOrders)
        for (auto [t, n, k] : {Shape{65, 37, 70}, {128, 64, 64}, {129, 100, 130}, {200, 129, 1}, {3, 1, 300}}) {
          Device d(schedule);
          const Weights w(d, random, f, o, n, k);
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
    for (Stored f : multiplied()) {
      Device d(schedule);
      const Weights w(d, random, f, kOrders[random.below(2)], random.below(2) ? 37 : 166, 70);
      check_what_follows(d, random, w, random.below(2) ? 65 : 130,
                         [&](const std::vector<Job>& jobs) { multiply(d, jobs); });
    }
}

TEST(a_row_has_the_same_bits_in_any_batch_and_place) {
  Random random;
  constexpr int kMost = 200;
  for (const char* schedule : schedules())
    for (Stored f : multiplied()) {
      const int n = 70, k = 100;
      Device d(schedule);
      const Row numbers = random.row(size_t(n * k)), x = activations(random, f, kMost * k, 30);
      Row reference;
      for (Order o : kOrders) {
        const Weights w(d, f, o, n, k, Stored::f32, numbers), other(d, random, f, o, 150, k);
        for (int t : {kMost, 65, 128, 129}) {
          // Its neighbours may be anything, and so may the other jobs; a row may come again at another place.
          Row rows(x.begin(), x.begin() + t * k);
          if (t != kMost) std::copy_n(x.begin() + k, k, rows.end() - k), std::fill_n(rows.begin() + k, k, kNan);
          const DeviceOperand operand(d, cuda::operand_of(f), t, k, rows), few(d, cuda::operand_of(f), 3, k, rows);
          Rows y(d, t, n), z(d, 3, 150);
          multiply(d, t == 128 ? std::vector<Job>{{&w, &operand, &y}}
                               : std::vector<Job>{{&other, &few, &z}, {&w, &operand, &y}});
          const Row found = y.dense();
          if (reference.empty()) reference = found;  // columns have the bits of rows
          if (t == kMost) {
            CHECK(::same(found, reference));
            continue;
          }
          CHECK(::same(rows_of(found, n, 0, 1), rows_of(reference, n, 0, 1)));
          CHECK(::same(rows_of(found, n, 2, t - 3), rows_of(reference, n, 2, t - 3)));
          CHECK(::same(rows_of(found, n, t - 1, 1), rows_of(reference, n, 1, 1)));
        }
      }
    }
}

TEST(eight_jobs_of_their_own_shapes_in_one_launch) {
  Random random;
  for (const char* schedule : schedules())
    for (Stored f : {Stored::f16, Stored::i4}) {
      Device d(schedule);
      std::vector<std::unique_ptr<Weights>> w;
      std::vector<std::unique_ptr<DeviceOperand>> x;
      std::vector<std::unique_ptr<Rows>> y;
      std::vector<Row> expected;
      std::vector<Job> jobs;
      for (int i = 0; i < cuda::kMostJobs; i++) {
        const int n = 1 + random.below(i == 3 ? 300 : 64), k = 1 + random.below(100),
                  t = 1 + random.below(i == 5 ? 300 : 20);
        w.push_back(std::make_unique<Weights>(d, random, f, Order::rows, n, k));
        const Row rows = activations(random, f, t * k, 0);
        x.push_back(std::make_unique<DeviceOperand>(d, cuda::operand_of(f), t, k, rows));
        y.push_back(std::make_unique<Rows>(d, t, n));
        expected.push_back(product(*w.back(), rows, t));
        jobs.push_back({w.back().get(), x.back().get(), y.back().get()});
      }
      multiply(d, jobs);
      for (size_t i = 0; i < jobs.size(); i++) CHECK(distance(y[i]->dense(), expected[i]) < kTolerance);
    }
}

TEST(numbers_that_are_not_finite_stay_in_their_row_and_column) {
  Random random;
  for (const char* schedule : schedules())
    for (Stored f : multiplied())
      for (Order o : kOrders) {
        const int t = 66, n = 70, k = 70;
        Device d(schedule);
        Row x = activations(random, f, t * k, 0), numbers = random.row(size_t(n * k));
        x[65 * k + 66] = kNan, x[3 * k + 5] = kInf;
        const Weights w(d, f, o, n, k, Stored::f32, numbers);
        numbers[5 * k + 66] = kInf;
        const Weights infinite(d, f, o, n, k, Stored::f32, numbers);
        const DeviceOperand operand(d, cuda::operand_of(f), t, k, x),
            zeros(d, cuda::operand_of(f), t, k, Row(size_t(t * k)));
        Rows y(d, t, n), z(d, t, n);
        multiply(d, {{&w, &operand, &y}, {&infinite, &zeros, &z}});
        const Row found = y.dense(), of_infinite = z.dense();
        bool rows = true, column = true;
        for (int i = 0; i < t * n; i++) {
          rows &= std::isfinite(found[size_t(i)]) == (i / n != 65 && i / n != 3);
          rows &= i / n != 65 || std::isnan(found[size_t(i)]);
          column &= std::isnan(of_infinite[size_t(i)]) == (i % n == 5);
        }
        CHECK(rows && column);
      }
}

CHECK_MAIN
