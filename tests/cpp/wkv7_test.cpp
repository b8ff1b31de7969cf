// RWKV-7's recurrence as a kernel, and the choice of an instruction set.
#include <functional>
#include <string>

#include "check.h"
#include "core/error.h"
#include "kernel_sets.h"

namespace {

// One sequence of one head, channels in a wider row to see that nothing else is touched.
struct Head {
  int n, tokens, ld;
  bool first;
  Row r, w, k, v, a, g, v_mix, v_first, channels, state;

  Head(Random& random, int size, int count, bool first_layer)
      : n(size), tokens(count), ld(size + 3), first(first_layer) {
    for (Row* row : {&r, &w, &k, &v, &a, &g, &v_mix, &v_first}) *row = random.row(size_t(tokens * ld), 2);
    channels = random.row(size_t(8 * n));
    state.resize(size_t(n * padded_n(n)));
    for (int i = 0; i < n; i++)
      for (int j = 0; j < n; j++) state[size_t(i * padded_n(n) + j)] = random.unit();
  }
  const float* channel(int i) const { return channels.data() + i * n; }
};
struct Result {
  Row y, state, v_first;
};

// In calls of at most `step` tokens; out of place unless in_place.
Result run(const Kernels& k, const Head& h, int step, bool in_place) {
  const FlushDenormals flush;
  Result result{Row(size_t(h.tokens * h.ld), 7.0f), h.state, h.v_first};
  Row other(h.state.size(), 7.0f);
  for (int t = 0; t < h.tokens; t += step) {
    const auto at = [&](const Row& row) { return row.data() + t * h.ld; };
    Row& to = in_place ? result.state : other;
    k.wkv7({h.n,
            std::min(step, h.tokens - t),
            size_t(h.ld),
            at(h.r),
            at(h.w),
            at(h.k),
            at(h.v),
            at(h.a),
            at(h.g),
            h.first ? nullptr : at(h.v_mix),
            result.v_first.data() + t * h.ld,
            h.channel(0),
            h.channel(1),
            h.first ? nullptr : h.channel(2),
            h.channel(3),
            h.channel(4),
            h.channel(5),
            h.channel(6),
            h.channel(7),
            64e-5f,
            result.state.data(),
            to.data(),
            result.y.data() + t * h.ld,
            size_t(h.ld)});
    if (!in_place) result.state.swap(other);
  }
  return result;
}

// The formulas, in float64.
Result definition(const Head& h) {
  Result result{Row(size_t(h.tokens * h.ld), 7.0f), h.state, h.v_first};
  const size_t n = size_t(h.n), ld = size_t(padded_n(h.n));
  std::vector<double> s(n * n);
  for (size_t i = 0; i < n; i++)
    for (size_t j = 0; j < n; j++) s[i * n + j] = double(h.state[i * ld + j]);
  const auto sigmoid = [](double x) { return 1 / (1 + std::exp(-x)); };
  for (size_t t = 0; t < size_t(h.tokens); t++) {
    std::vector<double> w(n), a(n), k(n), v(n), kk(n), y(n);
    double norm = 0, bonus = 0, mean = 0, variance = 0;
    for (size_t i = 0; i < n; i++) {
      const auto at = [&](const Row& row) { return double(row[t * size_t(h.ld) + i]); };
      const auto channel = [&](int c) { return double(h.channel(c)[i]); };
      w[i] = std::exp(-std::exp(-0.5) * sigmoid(channel(0) + at(h.w)));
      a[i] = sigmoid(channel(1) + at(h.a));
      v[i] = at(h.v);
      if (!h.first)
        v[i] += (at(h.v_first) - v[i]) * sigmoid(channel(2) + at(h.v_mix));
      else
        result.v_first[t * size_t(h.ld) + i] = h.v[t * size_t(h.ld) + i];
      kk[i] = at(h.k) * channel(3);
      norm += kk[i] * kk[i];
      k[i] = at(h.k) * (1 + (a[i] - 1) * channel(4));
      bonus += at(h.r) * k[i] * channel(5);
    }
    norm = std::max(std::sqrt(norm), 1e-12);
    for (double& q : kk) q /= norm;
    for (size_t j = 0; j < n; j++) {
      double removed = 0;
      for (size_t i = 0; i < n; i++) removed += s[i * n + j] * kk[i];
      for (size_t i = 0; i < n; i++) {
        s[i * n + j] = s[i * n + j] * w[i] - removed * kk[i] * a[i] + v[j] * k[i];
        y[j] += s[i * n + j] * double(h.r[t * size_t(h.ld) + i]);
      }
    }
    for (double q : y) mean += q / double(n);
    for (double q : y) variance += (q - mean) * (q - mean) / double(n);
    for (size_t j = 0; j < n; j++) {
      const double normed =
          (y[j] - mean) / std::sqrt(variance + 64e-5) * double(h.channel(6)[j]) + double(h.channel(7)[j]);
      result.y[t * size_t(h.ld) + j] = float((normed + bonus * v[j]) * double(h.g[t * size_t(h.ld) + j]));
    }
  }
  for (size_t i = 0; i < n; i++)
    for (size_t j = 0; j < n; j++) result.state[i * ld + j] = float(s[i * n + j]);
  return result;
}

bool same(const Result& a, const Result& b) {
  return ::same(a.y, b.y) && ::same(a.state, b.state) && ::same(a.v_first, b.v_first);
}

// The name of the chosen set with RWKV_ISA as given, or the message of the error.
std::string chosen(const char* wanted) {
  if (wanted)
    setenv("RWKV_ISA", wanted, 1);
  else
    unsetenv("RWKV_ISA");
  std::string answer;
  try {
    answer = choose_kernels().name;
  } catch (const DeviceError& e) {
    answer = e.what();
  }
  unsetenv("RWKV_ISA");
  return answer;
}

}  // namespace

