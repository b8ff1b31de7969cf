// The pool of states: memory that many states took is given back when they are gone, and what steps need stays.
#include "engine/state_pool.h"

#include <algorithm>
#include <thread>
#include <vector>

#include "check.h"
#include "remote_backend.h"

namespace {

using namespace rwkv;
using remote::RemoteBackend;
using Slots = std::vector<std::shared_ptr<StateSlot>>;

constexpr int64_t kMiB = 1 << 20;

// Slots of so many bytes, which nobody looks at.
std::shared_ptr<StatePool> pool_of(int64_t bytes) {
  StatePool::Stage stage{std::make_shared<RemoteBackend>(1, DeviceOptions{.threads = 1}), {}};
  stage.layout.slot_bytes = size_t(bytes);
  return std::make_shared<StatePool>(std::vector{stage});
}

int64_t held() { return RemoteBackend::held; }

Slots take(StatePool& pool, int count) {
  Slots slots;
  for (int i = 0; i < count; i++) slots.push_back(pool.take());
  return slots;
}

}  // namespace

TEST(memory_of_many_states_is_given_back) {
  for (int64_t bytes : {kMiB / 4, 3 * kMiB, 32 * kMiB}) {
    const auto pool = pool_of(bytes);
    const int count = int(1024 * kMiB / bytes);
    Slots slots = take(*pool, count);
    CHECK(held() >= int64_t(count) * bytes && held() <= 1200 * kMiB);
    slots.clear();
    CHECK(held() >= int64_t(StatePool::kKept) && held() <= int64_t(StatePool::kKept) + 64 * kMiB);
    slots = take(*pool, count);  // and can be taken again
    CHECK(held() >= int64_t(count) * bytes);
  }
  CHECK(held() == 0);
}

TEST(slots_are_different_and_stay) {
  const auto pool = pool_of(3 * kMiB);
  Slots slots = take(*pool, 300);
  std::vector<std::byte*> places;
  for (size_t i = 0; i < slots.size(); i += 2) slots[i].reset();
  for (const auto& slot : slots)
    if (slot) places.push_back(slot->data(0));
  for (const auto& slot : take(*pool, 200)) places.push_back(slot->data(0));
  std::ranges::sort(places);
  for (size_t i = 1; i < 150; i++) CHECK(places[i] - places[i - 1] != 0);
}

TEST(steps_of_all_states_allocate_nothing) {
  const auto pool = pool_of(40 * kMiB);  // a slab for each
  Slots states = take(*pool, 12);
  int64_t most = 0, least = 0;
  for (int step = 0; step < 5; step++) {
    Slots next = take(*pool, 12);
    if (step == 1) most = least = held();
    states = std::move(next);
    most = std::max(most, held()), least = std::min(least, held());
  }
  CHECK(most == least && most == 24 * 40 * kMiB);
}

TEST(threads_may_take_and_give_back) {
  const auto pool = pool_of(5 * kMiB);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; t++)
    threads.emplace_back([&, t] {
      for (int i = 0; i < 200; i++) take(*pool, (t * 7 + i) % 40);
    });
  for (auto& thread : threads) thread.join();
  CHECK(held() <= int64_t(StatePool::kKept) + 64 * kMiB);
}

int main(int argc, char** argv) { return check::run(argc, argv); }
