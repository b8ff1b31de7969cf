// How the next token of a text is chosen and when the text ends, and what a text needs beside its context to go on
// exactly.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "backend/backend.h"

namespace rwkv {

// What tokens already written cost, after Albatross's rapid sampler, OpenAI's API and the `rwkv` package. A token t is
// written at every step, w is its weight, and the logit of every token seen loses
//   rwkv:   presence + w * frequency, with w *= decay for all and then w[t] += 1 (0 if t is blank or digits)
//   rapid:  w,                        with w *= decay for all and then w[t] += presence if w[t] was 0, else frequency
//   openai: presence + w * frequency, with w[t] += 1
enum class PenaltyStyle : uint8_t { rwkv, rapid, openai };

struct SamplingParams {
  float temperature = 1, top_p = 0.85f, min_p = 0;  // as in SampleJob
  int top_k = 0;
  PenaltyStyle penalty_style = PenaltyStyle::rwkv;
  double presence_penalty = 0, frequency_penalty = 0, penalty_decay = 0.996;
  std::optional<uint64_t> seed;       // none: the text's own, if it goes on, or a random one
  std::vector<std::string> stop;      // UTF-8, none empty; together at most kMaxStopBytes
  std::vector<int32_t> stop_tokens;   // beside token 0
  std::vector<TokenBias> logit_bias;  // ascending tokens
  int64_t max_tokens = 256;
  bool ignore_eos = false;  // token 0 is a token like any other
  int top_logprobs = 0;
  bool process_logits = false;  // ask the caller's function before each draw

  static constexpr size_t kMaxStopBytes = 1 << 16;
  void check(int n_vocab) const;  // throws Error
  bool penalizes() const { return presence_penalty != 0 || frequency_penalty != 0; }
};

struct TokenWeight {
  int32_t token;
  double weight;
};

struct SamplerState {
  uint64_t seed = 0;  // the counter is the position: the state's tokens_seen
  PenaltyStyle style = PenaltyStyle::rwkv;
  std::vector<TokenWeight> weights;  // ascending tokens
  std::string pending;               // the beginning of a character, whose other bytes are to come
  std::string tail;                  // the end of what was written, if a stop string has or may have begun in it

  // Takes account of a token just written.
  void count(int32_t token, std::string_view bytes, const SamplingParams& params);
  // What the penalties and params.logit_bias add to the logits.
  std::vector<TokenBias> bias(const SamplingParams& params) const;
};

std::string_view name_of(PenaltyStyle style);
std::optional<PenaltyStyle> penalty_style_of(std::string_view name);

// The first stop string in a text that grows: the first to be complete, and of those complete at once the longest.
class StopStrings {
 public:
  explicit StopStrings(const std::vector<std::string>& strings) : strings_(strings) {}
  bool empty() const { return strings_.empty(); }
  // Where in `text` it begins if it ends behind byte `from`, else npos.
  size_t find(std::string_view text, size_t from) const;
  // How many bytes at the end of `text` may be the beginning of one.
  size_t open(std::string_view text) const;

 private:
  const std::vector<std::string>& strings_;
};

}  // namespace rwkv
