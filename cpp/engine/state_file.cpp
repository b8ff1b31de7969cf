#include "engine/state_file.h"

#include <algorithm>
#include <cstring>
#include <tuple>
#include <utility>

#include "core/error.h"
#include "core/platform.h"

namespace rwkv {

namespace {

// Some fifteen times the state of the largest model there is: a file that says more is not read.
constexpr uint64_t kMaxFile = uint64_t(1) << 30;

}  // namespace

StateFile StateFile::open(const std::string& path) {
  const File file(path);
  try {
    std::vector<std::byte> head(size_t(std::min<uint64_t>(file.size(), kSnapshotHead)));
    file.read(0, head.data(), head.size());
    check_snapshot_head(head, file.size());
    RWKV_CHECK(StateError, file.size() <= kMaxFile, "state: expected at most ", kMaxFile, " bytes, found ",
               file.size());
    std::vector<std::byte> bytes(size_t(file.size()));
    file.read(0, bytes.data(), bytes.size());
    return StateFile(std::move(bytes));
  } catch (const StateError& e) {
    throw StateError(join(path, ": ", e.what()));
  }
}

StateFile::StateFile(std::vector<std::byte> bytes) : bytes_(std::move(bytes)) {
  std::tie(model_, view_) = read_snapshot(bytes_);
}

std::vector<TensorInfo> StateFile::tensors() const {
  return snapshot_tensors(model_.config, !view_.last_logits.empty(), view_.info.weights(), view_.type);
}

std::vector<StateArray> StateFile::parts() const {
  std::vector<StateArray> arrays;
  for (const TensorInfo& t : snapshot_tensors(model_.config)) {
    auto& array = arrays.emplace_back(StateArray{t.name, t.shape, std::vector<float>(size_t(t.count()))});
    view_.parts[arrays.size() - 1].load(0, array.values);
  }
  return arrays;
}

std::vector<float> StateFile::last_logits() const {
  std::vector<float> logits(view_.last_logits.size() / sizeof(float));
  if (!logits.empty()) std::memcpy(logits.data(), view_.last_logits.data(), view_.last_logits.size());
  return logits;
}

std::vector<std::byte> StateFile::to_bytes(DType type) const {
  const auto logits = last_logits();
  const SnapshotPlan plan = plan_snapshot(model_, view_.info, !logits.empty(), type);
  std::vector<std::byte> snapshot(plan.size);
  std::byte* to = snapshot.data() + plan.header.size();
  const auto arrays = parts();
  for (size_t i = 0; i < arrays.size(); i++) {
    store(plan.tensors[i], arrays[i].values, to);
    to += arrays[i].values.size() * size_of(plan.tensors[i].dtype);
  }
  finish_snapshot(snapshot, plan, view_.info, logits);
  return snapshot;
}

}  // namespace rwkv