TEST(wkv7_follows_its_definition_for_any_head_size) {
  Random random;
  for (int n : {1, 2, 7, 16, 17, 32, 40, 48, 64, 100, 128, kMaxHead})
    for (bool first : {false, true}) {
      const Head head(random, n, n == kMaxHead ? 3 : 37, first);
      const Result expected = definition(head);
      for (const Kernels* k : all_sets()) {
        const Result found = run(*k, head, head.tokens, false);
        CHECK(near(found.state, expected.state, 1e-5));
        CHECK(near(found.y, expected.y, n == 1 ? 1e-2 : 2e-4));  // a group of one is all cancellation
        CHECK(::same(found.v_first, expected.v_first));
      }
    }
}

TEST(wkv7_has_the_same_bits_on_every_set_and_however_the_tokens_are_cut) {
  Random random;
  for (int n : {1, 5, 16, 20, 48, 64, 72, 128}) {
    const Head head(random, n, 41, n % 3 == 0);
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

TEST(wkv7_keeps_nan_and_survives_zero_keys) {
  Random random;
  for (const Kernels* k : all_sets()) {
    Head head(random, 64, 3, true);
    for (float& v : head.k) v = 0;
    CHECK(k->all_finite(run(*k, head, 3, true).y.data(), size_t(head.ld) * 3));
    for (Row Head::* row : {&Head::r, &Head::w, &Head::k, &Head::v, &Head::a}) {
      Head bad(random, 64, 1, true);
      (bad.*row)[5] = std::numeric_limits<float>::quiet_NaN();
      CHECK(!k->all_finite(run(*k, bad, 1, true).y.data(), 64));
    }
  }
}

TEST(wkv7_has_the_decay_in_full_precision) {
  Random random;
  Head head(random, 16, 1, true);
  for (Row* row : {&head.k, &head.v}) row->assign(row->size(), 0);
  head.w.assign(head.w.size(), 60);  // sigmoid is one
  head.state.assign(head.state.size(), 1);
  for (const Kernels* k : all_sets())
    for (float s : run(*k, head, 1, true).state) CHECK(std::fabs(double(s) - std::exp(-std::exp(-0.5))) < 1e-7);
}

TEST(rwkv_isa_chooses_among_what_the_machine_can_run) {
  std::string best = chosen(nullptr);
  CHECK(chosen("") == best);
  bool listed = false;
  for (const Kernels* k : all_sets()) {
    CHECK(chosen(k->name) == k->name);
    listed = listed || best == k->name;
  }
  CHECK(listed);
  const std::string message = chosen("sse9");
  CHECK(message.find("found \"sse9\"") != std::string::npos && message.find("generic") != std::string::npos);
  if (exact_sets().empty()) CHECK(chosen("avx2").find("can run") != std::string::npos);
}

TEST(flushing_denormals_ends_with_its_scope) {
  volatile float tiny = 0x1p-126f;
  CHECK(tiny * 0.5f != 0);
  {
    const FlushDenormals flush;
    CHECK(!RWKV_X86 || tiny * 0.5f == 0);
  }
  CHECK(tiny * 0.5f != 0);
}

CHECK_MAIN
