#include "model/adapted.h"

#include <algorithm>

namespace rwkv {
namespace {

// Rows of an f32 tensor; none of one that is not there.
Tensor rows_of(Tensor t, const AdaptedRows& r) {
  if (t) t.data = t.row(r.first), t.rows = r.count;
  return t;
}

}  // namespace

Adapted::Adapted(Backend& backend, std::span<const AdaptedRows> rows, AdapterSpace& space)
    : backend_(backend), rows_(rows), s_(space) {
  int count = 0;
  size_t most = 0;
  for (const AdaptedRows& r : rows) count += r.count;
  for (const AdaptedRows& r : rows) most = std::max(most, r.adapter->scratch_bytes(count));
  s_.added.clear(), s_.targets.clear();
  if (most <= s_.size) return;
  s_.arena = Arena(), s_.size = 0;
  s_.arena = Arena(backend.allocate(most)), s_.size = most;
}

bool Adapted::adapts(const LinearJob& job) const {
  return std::ranges::any_of(rows_, [&](const AdaptedRows& r) { return r.adapter->find(job.w) != nullptr; });
}

// Whether they read or write what is still to be added to.
bool Adapted::waited_for(std::span<const LinearJob> jobs) const {
  return std::ranges::any_of(s_.targets, [&](const void* target) {
    return std::ranges::any_of(jobs, [&](const LinearJob& job) {
      return target == job.y.data || target == job.sum.data || target == job.gate.data;
    });
  });
}

void Adapted::flush() {
  if (!s_.added.empty()) backend_.linear(s_.added);
  s_.added.clear(), s_.targets.clear();
}

void Adapted::add(const LinearJob& job) {
  const Tensor& target = job.sum ? job.sum : job.y;
  for (const AdaptedRows& r : rows_) {
    const LowRank* const pair = r.adapter->find(job.w);
    if (!pair) continue;
    const LowRankRoom room(s_.arena, backend_, *pair, r.count);
    const bool all = r.count == job.x.rows;
    if (!all) s_.picks.push_back({job.x, r.first, room.x});
    s_.jobs.push_back({all ? job.x : room.x, pair->in, room.low, Act::none, room.rank});
    const Tensor gate = job.sum ? rows_of(job.gate, r) : Tensor{};
    s_.added.push_back({room.rank, pair->out, room.partial, Act::none, {}, rows_of(target, r), gate});
  }
  s_.targets.push_back(target.data);
}

void Adapted::linear(std::span<const LinearJob> jobs) {
  if (std::ranges::none_of(jobs, [&](const LinearJob& job) { return adapts(job); })) {
    if (s_.added.empty() || waited_for(jobs)) {
      flush();
      return backend_.linear(jobs);
    }
    s_.added.insert(s_.added.begin(), jobs.begin(), jobs.end());
    return flush();
  }
  flush();
  s_.arena.reset();
  s_.jobs.assign(jobs.begin(), jobs.end()), s_.after.clear(), s_.picks.clear();
  for (LinearJob& job : s_.jobs) {
    if (job.sum || !(job.out || job.act != Act::none) || !adapts(job)) continue;
    LinearJob& after = s_.after.emplace_back(job);
    after.x = {nullptr, Format::f32, job.x.rows, 0};
    after.w = {.rows = job.w.rows};
    job.act = Act::none, job.out = {}, job.gate = {}, job.bias = {};
  }
  for (const LinearJob& job : jobs)
    if (adapts(job)) add(job);
  if (!s_.picks.empty()) backend_.pick(s_.picks);
  backend_.linear(s_.jobs);
  if (s_.after.empty()) return;
  flush();
  backend_.linear(s_.after);
}

void Adapted::mix(const Tensor& x, const Norm& norm, std::span<const MixJob> jobs, size_t shift, const Batch& batch,
                  Shift write) {
  flush();
  backend_.mix(x, norm, jobs, shift, batch, write);
}

void Adapted::deep_embed(const DeepEmbed& p, const Batch& batch, Operand y) {
  flush();
  backend_.deep_embed(p, batch, y);
}

void Adapted::wkv4(const Wkv4& p, const Batch& batch, Operand y) {
  flush();
  backend_.wkv4(p, batch, y);
}

void Adapted::wkv6(const Wkv6& p, StatePlace state, const Batch& batch, Operand y) {
  flush();
  backend_.wkv6(p, state, batch, y);
}

void Adapted::wkv7(const Wkv7& p, StatePlace state, const Batch& batch, Operand y) {
  flush();
  backend_.wkv7(p, state, batch, y);
}

std::span<const AdaptedRows> adapted_results(std::span<const AdaptedRows> adapted, std::span<const int32_t> rows,
                                             AdapterSpace& space) {
  space.results.clear();
  for (const AdaptedRows& r : adapted) {
    const auto first = std::ranges::lower_bound(rows, r.first), end = std::ranges::lower_bound(rows, r.first + r.count);
    if (first != end) space.results.push_back({int(first - rows.begin()), int(end - first), r.adapter});
  }
  return space.results;
}

}  // namespace rwkv
