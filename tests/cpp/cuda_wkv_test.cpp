// The recurrences against the CPU's kernels, whose definitions their own tests have in float64; and any cut of the
// tokens against any other, bit for bit. States in halves: against the CPU with a state that is rounded after each
// token, where a number that was nearly in the middle of two halves may have become the other one; and against a state
// of float32, from which each token moves a number by at most half of the distance of two halves, 2^-11 of it. The
// decay and the removal of a key let that shrink, so T tokens and the state they began with make T + 1 of them.
#include "cuda_operands.h"

namespace {

const std::vector<int> kLengths = {5, 1, 9};

// A model's activations and vectors by name, on both sides.
struct Inputs {
  Device& device;
  Random& random;
  int tokens, cols;
  Row dense(float scale, float mean = 0) {
    Row x = random.row(size_t(tokens * cols), scale);
    for (float& v : x) v += mean;
    return x;
  }
};
struct Activations {
  Row host;
  Rows rows;
  Activations(Inputs& in, float scale, float mean = 0)
      : host(in.dense(scale, mean)), rows(in.device, in.tokens, in.cols, host) {}
  const float* device() const { return rows.buffer; }
};
struct Vector {
  Row host;
  Buffer<float> buffer;
  Vector(Inputs& in, float scale = 1, float mean = 0) : Vector(in, values(in, scale, mean)) {}
  Vector(Inputs& in, Row h) : host(std::move(h)), buffer(in.device, host) {}
  static Row values(Inputs& in, float scale, float mean) {
    Row x = in.random.row(size_t(in.cols), scale);
    for (float& v : x) v += mean;
    return x;
  }
};

// A head's matrix [value][key] as the CPU's kernels have it, [key][value] with whole vectors of values; and back.
Row turned(const float* from, int n) {
  Row to(size_t(n * padded_n(n)));
  for (int v = 0; v < n; v++)
    for (int k = 0; k < n; k++) to[size_t(k * padded_n(n) + v)] = from[v * n + k];
  return to;
}
void turn_back(const Row& from, int n, float* to) {
  for (int v = 0; v < n; v++)
    for (int k = 0; k < n; k++) to[v * n + k] = from[size_t(k * padded_n(n) + v)];
}

struct Result {
  Row y, v_first;
  std::vector<Row> states;
};
// The distance of two halves, and half of it, as a share of the larger.
constexpr double kOtherHalf = 0x1p-10, kHalfStep = 0x1p-11;

bool same(const Result& a, const Result& b) {
  bool all = ::same(a.y, b.y) && ::same(a.v_first, b.v_first);
  for (size_t s = 0; s < a.states.size(); s++) all &= ::same(a.states[s], b.states[s]);
  return all;
}
bool close(const Result& found, const Result& expected, double tolerance) {
  bool all = distance(found.y, expected.y) < tolerance && ::same(found.v_first, expected.v_first);
  for (size_t s = 0; s < found.states.size(); s++) all &= distance(found.states[s], expected.states[s]) < tolerance;
  if (!all) std::printf("y %.2g\n", distance(found.y, expected.y));
  return all;
}

// Cuts of every sequence into two calls: `first` rows of each, at least one and at most all but one, then the rest.
struct Cut {
  std::vector<int> lengths, rows;  // rows of the batch that the call has
};
std::vector<Cut> cuts(bool two) {
  if (!two) {
    Cut all{kLengths, {}};
    for (int i = 0; i < 15; i++) all.rows.push_back(i);
    return {all};
  }
  // The one of a single row is in the second call alone.
  return {{{2, 4}, {0, 1, 6, 7, 8, 9}}, {{3, 1, 5}, {2, 3, 4, 5, 10, 11, 12, 13, 14}}};
}
Row rows_of(const Row& all, const std::vector<int>& rows, int cols) {
  Row x;
  for (int i : rows) x.insert(x.end(), all.begin() + i * cols, all.begin() + (i + 1) * cols);
  return x;
}

}  // namespace

