// RWKV-4's recurrence as a kernel.
#include "check.h"
#include "kernel_sets.h"

namespace {

// Channels of one sequence in a wider row to see that nothing else is touched.
struct Channels {
  int n, tokens, ld;
  Row r, k, v, decay, bonus, a, b, m;

  Channels(Random& random, int count, int length) : n(count), tokens(length), ld(count + 3) {
    for (Row* row : {&r, &k, &v}) *row = random.row(size_t(tokens * ld), 3);
    decay = random.row(size_t(n)), bonus = random.row(size_t(n), 2);
    for (float& w : decay) w = -std::exp(w * 4);
    a.assign(size_t(n), 0), b = a, m.assign(size_t(n), -1e30f);  // the state before any token
  }
};
struct Result {
  Row y, a, b, m;
};
bool same(const Result& x, const Result& y) {
  return ::same(x.y, y.y) && ::same(x.a, y.a) && ::same(x.b, y.b) && ::same(x.m, y.m);
}

// In calls of at most `step` tokens; out of place unless in_place.
Result run(const Kernels& k, const Channels& c, int step, bool in_place) {
  const FlushDenormals flush;
  Result result{Row(size_t(c.tokens * c.ld), 7.0f), c.a, c.b, c.m};
  for (int t = 0; t < c.tokens; t += step) {
    const auto at = [&](const Row& row) { return row.data() + t * c.ld; };
    Row a(size_t(c.n), 7.0f), b = a, m = a;
    k.wkv4({c.n, std::min(step, c.tokens - t), size_t(c.ld), at(c.r), at(c.k), at(c.v), c.decay.data(), c.bonus.data(),
            result.a.data(), result.b.data(), result.m.data(), in_place ? result.a.data() : a.data(),
            in_place ? result.b.data() : b.data(), in_place ? result.m.data() : m.data(), result.y.data() + t * c.ld,
            size_t(c.ld)});
    if (!in_place) result.a = a, result.b = b, result.m = m;
  }
  return result;
}

// The mean over all tokens so far, each weighted by e^k and what it has faded, in float64 from scratch at every token.
Row definition(const Channels& c) {
  Row y(size_t(c.tokens * c.ld), 7.0f);
  for (int i = 0; i < c.n; i++)
    for (int t = 0; t < c.tokens; t++) {
      const auto at = [&](const Row& row, int token) { return double(row[size_t(token * c.ld + i)]); };
      double top = 0, bottom = 0;
      for (int s = 0; s <= t; s++) {
        const double fade = s == t ? double(c.bonus[size_t(i)]) : (t - 1 - s) * double(c.decay[size_t(i)]);
        const double weight = std::exp(at(c.k, s) + fade);
        top += weight * at(c.v, s), bottom += weight;
      }
      y[size_t(t * c.ld + i)] = float(at(c.r, t) * top / bottom);
    }
  return y;
}

}  // namespace

TEST(wkv4_follows_its_definition_for_any_number_of_channels) {
  Random random;
  for (int n : {1, 2, 7, 8, 15, 16, 17, 31, 32}) {
    const Channels channels(random, n, 37);
    for (const Kernels* k : all_sets()) CHECK(near(run(*k, channels, 37, false).y, definition(channels), 2e-6));
  }
}

TEST(wkv4_has_the_same_bits_on_every_set_and_however_the_tokens_are_cut) {
  Random random;
  for (int n : {1, 5, 16, 20, 32}) {
    const Channels channels(random, n, 41);
    Result reference;
    for (const Kernels* k : exact_sets()) {
      const Result whole = run(*k, channels, channels.tokens, true);
      if (reference.y.empty()) reference = whole;
      CHECK(same(whole, reference));
    }
    for (const Kernels* k : all_sets()) {
      const Result whole = run(*k, channels, channels.tokens, true);
      for (int step : {1, 2, 16, 40})
        for (bool in_place : {true, false}) CHECK(same(run(*k, channels, step, in_place), whole));
    }
  }
}

TEST(wkv4_bears_keys_of_any_size_and_keeps_nan) {
  Random random;
  for (const Kernels* k : all_sets()) {
    Channels channels(random, 32, 9);
    for (size_t i = 0; i < channels.k.size(); i++) channels.k[i] = std::ldexp(random.unit(), int(i % 60));
    channels.decay[3] = -kInf;  // forgets everything
    CHECK(k->all_finite(run(*k, channels, 9, true).y.data(), channels.k.size()));
    for (Row Channels::* row : {&Channels::r, &Channels::k, &Channels::v}) {
      Channels bad(random, 32, 3);
      (bad.*row)[5] = kNan;
      const Result found = run(*k, bad, 3, true);
      CHECK(!k->all_finite(found.y.data(), 32));
      CHECK(row == &Channels::r || !k->all_finite(found.y.data() + 2 * bad.ld, 32));  // and for ever
    }
  }
}

CHECK_MAIN
