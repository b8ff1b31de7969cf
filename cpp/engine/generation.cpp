#include "engine/generation.h"

#include <algorithm>
#include <random>
#include <set>

namespace rwkv {

namespace {

constexpr int32_t kEndOfDocument = 0;

uint64_t random_seed() {
  std::random_device device;
  return uint64_t{device()} << 32 | device();
}

// What a text draws with: its own again if it goes on, else a new beginning.
SamplerState first_sampler(const SamplingParams& params, const StateContents& contents, bool goes_on) {
  SamplerState sampler;
  if (goes_on && contents.sampler)
    sampler = *contents.sampler;
  else
    sampler.seed = random_seed();
  if (params.seed) sampler.seed = *params.seed;
  if (sampler.style != params.penalty_style) sampler.weights.clear();  // they mean nothing to another style
  sampler.style = params.penalty_style;
  return sampler;
}

}  // namespace

class Generation::Entry {
 public:
  explicit Entry(Generation& generation) : entered_(generation.entered_) {
    RWKV_CHECK(ConcurrentUseError, !entered_.exchange(true), "expected one call of a generation at a time, found a ",
               "second while the first runs");
  }
  ~Entry() { entered_ = false; }
  Entry(const Entry&) = delete;

 private:
  std::atomic<bool>& entered_;
};

struct Generation::Text {
  std::shared_ptr<State> handle;  // the caller's
  StateContents shown;            // behind the last piece handed over
  std::shared_ptr<State> live;    // behind the last token
  const SamplingParams& params;
  std::shared_ptr<const SamplerState> sampler;
  TextBuffer buffer;
  std::vector<int32_t> written = {};
  Finish finish = Finish::none;

  // The request has been read into `contents`.
  Text(std::shared_ptr<State> state, StateContents contents, const SamplingParams& p,
       std::shared_ptr<const Tokenizer> tokenizer)
      : handle(std::move(state)),
        shown(std::move(contents)),
        live(std::make_shared<State>(handle->engine(), shown)),
        params(p),
        sampler(shown.sampler),
        buffer(std::move(tokenizer), p.stop, *sampler) {
    if (params.max_tokens == 0) finish = Finish::length;
    // Whoever goes on with a text that a stop string has ended finds it ended.
    if (StopStrings(params.stop).find(sampler->tail, 0) != std::string::npos) finish = Finish::stop;
  }

  bool stops_at(int32_t token) const {
    return (token == kEndOfDocument && !params.ignore_eos) ||
           std::ranges::find(params.stop_tokens, token) != params.stop_tokens.end();
  }