// ---- RWKV-7 ----

namespace {

struct Wkv7Inputs {
  int n, heads, c;
  bool first;
  Row r, w, k, v, a, g, v_mix, v_first;
  Row w0, a0, v0, k_k, k_a, r_k, ln_w, ln_b;
  std::vector<Row> states;

  Wkv7Inputs(Random& random, int size, int count, bool first_layer)
      : n(size), heads(count), c(size * count), first(first_layer) {
    for (Row* x : {&r, &w, &k, &v, &a, &g, &v_mix, &v_first}) *x = random.row(size_t(15 * c), 2);
    for (Row* x : {&w0, &a0, &v0, &k_k, &k_a, &r_k, &ln_w, &ln_b}) *x = random.row(size_t(c));
    for (int s = 0; s < 3; s++) states.push_back(random.row(size_t(heads * n * n)));
  }
};

// Token by token if the state is to be rounded after each.
Result on_cpu(const Wkv7Inputs& in, bool halves = false) {
  Result result{Row(in.r.size()), in.first ? in.v : in.v_first, in.states};
  int begin = 0;
  for (size_t s = 0; s < 3; begin += kLengths[s], s++)
    for (int h = 0; h < in.heads; h++) {
      const auto channel = [&](const Row& x) { return x.data() + h * in.n; };
      float* state = result.states[s].data() + h * in.n * in.n;
      Row turning = turned(state, in.n);
      if (halves) round_to_halves(turning);
      const int step = halves ? 1 : kLengths[s];
      for (int t = begin; t < begin + kLengths[s]; t += step) {
        const auto at = [&](auto& x) { return x.data() + t * in.c + h * in.n; };
        choose_kernels().wkv7({in.n,
                               step,
                               size_t(in.c),
                               at(in.r),
                               at(in.w),
                               at(in.k),
                               at(in.v),
                               at(in.a),
                               at(in.g),
                               in.first ? nullptr : at(in.v_mix),
                               at(result.v_first),
                               channel(in.w0),
                               channel(in.a0),
                               channel(in.v0),
                               channel(in.k_k),
                               channel(in.k_a),
                               channel(in.r_k),
                               channel(in.ln_w),
                               channel(in.ln_b),
                               64e-5f,
                               turning.data(),
                               turning.data(),
                               at(result.y),
                               size_t(in.c)});
        if (halves) round_to_halves(turning);
      }
      turn_back(turning, in.n, state);
    }
  return result;
}

Result on_device(const char* schedule, const Wkv7Inputs& in, Kernel kernel, bool two_calls, bool in_place,
                 Stored format) {
  Device d(schedule);
  Result result{Row(in.r.size()), Row(in.r.size()), in.states};
  const Buffer<float> w0(d, in.w0), a0(d, in.a0), v0(d, in.v0), k_k(d, in.k_k), k_a(d, in.k_a), r_k(d, in.r_k),
      ln_w(d, in.ln_w), ln_b(d, in.ln_b);
  const std::vector<Cut> calls = cuts(two_calls);
  for (size_t call = 0; call < calls.size(); call++) {
    const Cut& cut = calls[call];
    // In the first of two calls only the first and the last sequence take part.
    const std::vector<size_t> who = cut.lengths.size() == 2 ? std::vector<size_t>{0, 2} : std::vector<size_t>{0, 1, 2};
    std::vector<Row> states;
    for (size_t s : who) states.push_back(keeps_halves(kernel) ? in_halves(result.states[s]) : result.states[s]);
    const Sequences batch(d, cut.lengths, states, in_place);
    const int t = batch.rows();
    const auto rows = [&](const Row& x) { return Rows(d, t, in.c, rows_of(x, cut.rows, in.c)); };
    const Rows r = rows(in.r), w = rows(in.w), k = rows(in.k), v = rows(in.v), a = rows(in.a), g = rows(in.g),
               v_mix = rows(in.v_mix), v_first = rows(in.first ? Row(in.v.size(), kNan) : in.v_first);
    const DeviceOperand y(d, format, t, in.c);
    const cuda::Wkv7Params p{r.buffer,
                             w.buffer,
                             k.buffer,
                             v.buffer,
                             a.buffer,
                             g.buffer,
                             in.first ? nullptr : v_mix.buffer.data(),
                             v_first.buffer,
                             r.ld,
                             in.heads,
                             in.n,
                             0,
                             w0,
                             a0,
                             v0,
                             k_k,
                             k_a,
                             r_k,
                             {ln_w, ln_b, 64e-5f},
                             0,
                             y.pointer(),
                             batch.pointers()};
    d.launch(kernel, {in.heads, batch.count(), 1}, &p);
    const Row found = y.dense(), firsts = v_first.dense();
    for (size_t i = 0; i < cut.rows.size(); i++) {
      std::copy_n(found.begin() + int(i) * in.c, in.c, result.y.begin() + cut.rows[i] * in.c);
      std::copy_n(firsts.begin() + int(i) * in.c, in.c, result.v_first.begin() + cut.rows[i] * in.c);
    }
    for (size_t s = 0; s < who.size(); s++) {
      Row& state = result.states[who[s]];
      state = keeps_halves(kernel) ? from_halves(batch.state(s), state.size()) : batch.state(s);
    }
  }
  return result;
}

}  // namespace

