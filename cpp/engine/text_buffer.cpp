#include "engine/text_buffer.h"

#include <algorithm>

namespace rwkv {

namespace {

constexpr size_t kUndecided = std::string::npos;
constexpr size_t kKeptStates = 8;  // that one text may hold beyond what the caller has

}  // namespace

TextBuffer::TextBuffer(std::shared_ptr<const Tokenizer> tokenizer, const std::vector<std::string>& stop,
                       const SamplerState& sampler)
    : decoder_(std::move(tokenizer), sampler.pending), stops_(stop), window_(sampler.tail) {}

TextBuffer::Addition TextBuffer::consider(int32_t token) const {
  Addition a{decoder_, {}, std::string::npos};
  a.text = a.decoder.put(token);
  a.stop = stops_.find(window_ + a.text, window_.size());
  return a;
}

TextBuffer::Addition TextBuffer::consider_end() const {
  Addition a{decoder_, {}, std::string::npos};
  a.text = a.decoder.finish();
  a.stop = stops_.find(window_ + a.text, window_.size());
  return a;
}

void TextBuffer::add(Addition&& addition, Piece&& piece, StateContents after) {
  // Whoever waits behind many others is stepped once more when its turn comes, rather than keep a state.
  if (steps_.size() >= kKeptStates) steps_.back().after.slot = nullptr, steps_.back().after.last_logits = nullptr;
  const size_t begin = window_.size();
  window_ += addition.text;
  decoder_ = std::move(addition.decoder);
  // A stop string may begin with a character that is not whole yet. What comes decides about all tokens before it.
  const bool whole = stops_.empty() || decoder_.pending().empty();
  if (whole || !addition.text.empty())
    for (size_t i = certain_; i < steps_.size(); i++)
      if (steps_[i].end == kUndecided) steps_[i].end = window_.size();
  piece.text = std::move(addition.text);
  steps_.push_back({std::move(piece), std::move(after), begin, whole ? window_.size() : kUndecided});
  if (addition.stops()) return cut(addition.stop);
  release(stops_.open(window_));
}

void TextBuffer::cut(size_t stop) {
  while (steps_.size() > certain_ && steps_.back().begin >= stop) steps_.pop_back();
  for (size_t i = certain_; i < steps_.size(); i++) {
    Step& s = steps_[i];
    const size_t end = s.begin + s.piece.text.size();
    if (end <= stop) continue;
    s.piece.text.resize(stop - s.begin);
    remember(s, stop, end);
  }
  certain_ = steps_.size();
}

void TextBuffer::flush() {
  const size_t open = window_.size() - stops_.open(window_);
  for (size_t i = certain_; i < steps_.size(); i++) {
    const size_t end = steps_[i].begin + steps_[i].piece.text.size();
    if (end > open) remember(steps_[i], open, end);
  }
  certain_ = steps_.size();
}

// Text that goes on from a step knows in what of it a stop string has begun.
void TextBuffer::remember(Step& step, size_t begin, size_t end) const {
  if (!step.after.sampler) return;
  auto sampler = std::make_shared<SamplerState>(*step.after.sampler);
  sampler->tail = window_.substr(begin, end - begin);
  step.after.sampler = std::move(sampler);
}

void TextBuffer::release(size_t open) {
  const size_t safe = window_.size() - open;
  while (certain_ < steps_.size() && steps_[certain_].end <= safe) certain_++;
  const size_t gone = certain_ < steps_.size() ? std::min(steps_[certain_].begin, safe) : safe;
  window_.erase(0, gone);
  for (size_t i = certain_; i < steps_.size(); i++) {
    steps_[i].begin -= gone;
    if (steps_[i].end != kUndecided) steps_[i].end -= gone;
  }
}

TextBuffer::Step TextBuffer::take() {
  Step step = std::move(steps_.front());
  steps_.pop_front();
  certain_--;
  return step;
}

}  // namespace rwkv