  void end(Finish reason) {
    if (reason == Finish::stop) {
      TextBuffer::Addition rest = buffer.consider_end();
      if (!rest.text.empty() && (!rest.stops() || buffer.begins_before_stop(rest))) {
        StateContents after = live->contents();
        auto without = std::make_shared<SamplerState>(*sampler);
        without->pending.clear();
        after.sampler = std::move(without);
        buffer.add(std::move(rest), {}, std::move(after));
      } else if (rest.stops()) {
        buffer.cut(rest.stop);
      }
    }
    buffer.flush();
    finish = reason;
  }
};

Generation::Generation(std::shared_ptr<Engine> engine, std::shared_ptr<const Tokenizer> tokenizer,
                       std::vector<TextRequest> requests)
    : engine_(std::move(engine)), tokenizer_(std::move(tokenizer)), requests_(std::move(requests)) {
  std::set<const State*> seen;
  for (const TextRequest& r : requests_) {
    RWKV_CHECK(StateError, r.state && r.state->engine() == engine_,
               "expected a state of this engine, found one of another");
    RWKV_CHECK(StateError, seen.insert(r.state.get()).second,
               "expected every state once in a batch, found one twice; fork() gives a second handle");
    r.params.check(engine_->config().n_vocab);
    RWKV_CHECK(Error, r.count >= 1, "n: expected 1 or more, found ", r.count);
  }
}

Generation::~Generation() = default;

int64_t Generation::prompt_tokens(size_t request) const { return int64_t(requests_[request].prompt.size()); }
size_t Generation::count() const { return texts_.size(); }
Finish Generation::finish(size_t text) const { return texts_[text]->finish; }
const std::shared_ptr<State>& Generation::state(size_t text) const { return texts_[text]->handle; }

void Generation::prepare(std::vector<StateContents> contents, const Poll& poll, const Progress& progress) {
  texts_.clear(), after_prompt_.clear();  // of an attempt that failed
  std::vector<std::unique_ptr<State>> live;
  std::vector<Sequence> sequences;
  for (size_t i = 0; i < requests_.size(); i++) {
    TextRequest& r = requests_[i];
    StateContents& c = contents[i];
    auto sampler = std::make_shared<SamplerState>(first_sampler(r.params, c, r.prompt.empty()));
    if (r.prompt.empty() && !c.last_logits) {
      RWKV_CHECK(StateError, c.tokens_seen == 0, "prompt: expected at least one token, found none, and the state ",
                 "has no last logits (its last call asked for none)");
      r.prompt = {kEndOfDocument};
    }
    live.push_back(std::make_unique<State>(engine_, c));
    if (r.prompt.empty())
      live.back()->contents_.sampler = std::move(sampler);
    else
      sequences.push_back({r.prompt, live.back().get(), std::move(sampler)});
  }
  if (!sequences.empty()) {
    engine_->forward(sequences, Output::last, {}, poll, progress);
  }
  for (size_t i = 0; i < requests_.size(); i++) {
    const TextRequest& r = requests_[i];
    const StateContents& read = after_prompt_.emplace_back(live[i]->contents());
    for (int k = 0; k < r.count; k++) {
      StateContents begin = read;
      if (k > 0) {
        auto sampler = std::make_shared<SamplerState>(*read.sampler);
        sampler->seed += uint64_t(k);
        begin.sampler = std::move(sampler);
      }
      auto handle = r.count == 1 ? r.state : std::make_shared<State>(engine_, begin);
      texts_.push_back(std::make_unique<Text>(std::move(handle), std::move(begin), r.params, tokenizer_));
    }
  }
}

void Generation::read(const Poll& poll, const Progress& progress) {
  const Entry entry(*this);
  std::vector<StateContents> before;
  for (const TextRequest& r : requests_) before.push_back(r.state->contents());
  prepare(before, poll, progress);
  std::vector<State::Advance> read;
  for (size_t i = 0; i < requests_.size(); i++) read.push_back({*requests_[i].state, before[i], after_prompt_[i]});
  State::advance(read);
}

// One token for every text that has not ended. Nothing of a text changes before its step has succeeded.
void Generation::step(const Poll& poll, const Process& process) {
  struct Draft {
    Text& text;
    StateContents before;  // keeps the logits
    std::vector<float> processed = {};
    std::vector<TokenBias> bias = {};
    Piece piece = {};
    std::optional<TextBuffer::Addition> addition = {};
  };
  std::vector<Draft> drafts;
  for (auto& text : texts_)
    if (text->finish == Finish::none) drafts.push_back({*text, text->live->contents()});

  std::vector<SampleJob> jobs;
  for (Draft& d : drafts) {
    const SamplingParams& p = d.text.params;
    const Logits& last = *d.before.last_logits;
    const auto n = int64_t(last.size());
    Tensor logits{nullptr, DType::f32, 1, n, n};
    if (p.process_logits) {
      d.processed.assign(last.data(), last.data() + n);
      process(size_t(std::ranges::find(texts_, &d.text, &std::unique_ptr<Text>::get) - texts_.begin()), d.text.written,
              d.processed);
      logits.data = d.processed.data();
    } else {
      logits.data = last.on_device() ? const_cast<std::byte*>(last.on_device())
                                     : static_cast<void*>(const_cast<float*>(last.data()));
    }
    d.bias = d.text.sampler->bias(p);
    d.piece.top.resize(size_t(p.top_logprobs));
    jobs.push_back({.logits = logits,
                    .temperature = p.temperature,
                    .top_p = p.top_p,
                    .top_k = p.top_k,
                    .min_p = p.min_p,
                    .seed = d.text.sampler->seed,
                    .counter = uint64_t(d.before.tokens_seen),
                    .bias = d.bias,
                    .top = d.piece.top,
                    .on_device = !p.process_logits && last.on_device() != nullptr});
  }
  const auto drawn = engine_->sample(jobs, poll);

  std::vector<Sequence> sequences;
  std::vector<Draft*> stepped;
  for (size_t i = 0; i < drafts.size(); i++) {
    Draft& d = drafts[i];
    d.piece.token = drawn[i].token;
    d.piece.logprob = drawn[i].logprob;
    if (d.text.stops_at(d.piece.token)) {
      d.text.end(Finish::stop);
      continue;
    }
    d.addition = d.text.buffer.consider(d.piece.token);
    if (d.addition->stops() && !d.text.buffer.begins_before_stop(*d.addition)) {
      d.text.buffer.cut(d.addition->stop);
      d.text.finish = Finish::stop;
      continue;
    }
    auto sampler = std::make_shared<SamplerState>(*d.text.sampler);
    sampler->count(d.piece.token, tokenizer_->bytes_of(d.piece.token), d.text.params);
    sampler->pending = d.addition->decoder.pending();
    sampler->tail.clear();
    sequences.push_back({std::span(&d.piece.token, 1), d.text.live.get(), std::move(sampler)});
    stepped.push_back(&d);
  }
  if (sequences.empty()) return;
  engine_->forward(sequences, Output::last, {}, poll);

  for (Draft* d : stepped) {
    Text& text = d->text;
    const bool stops = d->addition->stops();
    StateContents after = text.live->contents();
    text.sampler = after.sampler;
    text.written.push_back(d->piece.token);
    text.buffer.add(std::move(*d->addition), std::move(d->piece), std::move(after));
    if (stops)
      text.finish = Finish::stop;
    else if (int64_t(text.written.size()) >= text.params.max_tokens)
      text.end(Finish::length);
  }
}

Piece Generation::hand_over(Text& text, const Poll& poll) {
  if (TextBuffer::Step& next = text.buffer.front(); !next.after.slot) {
    State state(engine_, text.shown);
    const Sequence sequence{std::span(&next.piece.token, 1), &state, next.after.sampler};
    engine_->forward(std::span(&sequence, 1), Output::last, {}, poll);
    next.after = state.contents();
  }
  TextBuffer::Step step = text.buffer.take();
  text.shown = std::move(step.after);
  return std::move(step.piece);
}

std::optional<Piece> Generation::next(size_t index, const Poll& poll, const Process& process) {
  const Entry entry(*this);
  Text& text = *texts_[index];
  while (text.buffer.empty()) {
    if (text.finish != Finish::none) return std::nullopt;
    step(poll, process);
  }
  const State::Use use(*text.handle);  // from here on, so that a piece is handed over with its state or is the next
  text.handle->check_at(text.shown);
  Piece piece = hand_over(text, poll);
  text.handle->contents_ = text.shown;
  return piece;
}

std::vector<std::vector<Piece>> Generation::run(const Poll& poll, const Progress& progress, const Process& process) {
  const Entry entry(*this);
  std::vector<State::Use> uses;
  std::vector<StateContents> before;
  for (const TextRequest& r : requests_) {
    uses.emplace_back(*r.state);
    before.push_back(r.state->contents_);
  }
  prepare(std::move(before), poll, progress);
  std::vector<std::vector<Piece>> pieces(texts_.size());
  for (;;) {
    bool ended = true;
    for (size_t i = 0; i < texts_.size(); i++) {
      while (!texts_[i]->buffer.empty()) pieces[i].push_back(hand_over(*texts_[i], poll));
      ended &= texts_[i]->finish != Finish::none;
    }
    if (ended) break;
    step(poll, process);
  }
  for (size_t i = 0; i < requests_.size(); i++) requests_[i].state->contents_ = after_prompt_[i];
  for (auto& text : texts_) text->handle->contents_ = text->shown;
  return pieces;
}

}  // namespace rwkv