TEST(wkv7_agrees_with_the_cpu_and_with_itself_however_the_tokens_are_cut) {
  Random random;
  for (const char* schedule : schedules())
    for (int n : {5, 16, 64})
      for (bool first : {true, false}) {
        const Wkv7Inputs in(random, n, n == 64 ? 1 : 3, first);
        const Result expected = on_cpu(in);
        for (Kernel kernel : {Kernel::wkv7, Kernel::wkv7_64}) {
          if (kernel == Kernel::wkv7_64 && n != 64) continue;
          const Result whole = on_device(schedule, in, kernel, false, false, Stored::f32);
          CHECK(close(whole, expected, 2e-5));
          CHECK(same(on_device(schedule, in, kernel, true, true, Stored::f32), whole));
          const Result halves = on_device(schedule, in, kernel, false, true, Stored::f16);
          CHECK(distance(halves.y, whole.y) < 0x1p-11 && ::same(halves.states[2], whole.states[2]));
        }
      }
}

TEST(wkv7_with_one_key_for_all_and_the_greatest_and_least_decay) {
  Random random;
  for (const char* schedule : schedules())
    for (int n : {16, 64})
      for (float w : {0.0f, -60.0f, 60.0f}) {
        Wkv7Inputs in(random, n, 1, true);
        for (size_t i = 0; i < in.k.size(); i++) in.k[i] = in.k[i % size_t(in.c)], in.w[i] = w, in.a[i] = 60;
        const Result expected = on_cpu(in);
        CHECK(close(on_device(schedule, in, Kernel::wkv7, false, true, Stored::f32), expected, 2e-5));
        if (n == 64) CHECK(close(on_device(schedule, in, Kernel::wkv7_64, false, true, Stored::f32), expected, 2e-5));
        std::fill(in.k.begin(), in.k.end(), 0.0f);
        for (float v : on_device(schedule, in, n == 64 ? Kernel::wkv7_64 : Kernel::wkv7, false, true, Stored::f32).y)
          CHECK(std::isfinite(v));
      }
}

TEST(wkv7_with_a_state_of_halves) {
  Random random;
  for (const char* schedule : schedules())
    for (int n : {5, 16, 64})
      for (bool first : {true, false}) {
        const Wkv7Inputs in(random, n, n == 64 ? 1 : 3, first);
        const Result expected = on_cpu(in, true), wide = on_cpu(in);
        for (Kernel kernel : {Kernel::wkv7_state16, Kernel::wkv7_64_state16}) {
          if (kernel == Kernel::wkv7_64_state16 && n != 64) continue;
          const Result whole = on_device(schedule, in, kernel, false, false, Stored::f32);
          CHECK(close(whole, expected, kOtherHalf));
          for (size_t s = 0; s < 3; s++)
            CHECK(distance(whole.states[s], wide.states[s]) < (kLengths[s] + 1) * kHalfStep);
          CHECK(same(on_device(schedule, in, kernel, true, true, Stored::f32), whole));
        }
      }
}

