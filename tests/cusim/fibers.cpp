#include "cusim/fibers.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <numeric>
#include <vector>

#include "cusim/context.h"

namespace cusim {

Now now;
__attribute__((weak)) void note_copy(void*, const void*, bool) {}

namespace {

#ifdef CUSIM_PTX
constexpr size_t kStack = 1024 * 1024;  // of functions with a variable for each register
#else
constexpr size_t kStack = 64 * 1024;
#endif
constexpr unsigned char kUnset = 0xff;  // four of them are NaN

enum class Waits : uint8_t { no, lanes, block, ended };

struct Copy {
  void* to;
  const void* from;
  bool wanted;
  void happen() const {
    note_copy(to, from, wanted);
    if (wanted)
      std::memcpy(to, from, 16);
    else
      std::memset(to, 0, 16);
  }
};

struct Fiber {
  Context context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  Waits waits = Waits::no;
  const void* operation = nullptr;
  void* payload = nullptr;
  Combine combine = nullptr;
  Place place = {};
  std::vector<Copy> asked;                // since the last commit
  std::vector<std::vector<Copy>> groups;  // committed and not waited for

  bool same_place(const Fiber& f) const {
    return place.line == f.place.line && (place.file == f.place.file || !std::strcmp(place.file, f.place.file));
  }
};

// There is one: the calls of a library come one at a time.
struct Machine {
  Context host;
  std::vector<std::unique_ptr<Fiber>> fibers;
  struct Warp {
    int arrived = 0;      // lanes that wait for lanes
    unsigned synced = 0;  // how often all have met for nothing else
  };
  std::vector<Warp> warps;
  Fiber* running = nullptr;
  const Start* start = nullptr;
  Schedule schedule;
  uint64_t random = 1;
  std::string error;
} machine;

std::string place_of(Place place) {
  const char* name = std::strrchr(place.file, '/');
  return std::string(name ? name + 1 : place.file) + ":" + std::to_string(place.line);
}

void leave(Waits waits) {
  Fiber& self = *machine.running;
  self.waits = waits;
  self.context.switch_to(machine.host, waits == Waits::ended);
}

void fiber_main() {
  machine.running->context.entered();
  machine.start->call(machine.start->function, machine.start->params);
  if (!machine.running->asked.empty() || !machine.running->groups.empty())
    machine.error = "thread " + std::to_string(now.thread.x) + " ended with copies on their way";
  leave(Waits::ended);
}

unsigned next_random() {
  machine.random = machine.random * 6364136223846793005u + 1442695040888963407u;
  return unsigned(machine.random >> 33);
}

// All lanes of a warp wait for each other: let them go on, if it is for the same.
void release(int warp) {
  Fiber& first = *machine.fibers[size_t(warp) * 32];
  void* payloads[32];
  for (int lane = 0; lane < 32; lane++) {
    const Fiber& f = *machine.fibers[size_t(warp * 32 + lane)];
    if (f.operation != first.operation || !f.same_place(first)) {
      machine.error = "lanes of warp " + std::to_string(warp) + " are at different operations: lane 0 at " +
                      place_of(first.place) + ", lane " + std::to_string(lane) + " at " + place_of(f.place);
      return;
    }
    payloads[lane] = f.payload;
  }
  if (first.combine)
    first.combine(payloads);
  else
    machine.warps[size_t(warp)].synced++;
  for (int lane = 0; lane < 32; lane++) machine.fibers[size_t(warp * 32 + lane)]->waits = Waits::no;
  machine.warps[size_t(warp)].arrived = 0;
}

// Nobody can go on. True if all threads wait at one barrier: then they can.
bool pass_barrier(int threads) {
  const Fiber& first = *machine.fibers[0];
  for (int i = 0; i < threads; i++) {
    const Fiber& f = *machine.fibers[size_t(i)];
    if (f.waits == Waits::block && first.waits == Waits::block && f.same_place(first)) continue;
    const auto state = [](int number, const Fiber& g) {
      const std::string who = "thread " + std::to_string(number);
      return g.waits == Waits::ended ? who + " has ended"
                                     : who + " waits for " + (g.waits == Waits::block ? "the block" : "its warp") +
                                           " at " + place_of(g.place);
    };
    // Another one than the first, if the first itself is not at a barrier.
    int other = i;
    for (int j = 1; other == 0 && j < threads; j++)
      if (machine.fibers[size_t(j)]->waits != first.waits || !machine.fibers[size_t(j)]->same_place(first)) other = j;
    machine.error = "not all come: " + state(0, first) + ", " + state(other, *machine.fibers[size_t(other)]);
    return false;
  }
  for (int i = 0; i < threads; i++) machine.fibers[size_t(i)]->waits = Waits::no;
  now.barriers++;
  return true;
}

void resume(int i) {
  Fiber& f = *machine.fibers[size_t(i)];
  machine.running = &f;
  now.thread.x = unsigned(i), now.lanes = machine.warps[size_t(i / 32)].synced;
  now.running = true;
  machine.host.switch_to(f.context);
  now.running = false;
  if (!machine.error.empty() || f.waits != Waits::lanes) return;
  if (++machine.warps[size_t(i / 32)].arrived == 32) release(i / 32);
}

void run_block(int threads) {
  std::memset(now.shared, kUnset, machine.start->shared);
  for (int i = 0; i < threads; i++) {
    Fiber& f = *machine.fibers[size_t(i)];
    f.waits = Waits::no;
    f.asked.clear(), f.groups.clear();
    f.context.start(f.stack.get(), kStack, fiber_main);
  }
  machine.warps.assign(size_t(threads / 32), {});
  now.barriers = 0;
  std::vector<int> order(static_cast<size_t>(threads));
  std::vector<size_t> place(order.size());  // of a thread in the order
  std::iota(order.begin(), order.end(), 0);
  if (machine.schedule.order == Schedule::Order::reverse) std::reverse(order.begin(), order.end());
  for (;;) {
    if (machine.schedule.order == Schedule::Order::random)
      for (size_t i = order.size(); i-- > 1;) std::swap(order[i], order[next_random() % (i + 1)]);
    for (size_t i = 0; i < order.size(); i++) place[size_t(order[i])] = i;
    bool ran = false, ended = true;
    for (size_t at = 0; at < order.size(); at++) {
      const Fiber& f = *machine.fibers[size_t(order[at])];
      ended &= f.waits == Waits::ended;
      if (f.waits != Waits::no) continue;
      resume(order[at]);
      if (!machine.error.empty()) return;
      ran = true, ended = false;
      // The last lane of a warp has let all of it go on: back to the first of them.
      if (!machine.schedule.greedy || f.waits != Waits::no) continue;
      const auto warp = place.begin() + order[at] / 32 * 32;
      at = *std::min_element(warp, warp + 32) - 1;
    }
    if (ended) return;
    if (!ran && !pass_barrier(threads)) return;
  }
}

}  // namespace

std::string run(const Start& start, const Schedule& schedule) {
  machine.start = &start, machine.schedule = schedule, machine.error.clear();
  machine.random = schedule.seed * 0x9e3779b97f4a7c15u + 1;
  while (machine.fibers.size() < start.threads) machine.fibers.push_back(std::make_unique<Fiber>());
  // Exactly as long as was asked for, and watched behind.
  constexpr size_t kAlign = 128, kCanary = 128;
  const std::unique_ptr<unsigned char[]> memory(new unsigned char[start.shared + kAlign + kCanary]);
  now = {{}, {}, {start.threads, 1, 1}, start.blocks, memory.get(), false, start.shared, 0, 0, start.dependent};
  now.shared += kAlign - reinterpret_cast<uintptr_t>(memory.get()) % kAlign;
  std::memset(now.shared + start.shared, kUnset, kCanary);
#if CUSIM_ASAN
  __asan_poison_memory_region(now.shared + start.shared, kCanary);
#endif
  for (now.block.z = 0; now.block.z < start.blocks.z && machine.error.empty(); now.block.z++)
    for (now.block.y = 0; now.block.y < start.blocks.y && machine.error.empty(); now.block.y++)
      for (now.block.x = 0; now.block.x < start.blocks.x && machine.error.empty(); now.block.x++) {
        if (start.before_block) start.before_block(false);
        run_block(int(start.threads));
        if (machine.error.empty()) continue;
        machine.error = "block " + std::to_string(now.block.x) + " " + std::to_string(now.block.y) + " " +
                        std::to_string(now.block.z) + ": " + machine.error;
      }
  if (start.before_block) start.before_block(true);
#if CUSIM_ASAN
  __asan_unpoison_memory_region(now.shared + start.shared, kCanary);
#endif
  for (size_t i = 0; i < kCanary && machine.error.empty(); i++)
    if (now.shared[start.shared + i] != kUnset)
      machine.error =
          "writes past the end of the shared memory that it has, " + std::to_string(start.shared) + " bytes";
  return machine.error;
}

void collective(const void* operation, void* payload, Combine combine, Place place) {
  Fiber& self = *machine.running;
  self.operation = operation, self.payload = payload, self.combine = combine, self.place = place;
  leave(Waits::lanes);
}

void barrier(Place place) {
  machine.running->place = place;
  leave(Waits::block);
}

void fail(const char* what, Place place) {
  machine.error = "thread " + std::to_string(now.thread.x) + ": " + what;
  if (place.file) machine.error += " at " + place_of(place);
  leave(Waits::ended);
  __builtin_unreachable();
}

void copy_async(void* to, const void* from, bool wanted, Place place) {
  if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % 16 != 0)
    fail("a copy of 16 bytes from or to an address that is not a multiple of 16", place);
  const Copy copy{to, from, wanted};
  if (!machine.schedule.late_copies) copy.happen();
  machine.running->asked.push_back(copy);
}

void commit_copies() {
  Fiber& self = *machine.running;
  self.groups.push_back(std::move(self.asked));
  self.asked.clear();
}

void wait_for_copies(int but) {
  auto& groups = machine.running->groups;
  while (int(groups.size()) > but) {
    if (machine.schedule.late_copies)
      for (const Copy& copy : groups.front()) copy.happen();
    groups.erase(groups.begin());
  }
}

}  // namespace cusim
