// The lists of a call of Engine::forward. They grow to what the largest call needs and are used again, so that a step
// allocates nothing.
#pragma once
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "engine/state.h"

namespace rwkv {

struct Lists {
  std::vector<const State*> states;
  std::vector<State::Use> uses;
  // For each sequence what its state gets: the slot, and room for its logits.
  std::vector<std::shared_ptr<StateSlot>> target;
  std::vector<std::shared_ptr<Logits>> logits;
  // Of one panel of rows, as Batch has them.
  std::vector<int32_t> token, start;
  std::vector<const std::byte*> src;
  std::vector<std::byte*> dst;
  std::vector<int32_t> out;    // rows of which something is wanted
  std::vector<size_t> ending;  // for each of these the sequence that ends with it, or how many there are

  void clear_panel() { token.clear(), start.clear(), src.clear(), dst.clear(), out.clear(), ending.clear(); }
  void clear() { states.clear(), uses.clear(), target.clear(), logits.clear(), clear_panel(); }
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
