// What a model makes of tokens that are there: rows of logits become two numbers each where they lie, a few at a time,
// so that no text is too long.
#include <algorithm>

#include "engine/engine.h"
#include "model/model.h"

namespace rwkv {

namespace {

constexpr size_t kTogether = 32;  // sequences, and so states, of one step

// One job for each token, whose row of logits is set.
void ask(const std::function<void(std::span<const SampleJob>, std::span<TokenLogprob>)>& sample,
         std::vector<SampleJob>& jobs, std::span<TokenScore> scores) {
  std::vector<TokenLogprob> best(jobs.size()), found(jobs.size());
  for (size_t i = 0; i < jobs.size(); i++) jobs[i].top = std::span(&best[i], 1);
  sample(jobs, found);
  for (size_t i = 0; i < jobs.size(); i++) scores[i] = {found[i].logprob, best[i].token == found[i].token};
}

}  // namespace

std::vector<std::vector<TokenScore>> Engine::score(std::span<const Sequence> sequences, const Poll& poll,
                                                   const Progress& progress, bool advance) {
  check_process();
  RWKV_CHECK(Error, !advance || sequences.size() <= kTogether, "score: expected at most ", kTogether,
             " sequences whose states advance, found ", sequences.size());
  if (advance) {
    std::vector<const State*> states;
    for (const Sequence& s : sequences) states.push_back(s.state);
    check_once(states);
  }
  std::vector<std::vector<TokenScore>> scores(sequences.size());
  int64_t total = 0, before = 0;
  for (const Sequence& s : sequences) {
    check_mine(*s.state);
    RWKV_CHECK(Error, s.embeddings.empty(), "score: expected tokens, found embeddings");
    check_tokens(s.tokens);
    total += std::max(int64_t(s.tokens.size()) - 1, int64_t{0});
  }
  for (size_t at = 0; at < sequences.size(); at += kTogether) {
    const size_t count = std::min(kTogether, sequences.size() - at);
    int64_t read = 0;
    const auto report = [&](int64_t done, int64_t) {
      read = done;
      if (progress) progress(before + done, total);
    };
    score_some(sequences.subspan(at, count), std::span(scores).subspan(at, count), poll, report, advance);
    before += read;
  }
  return scores;
}

void Engine::score_some(std::span<const Sequence> sequences, std::span<std::vector<TokenScore>> scores,
                        const Poll& poll, const Progress& progress, bool advance) {
  // States that advance are held from the first look at them until they have what was made of it.
  std::vector<State::Use> held;
  for (const Sequence& s : sequences.first(advance ? sequences.size() : 0)) held.emplace_back(*s.state);
  std::vector<StateContents> contents;                          // keep the logits
  std::vector<std::unique_ptr<State>> forks(sequences.size());  // of those that are read
  std::vector<Sequence> read;
  std::vector<SampleJob> first;
  std::vector<int32_t> following;
  for (size_t i = 0; i < sequences.size(); i++) {
    const Sequence& s = sequences[i];
    const StateContents& c = contents.emplace_back(advance ? s.state->contents_ : s.state->contents());
    if (s.tokens.empty()) continue;
    if (c.last_logits) {
      const auto n = int64_t(c.last_logits->size());
      const bool on_device = c.last_logits->on_device() != nullptr;
      const void* data = c.last_logits->on_device();
      if (!on_device) data = c.last_logits->data();
      first.push_back({.logits = {const_cast<void*>(data), DType::f32, 1, n, n},
                       .temperature = 0,
                       .on_device = on_device,
                       .given = s.tokens[0]});
    }
    if (s.tokens.size() < 2) continue;
    forks[i] = std::make_unique<State>(shared_from_this(), c);
    read.push_back({s.tokens.first(s.tokens.size() - 1), forks[i].get()});
    following.insert(following.end(), s.tokens.begin() + 1, s.tokens.end());
  }

  std::vector<TokenScore> firsts(first.size()), others(following.size());
  if (!first.empty()) {
    const auto sample = [&](std::span<const SampleJob> jobs, std::span<TokenLogprob> found) {
      std::ranges::copy(this->sample(jobs, poll), found.begin());
    };
    ask(sample, first, firsts);
  }
  if (!read.empty()) {
    Backend& device = *model_->stages().back().backend;
    const bool on_device = device.device().kind != DeviceId::cpu;
    const auto sample = [&](std::span<const SampleJob> jobs, std::span<TokenLogprob> found) {
      device.sample(jobs, found);
    };
    size_t done = 0;
    const auto look = [&](const Tensor& rows) {
      std::vector<SampleJob> jobs;
      for (int64_t i = 0; i < rows.rows; i++)
        jobs.push_back({.logits = {rows.row(i), DType::f32, 1, rows.cols, rows.cols},
                        .temperature = 0,
                        .on_device = on_device,
                        .given = following[done + size_t(i)]});
      ask(sample, jobs, std::span(others).subspan(done, jobs.size()));
      done += jobs.size();
    };
    step(read, {.output = Output::all, .look = std::ref(look)}, poll, progress);
  }

  auto next_first = firsts.begin(), next = others.begin();
  for (size_t i = 0; i < sequences.size(); i++) {
    const size_t count = sequences[i].tokens.size();
    if (count == 0) continue;
    if (contents[i].last_logits) scores[i].push_back(*next_first++);
    scores[i].insert(scores[i].end(), next, next + std::ptrdiff_t(count - 1));
    next += std::ptrdiff_t(count - 1);
  }
  for (size_t i = 0; advance && i < sequences.size(); i++)
    if (forks[i]) sequences[i].state->contents_ = std::move(forks[i]->contents_);
}

}  // namespace rwkv
