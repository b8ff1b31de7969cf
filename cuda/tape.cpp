#include "cuda/tape.h"

#include <algorithm>
#include <cstring>

namespace rwkv::cuda {

namespace {

// Batches of 1 to 64 sequences, each with one segment for a step and some for other results.
constexpr size_t kMostSegments = 96;

}  // namespace

void Tape::Segment::append(const Launch& launch) {
  at.push_back(params.size());
  const auto* from = static_cast<const std::byte*>(launch.params);
  params.insert(params.end(), from, from + launch.bytes);
  params.resize((params.size() + 15) / 16 * 16);
  launches.push_back(launch);
}

Launch Tape::Segment::launch(size_t i) const {
  Launch launch = launches[i];
  launch.params = params.data() + at[i];
  return launch;
}

bool Tape::Segment::has(size_t i, const Launch& launch) const {
  if (i >= launches.size()) return false;
  const Launch& own = launches[i];
  return own.kernel == launch.kernel && std::ranges::equal(own.grid, launch.grid) && own.flags == launch.flags &&
         std::memcmp(params.data() + at[i], launch.params, launch.bytes) == 0;
}

bool Tape::Segment::begins_as(const Segment& other, size_t count) const {
  if (launches.size() < count) return false;
  for (size_t i = 0; i < count; i++)
    if (!has(i, other.launch(i))) return false;
  return true;
}

Tape::~Tape() {
  for (const Segment& segment : segments_)
    if (segment.graph) context_.forget(segment.graph);
}

void Tape::begin(bool repeats) {
  repeats_ = graphs_ && repeats;
  matched_ = 0;
  recording_.reset();
}

void Tape::add(const Launch& launch) {
  if (!repeats_) return context_.launch({&launch, 1});
  if (!recording_) {
    bool known = true;
    if (matched_ == 0 || !current_->has(matched_, launch)) {  // the first, or they part here
      const auto next = std::ranges::find_if(segments_, [&](const Segment& segment) {
        return segment.has(matched_, launch) && (matched_ == 0 || segment.begins_as(*current_, matched_));
      });
      known = next != segments_.end();
      if (known) current_ = next;
    }
    if (known) return void(matched_++);
    recording_.emplace();
    for (size_t i = 0; i < matched_; i++) recording_->append(current_->launch(i));
    if (matched_ > 0) launch_all(*current_, matched_);
    matched_ = 0;
  }
  context_.launch({&launch, 1});
  recording_->append(launch);
}

void Tape::flush() {
  if (recording_) {
    keep(std::move(*recording_));
    recording_.reset();
  } else if (matched_ > 0) {
    const auto whole = std::ranges::find_if(segments_, [&](const Segment& segment) {
      return segment.launches.size() == matched_ && segment.begins_as(*current_, matched_);
    });
    if (whole != segments_.end()) {
      segments_.splice(segments_.begin(), segments_, whole);
      replay(*whole);
    } else {  // only the beginning of one
      Segment segment;
      for (size_t i = 0; i < matched_; i++) segment.append(current_->launch(i));
      launch_all(segment, matched_);
      keep(std::move(segment));
    }
  }
  matched_ = 0;
}

void Tape::launch_all(const Segment& segment, size_t count) {
  list_.clear();
  for (size_t i = 0; i < count; i++) list_.push_back(segment.launch(i));
  context_.launch(list_);
}

void Tape::keep(Segment segment) {
  if (segments_.size() == kMostSegments) {
    if (segments_.back().graph) context_.forget(segments_.back().graph);
    segments_.pop_back();
  }
  segments_.push_front(std::move(segment));
}

void Tape::replay(Segment& segment) {
  if (!segment.graph && segment.replayed++ == 1) {  // a graph costs some steps, so not for what came twice by chance
    list_.clear();
    for (size_t i = 0; i < segment.launches.size(); i++) list_.push_back(segment.launch(i));
    segment.graph = context_.record(list_);
  }
  if (segment.graph)
    context_.replay(segment.graph);
  else
    launch_all(segment, segment.launches.size());
}

}  // namespace rwkv::cuda
