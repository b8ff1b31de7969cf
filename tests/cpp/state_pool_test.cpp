// The pool of states: memory that many states took is given back when they are gone, and what steps need stays.
#include "engine/state_pool.h"

#include <algorithm>
#include <array>
#include <map>
#include <random>
#include <set>
#include <thread>
#include <vector>

#include "check.h"
#include "remote_backend.h"

namespace {

using namespace rwkv;
using remote::RemoteBackend;
using Slots = std::vector<std::shared_ptr<StateSlot>>;

constexpr int64_t kMiB = 1 << 20;

// A device that knows what it has given out: bytes by where they begin.
class Watched final : public RemoteBackend {
 public:
  static inline std::map<std::byte*, int64_t> blocks;

  Watched() : RemoteBackend(1, DeviceOptions{.threads = 1}) {}
  Memory allocate(size_t bytes) override {
    const Memory memory = RemoteBackend::allocate(bytes);
    blocks[memory.data.get()] = int64_t(bytes);
    return {std::shared_ptr<std::byte>(memory.data.get(), [memory](std::byte* p) { blocks.erase(p); }), bytes};
  }
};

// Slots of so many bytes, which nobody looks at.
std::shared_ptr<StatePool> pool_of(int64_t bytes, const std::shared_ptr<Backend>& device =
                                                      std::make_shared<RemoteBackend>(1, DeviceOptions{.threads = 1})) {
  StatePool::Stage stage{device, {}};
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

// After each of many calls everything is counted anew from the places of the slots that somebody has: each lies by
// itself in memory that is still there, slabs come only when nothing is free and go as soon as they may.
TEST(random_calls_are_those_of_a_plain_count) {
  const auto& blocks = Watched::blocks;
  std::mt19937 random(1);
  for (int round = 0; round < 16; round++) {
    const int64_t bytes = std::array{kMiB, 3 * kMiB, 13 * kMiB, 40 * kMiB}[size_t(round % 4)];
    const bool oldest_first = round / 4 % 2 == 0;
    const auto pool = pool_of(bytes, std::make_shared<Watched>());
    Slots slots;
    std::map<std::byte*, int64_t> used;  // slots of each block
    const auto block_of = [&](const StateSlot& slot) { return std::prev(blocks.upper_bound(slot.data(0)))->first; };
    const size_t most = bytes > 13 * kMiB ? 100 : 600;
    size_t wanted = most;
    for (int call = 0; call < 1600; call++) {
      while (slots.size() == wanted) wanted = random() % (random() % 4 == 0 ? most : 100);
      const auto before = blocks;
      int64_t room = 0;
      bool in_use = false;  // a block that is has room
      for (const auto& [block, size] : blocks) {
        room += size / bytes - used[block];
        in_use |= used[block] > 0 && used[block] < size / bytes;
      }
      if (slots.size() < wanted) {
        slots.push_back(pool->take());
        CHECK(blocks.size() == before.size() + (room == 0));
        CHECK(!in_use || used[block_of(*slots.back())] > 0);
      } else {
        slots.erase(slots.begin() + (oldest_first ? 0 : int64_t(random() % slots.size())));
      }
      used.clear();
      std::set<std::byte*> places;
      for (const auto& slot : slots) {
        const auto block = block_of(*slot);
        const int64_t at = slot->data(0) - block;
        CHECK(at % bytes == 0 && at + bytes <= blocks.at(block) && places.insert(slot->data(0)).second);
        used[block]++;
      }
      int64_t all = 0;
      for (const auto& [block, size] : blocks) all += size / bytes;
      const auto taken = int64_t(slots.size());
      const auto too_many = [&](int64_t free) { return free >= taken && free * bytes >= int64_t(StatePool::kKept); };
      CHECK(blocks.size() >= before.size() || too_many(all - taken));
      for (const auto& [block, size] : blocks) CHECK(used[block] > 0 || !too_many(all - size / bytes - taken));
    }
  }
  CHECK(Watched::blocks.empty());
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
