// RWKV-5's and 6's recurrence as a kernel.
#include "check.h"
#include "kernel_sets.h"

namespace {

// One sequence of one head, channels in a wider row to see that nothing else is touched.
struct Head {
  int n, tokens, ld;
  bool gated, dynamic;  // RWKV-6 is both, 5.0 neither
  Row r, k, v, g, w, channels, state;

  Head(Random& random, int size, int count, bool has_gate, bool has_w)
      : n(size), tokens(count), ld(size + 3), gated(has_gate), dynamic(has_w) {
    for (Row* row : {&r, &k, &v, &g, &w}) *row = random.row(size_t(tokens * ld), 2);
    channels = random.row(size_t(4 * n));
    for (int i = 0; i < n; i++) channels[size_t(i)] = random.unit() * 3 - 2;  // decays from nearly none to nearly all
    state.resize(size_t(n * padded_n(n)));
    for (int i = 0; i < n; i++)
      for (int j = 0; j < n; j++) state[size_t(i * padded_n(n) + j)] = random.unit();
  }
  const float* channel(int i) const { return channels.data() + i * n; }
};
struct Result {
  Row y, state;
};
bool same(const Result& a, const Result& b) { return ::same(a.y, b.y) && ::same(a.state, b.state); }

// In calls of at most `step` tokens; out of place unless in_place.
Result run(const Kernels& k, const Head& h, int step, bool in_place) {
  const FlushDenormals flush;
  Result result{Row(size_t(h.tokens * h.ld), 7.0f), h.state};
  Row other(h.state.size(), 7.0f);
  for (int t = 0; t < h.tokens; t += step) {
    const auto at = [&](const Row& row) { return row.data() + t * h.ld; };
    Row& to = in_place ? result.state : other;
    k.wkv6({h.n, std::min(step, h.tokens - t), size_t(h.ld), at(h.r), at(h.k), at(h.v), h.gated ? at(h.g) : nullptr,
            h.dynamic ? at(h.w) : nullptr, h.channel(0), h.channel(1), h.channel(2), h.channel(3), 64e-5f,
            result.state.data(), to.data(), result.y.data() + t * h.ld, size_t(h.ld)});
    if (!in_place) result.state.swap(other);
  }
  return result;
}

// The formulas, in float64.
Result definition(const Head& h) {
  Result result{Row(size_t(h.tokens * h.ld), 7.0f), h.state};
  const size_t n = size_t(h.n), ld = size_t(padded_n(h.n));
  std::vector<double> s(n * n);
  for (size_t i = 0; i < n; i++)
    for (size_t j = 0; j < n; j++) s[i * n + j] = double(h.state[i * ld + j]);
  for (size_t t = 0; t < size_t(h.tokens); t++) {
    const auto at = [&](const Row& row, size_t i) { return double(row[t * size_t(h.ld) + i]); };
    std::vector<double> y(n);
    for (size_t i = 0; i < n; i++) {
      const double w = std::exp(-std::exp(double(h.channel(0)[i]) + (h.dynamic ? at(h.w, i) : 0)));
      for (size_t j = 0; j < n; j++) {
        const double kv = at(h.k, i) * at(h.v, j);
        y[j] += at(h.r, i) * (double(h.channel(1)[i]) * kv + s[i * n + j]);
        s[i * n + j] = w * s[i * n + j] + kv;
      }
    }
    double mean = 0, variance = 0;
    for (double q : y) mean += q / double(n);
    for (double q : y) variance += (q - mean) * (q - mean) / double(n);
    for (size_t j = 0; j < n; j++) {
      const double normed =
          (y[j] - mean) / std::sqrt(variance + 64e-5) * double(h.channel(2)[j]) + double(h.channel(3)[j]);
      result.y[t * size_t(h.ld) + j] = float(normed * (h.gated ? at(h.g, j) : 1));
    }
  }
  for (size_t i = 0; i < n; i++)
    for (size_t j = 0; j < n; j++) result.state[i * ld + j] = float(s[i * n + j]);
  return result;
}

}  // namespace

TEST(wkv6_follows_its_definition_for_any_head_size) {
  Random random;
  for (int n : {1, 2, 7, 16, 17, 32, 40, 48, 64, 100, 128, kMaxHead})
    for (bool gated : {false, true})
      for (bool dynamic : {false, true}) {
        const Head head(random, n, n == kMaxHead ? 3 : 37, gated, dynamic);
        const Result expected = definition(head);
        for (const Kernels* k : all_sets()) {
          const Result found = run(*k, head, head.tokens, false);
          CHECK(near(found.state, expected.state, 1e-5));
          CHECK(near(found.y, expected.y, n == 1 ? 1e-2 : 2e-4));  // a group of one is all cancellation
        }
      }
}

TEST(wkv6_has_the_same_bits_on_every_set_and_however_the_tokens_are_cut) {
  Random random;
  for (int n : {1, 5, 16, 20, 48, 64, 72, 128}) {
    const Head head(random, n, 41, n % 3 == 0, n % 2 == 0);
    Result reference;
    for (const Kernels* k : exact_sets()) {
      const Result whole = run(*k, head, head.tokens, true);
      if (reference.y.empty()) reference = whole;
      CHECK(same(whole, reference));
    }
    for (const Kernels* k : all_sets()) {
      const Result whole = run(*k, head, head.tokens, true);
      for (int step : {1, 2, 16, 17, 40})
        for (bool in_place : {true, false}) CHECK(same(run(*k, head, step, in_place), whole));
    }
  }
}

TEST(wkv6_keeps_nan_and_survives_the_greatest_decays) {
  Random random;
  for (const Kernels* k : all_sets()) {
    Head head(random, 64, 3, true, true);
    for (size_t i = 0; i < head.w.size(); i++) head.w[i] = i % 2 ? 1e30f : -1e30f;
    CHECK(k->all_finite(run(*k, head, 3, true).y.data(), size_t(head.ld) * 3));
    for (Row Head::* row : {&Head::r, &Head::k, &Head::v, &Head::g}) {
      Head bad(random, 64, 1, true, true);
      (bad.*row)[5] = kNan;
      CHECK(!k->all_finite(run(*k, bad, 1, true).y.data(), 64));
    }
    Head bad(random, 64, 1, true, true);  // a decay shows in the state first
    bad.w[5] = kNan;
    CHECK(!k->all_finite(run(*k, bad, 1, true).state.data(), bad.state.size()));
  }
}

CHECK_MAIN
