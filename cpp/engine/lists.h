// The lists of a call of Engine::forward. They grow to what the largest call needs and are used again, so that a step
// allocates nothing.
#pragma once
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "engine/state.h"
#include "engine/state_pool.h"
#include "model/adapted.h"

namespace rwkv {

// Of one panel of rows.
struct Panel {
  std::vector<int32_t> token, start, rows;
  std::vector<size_t> ending;          // for each of `rows` the sequence that ends with it, or their number
  std::vector<size_t> place;           // and where it goes, in rows of the result
  std::vector<const StateSlot*> from;  // of each sequence
  std::vector<const StateSlot*> to;
  std::vector<AdaptedRows> adapted;   // their rows, where they have adapters
  std::vector<const std::byte*> src;  // (stages, sequences)
  std::vector<std::byte*> dst;
  std::vector<float> embeddings;  // of the rows, where there are no tokens
  std::vector<Batch> batches;     // (stages)

  void reserve(size_t most_rows, size_t sequences, size_t stages) {
    token.reserve(most_rows), rows.reserve(most_rows), ending.reserve(most_rows), place.reserve(most_rows);
    start.reserve(sequences + 1), from.reserve(sequences), to.reserve(sequences), adapted.reserve(sequences);
    src.reserve(stages * sequences), dst.reserve(stages * sequences);
    batches.resize(stages);
  }
  void clear() {
    token.clear(), start.clear(), rows.clear(), ending.clear(), from.clear(), to.clear(), adapted.clear();
    place.clear(), embeddings.clear();
  }
  void begin(const StateSlot& before, const StateSlot& after) {
    start.push_back(int32_t(token.size()));
    from.push_back(&before), to.push_back(&after);
  }
  // Of `count` rows that come next.
  void adapt(const AdapterWeights* adapter, size_t count) {
    if (!adapter) return;
    const int first = int(token.size());
    if (!adapted.empty() && adapted.back().adapter == adapter && adapted.back().first + adapted.back().count == first)
      adapted.back().count += int(count);
    else
      adapted.push_back({first, int(count), adapter});
  }
  // Once all sequences are there.
  std::span<const Batch> finish() {
    start.push_back(int32_t(token.size()));
    const size_t n = from.size();
    src.clear(), dst.clear();
    for (size_t stage = 0; stage < batches.size(); stage++) {
      for (const StateSlot* slot : from) src.push_back(slot->data(stage));
      for (const StateSlot* slot : to) dst.push_back(slot->data(stage));
      batches[stage] = {token, start, std::span(src).last(n), std::span(dst).last(n), rows, embeddings};
    }
    return batches;
  }
};

struct Lists {
  std::vector<const State*> states;
  std::vector<State::Use> uses;
  std::vector<size_t> order;  // in which the sequences are taken
  std::vector<size_t> first;  // the first row of the result that is each one's
  // For each sequence what its state gets: the slot, and room for its logits.
  std::vector<std::shared_ptr<StateSlot>> target;
  std::vector<std::shared_ptr<Logits>> logits;
  Panel panel;

  void clear() {
    states.clear(), uses.clear(), order.clear(), first.clear(), target.clear(), logits.clear(), panel.clear();
  }
  std::unique_ptr<Lists> next = nullptr;
};

// As many as there were ever calls at a time.
class ListsPool {
 public:
  // Takes lists for as long as it lives. What is in them then is let go of.
  class Use {
   public:
    explicit Use(ListsPool& pool) : pool_(pool) {
      const std::lock_guard lock(pool.mutex_);
      if ((lists_ = std::move(pool.free_)))
        pool.free_ = std::move(lists_->next);
      else
        lists_ = std::make_unique<Lists>();
    }
    ~Use() {
      lists_->clear();
      const std::lock_guard lock(pool_.mutex_);
      lists_->next = std::move(pool_.free_);
      pool_.free_ = std::move(lists_);
    }
    Use(const Use&) = delete;
    Lists* operator->() const { return lists_.get(); }

   private:
    ListsPool& pool_;
    std::unique_ptr<Lists> lists_;
  };

 private:
  std::mutex mutex_;
  std::unique_ptr<Lists> free_;
};

}  // namespace rwkv
