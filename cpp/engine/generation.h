// From prompts to texts: reads the prompts in one call, forks the states of those that want several texts, then draws a
// token for every text and steps them all together, until each has ended.
#pragma once
#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "engine/sampling.h"
#include "engine/text_buffer.h"

namespace rwkv {

enum class Finish { none, stop, length };

struct TextRequest {
  std::vector<int32_t> prompt;  // empty: go on from the state's last logits; a new state reads token 0 instead
  std::shared_ptr<State> state;
  SamplingParams params;
  int count = 1;  // texts; text i draws with the seed + i
};

// A text's handle always stands behind the last piece that was handed over, whatever has been computed beyond it. With
// count 1 it is the request's own state; otherwise each text has a fork, and the request's state takes in the prompt.
class Generation {
 public:
  // Changes the logits of text i, given the tokens it has written.
  using Process = std::function<void(size_t text, std::span<const int32_t> written, std::span<float> logits)>;

  Generation(std::shared_ptr<Engine> engine, std::shared_ptr<const Tokenizer> tokenizer,
             std::vector<TextRequest> requests);
  ~Generation();

  size_t count() const;  // texts, once the prompts are read
  int64_t prompt_tokens(size_t request) const;

  void read(const Poll& poll = {}, const Progress& progress = {});  // the prompts; once, before everything else
  // The next piece of a text, or none when it has ended. After an error it may be asked again. Draws and steps all
  // texts until there is one.
  std::optional<Piece> next(size_t text, const Poll& poll = {}, const Process& process = {});
  // All of every text. On any error the requests' states are as they were before read().
  std::vector<std::vector<Piece>> run(const Poll& poll = {}, const Progress& progress = {},
                                      const Process& process = {});
  Finish finish(size_t text) const;
  const std::shared_ptr<State>& state(size_t text) const;

 private:
  struct Text;
  class Entry;  // one call at a time

  void prepare(std::vector<StateContents> contents, const Poll& poll, const Progress& progress);
  void step(const Poll& poll, const Process& process);
  Piece hand_over(Text& text, const Poll& poll);

  std::shared_ptr<Engine> engine_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::vector<TextRequest> requests_;
  std::vector<StateContents> after_prompt_;  // of each request
  std::vector<std::unique_ptr<Text>> texts_;
  std::atomic<bool> entered_{false};
};

}  // namespace rwkv