TEST(what_does_not_fit_a_half_becomes_the_largest) {
  Random random;
  for (const char* schedule : schedules())
    for (int n : {16, 64})
      for (Kernel kernel : {Kernel::wkv7_state16, Kernel::wkv7_64_state16}) {
        if (kernel == Kernel::wkv7_64_state16 && n != 64) continue;
        Wkv7Inputs in(random, n, 1, true);
        for (float& v : in.v) v = v < 0 ? -1e5f : 1e5f;
        const Result found = on_device(schedule, in, kernel, false, true, Stored::f32);
        int most = 0;
        for (const Row& state : found.states)
          for (float v : state) {
            CHECK(std::fabs(v) <= 65504);
            most += std::fabs(v) == 65504;
          }
        CHECK(most > 3 * n * n / 4);
        for (float v : found.y) CHECK(std::isfinite(v));
        // What is not finite is not made finite.
        in.v[0] = kNan;
        const Row spoiled = on_device(schedule, in, kernel, false, true, Stored::f32).states[0];
        for (int i = 0; i < n * n; i++) CHECK(std::isnan(spoiled[size_t(i)]) == (i < n));
      }
}

// ---- RWKV-5 and 6 ----

TEST(wkv6_agrees_with_the_cpu_with_and_without_gate_and_decay_of_its_own) {
  Random random;
  for (const char* schedule : schedules())
    for (int n : {5, 16, 64})
      for (bool six : {true, false})
        for (auto [kernel, in_place] : {std::pair{Kernel::wkv6, true},
                                        {Kernel::wkv6, false},
                                        {Kernel::wkv6_state16, true},
                                        {Kernel::wkv6_state16, false},
                                        {Kernel::wkv6_64, true},
                                        {Kernel::wkv6_64, false},
                                        {Kernel::wkv6_64_state16, true},
                                        {Kernel::wkv6_64_state16, false}}) {
          if (n != 64 && (kernel == Kernel::wkv6_64 || kernel == Kernel::wkv6_64_state16)) continue;
          constexpr int kBefore = 16;  // numbers of a slot in front of the part
          const bool halves = keeps_halves(kernel);
          const int heads = n == 64 ? 1 : 3, c = n * heads;
          Device d(schedule);
          Inputs in{d, random, 15, c};
          const Activations r(in, 1), k(in, 1), v(in, 1), g(in, 2), w(in, 1);
          const Vector decay(in, 1, -1), bonus(in), ln_w(in), ln_b(in);
          std::vector<Row> states;
          for (int s = 0; s < 3; s++) states.push_back(random.row(size_t(kBefore + heads * n * n)));
          std::vector<Row> there = states;
          if (halves) std::ranges::transform(there, there.begin(), in_halves);
          const Sequences batch(d, kLengths, there, in_place);
          const DeviceOperand y(d, Stored::f32, 15, c);
          const cuda::Wkv6Params p{r.device(),
                                   k.device(),
                                   v.device(),
                                   six ? g.device() : nullptr,
                                   six ? w.device() : nullptr,
                                   r.rows.ld,
                                   heads,
                                   n,
                                   0,
                                   decay.buffer,
                                   bonus.buffer,
                                   {ln_w.buffer, ln_b.buffer, 1e-5f},
                                   uint64_t(kBefore * (halves ? 2 : 4)),
                                   y.pointer(),
                                   batch.pointers()};
          d.launch(kernel, {heads, 3, 1}, &p);
          Result found{y.dense(), {}, {}}, expected{Row(r.host.size()), {}, states};
          int begin = 0;
          for (size_t s = 0; s < 3; begin += kLengths[s], s++) {
            const Row state = batch.state(s);
            found.states.push_back(halves ? from_halves(state, states[s].size()) : state);
            if (halves) round_to_halves(expected.states[s]);
            if (!in_place)
              std::fill_n(expected.states[s].begin(), kBefore, 0.0f),
                  std::fill_n(found.states[s].begin(), kBefore, 0.0f);
            for (int h = 0; h < heads; h++) {
              float* state = expected.states[s].data() + kBefore + h * n * n;
              Row turning = turned(state, n);
              const auto step = [&](int t, int count, float* from, float* y) {
                const auto at = [&](const Row& x) { return x.data() + t * c + h * n; };
                choose_kernels().wkv6({n, count, size_t(c), at(r.host), at(k.host), at(v.host),
                                       six ? at(g.host) : nullptr, six ? at(w.host) : nullptr,
                                       decay.host.data() + h * n, bonus.host.data() + h * n, ln_w.host.data() + h * n,
                                       ln_b.host.data() + h * n, 1e-5f, from, from, y, size_t(c)});
              };
              Row wide = turning, unused(size_t(kLengths[s] * c));
              for (int t = begin, count = halves ? 1 : kLengths[s]; t < begin + kLengths[s]; t += count) {
                step(t, count, turning.data(), expected.y.data() + t * c + h * n);
                if (halves) round_to_halves(turning);
              }
              turn_back(turning, n, state);
              if (!halves) continue;
              step(begin, kLengths[s], wide.data(), unused.data());
              Row sum(size_t(n * n));
              turn_back(wide, n, sum.data());
              const float* kept = found.states[s].data() + kBefore + h * n * n;
              CHECK(distance(Row(kept, kept + n * n), sum) < (kLengths[s] + 1) * kHalfStep);
            }
          }
          CHECK(close(found, expected, halves ? kOtherHalf : 2e-5));
        }
}

