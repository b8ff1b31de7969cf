#include "engine/sampling.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "core/error.h"
#include "core/text.h"

namespace rwkv {

namespace {

constexpr std::array<std::string_view, 3> kStyles = {"rwkv", "rapid", "openai"};

// Ids of a list that must be known to the model, in ascending order and each once.
void check_ids(std::string_view name, const std::vector<TokenBias>& list, int n_vocab) {
  int64_t last = -1;
  for (const TokenBias& b : list) {
    RWKV_CHECK(Error, b.token > last && b.token < n_vocab, name, ": expected ascending ids from 0 to ", n_vocab - 1,
               ", found ", b.token);
    RWKV_CHECK(Error, b.bias < INFINITY, name, ": expected a number or -inf for token ", b.token, ", found ", b.bias);
    last = b.token;
  }
}

void check_range(std::string_view name, double value, double low, double high) {
  RWKV_CHECK(Error, value >= low && value <= high, name, ": expected a number from ", low, " to ", high, ", found ",
             value);
}

// Blanks and digits repeat in any text; the `rwkv` package tells them by this.
bool is_exempt(std::string_view bytes) {
  return std::string_view(" \t0123456789").find(bytes) != std::string_view::npos;
}

}  // namespace

std::string_view name_of(PenaltyStyle style) { return kStyles[size_t(style)]; }

std::optional<PenaltyStyle> penalty_style_of(std::string_view name) {
  const auto found = std::ranges::find(kStyles, name);
  if (found == kStyles.end()) return std::nullopt;
  return PenaltyStyle(found - kStyles.begin());
}

void SamplingParams::check(int n_vocab) const {
  constexpr double kMost = 3.4028234e38;
  check_range("temperature", temperature, 0, kMost);
  check_range("top_p", top_p, 0, 1);
  check_range("min_p", min_p, 0, 1);
  check_range("presence_penalty", presence_penalty, -kMost, kMost);
  check_range("frequency_penalty", frequency_penalty, -kMost, kMost);
  check_range("penalty_decay", penalty_decay, 0, 1);
  RWKV_CHECK(Error, top_k >= 0, "top_k: expected 0 or more, found ", top_k);
  RWKV_CHECK(Error, max_tokens >= 0, "max_tokens: expected 0 or more, found ", max_tokens);
  RWKV_CHECK(Error, top_logprobs >= 0 && top_logprobs <= n_vocab, "top_logprobs: expected 0 to ", n_vocab, ", found ",
             top_logprobs);
  check_ids("logit_bias", logit_bias, n_vocab);
  size_t bytes = 0;
  for (const std::string& s : stop) {
    RWKV_CHECK(Error, !s.empty(), "stop: expected text, found an empty string");
    RWKV_CHECK(Error, is_utf8(s), "stop: expected UTF-8, found ", shown(s));
    bytes += s.size();
  }
  RWKV_CHECK(Error, bytes <= kMaxStopBytes, "stop: expected at most ", kMaxStopBytes, " bytes together, found ", bytes);
}

void SamplerState::count(int32_t token, std::string_view bytes, const SamplingParams& params) {
  if (!params.penalizes()) return;
  if (style != PenaltyStyle::openai)
    for (TokenWeight& w : weights) w.weight *= params.penalty_decay;
  auto at = std::ranges::lower_bound(weights, token, {}, &TokenWeight::token);
  if (at == weights.end() || at->token != token) at = weights.insert(at, {token, 0});
  switch (style) {
    case PenaltyStyle::rwkv:
      at->weight += is_exempt(bytes) ? 0 : 1;
      break;
    case PenaltyStyle::rapid:
      at->weight += at->weight == 0 ? params.presence_penalty : params.frequency_penalty;
      break;
    case PenaltyStyle::openai:
      at->weight += 1;
      break;
  }
}

std::vector<TokenBias> SamplerState::bias(const SamplingParams& params) const {
  if (!params.penalizes()) return params.logit_bias;
  std::vector<TokenBias> merged;
  merged.reserve(weights.size() + params.logit_bias.size());
  auto b = params.logit_bias.begin();
  const auto last = params.logit_bias.end();
  for (const TokenWeight& w : weights) {
    for (; b != last && b->token < w.token; ++b) merged.push_back(*b);
    double cost = w.weight;
    if (style != PenaltyStyle::rapid) cost = params.presence_penalty + w.weight * params.frequency_penalty;
    double value = -cost;
    if (b != last && b->token == w.token) value += double(b++->bias);
    merged.push_back({w.token, float(value)});
  }
  merged.insert(merged.end(), b, last);
  return merged;
}

size_t StopStrings::find(std::string_view text, size_t from) const {
  if (strings_.empty()) return std::string_view::npos;
  for (size_t end = from + 1; end <= text.size(); end++) {
    size_t longest = 0;
    for (const std::string& s : strings_)
      if (s.size() > longest && text.substr(0, end).ends_with(s)) longest = s.size();
    if (longest > 0) return end - longest;
  }
  return std::string_view::npos;
}

size_t StopStrings::open(std::string_view text) const {
  size_t longest = 0;
  for (const std::string& s : strings_)
    for (size_t n = std::min(s.size() - 1, text.size()); n > longest; n--)
      if (text.ends_with(std::string_view(s).substr(0, n))) longest = n;
  return longest;
}

}  // namespace rwkv