// ---- RWKV-4 ----

TEST(wkv4_agrees_with_the_cpu_for_keys_of_any_size) {
  Random random;
  for (const char* schedule : schedules())
    for (int c : {1, 40, 200})
      for (float scale : {1.0f, 80.0f}) {
        Device d(schedule);
        Inputs in{d, random, 15, c};
        const Activations r(in, 1), k(in, scale), v(in, 1);
        const Vector decay(in, 1, -2), bonus(in);
        std::vector<Row> states;
        for (int s = 0; s < 3; s++) {
          states.push_back(random.row(size_t(3 * c)));
          for (int i = c; i < 2 * c; i++) states.back()[size_t(i)] += 2;
          if (s == 1)
            std::fill_n(states.back().begin(), 2 * c, 0.0f), std::fill_n(states.back().begin() + 2 * c, c, -1e38f);
        }
        const Sequences batch(d, kLengths, states, true);
        const DeviceOperand y(d, Stored::f32, 15, c);
        const uint64_t part = uint64_t(c) * 4;
        const cuda::Wkv4Params p{r.device(),   k.device(), v.device(), r.rows.ld, c,           decay.buffer,
                                 bonus.buffer, 0,          part,       2 * part,  y.pointer(), batch.pointers()};
        d.launch(Kernel::wkv4, {(rounded_up(c, 64) + 127) / 128, 3, 1}, &p);
        Result found{y.dense(), {}, {}}, expected{Row(r.host.size()), {}, states};
        int begin = 0;
        for (size_t s = 0; s < 3; begin += kLengths[s], s++) {
          found.states.push_back(batch.state(s));
          float* state = expected.states[s].data();
          const auto at = [&](const Row& x) { return x.data() + begin * c; };
          choose_kernels().wkv4({c, kLengths[s], size_t(c), at(r.host), at(k.host), at(v.host), decay.host.data(),
                                 bonus.host.data(), state, state + c, state + 2 * c, state, state + c, state + 2 * c,
                                 expected.y.data() + begin * c, size_t(c)});
        }
        CHECK(close(found, expected, 2e-5));
      }
}

CHECK_MAIN
