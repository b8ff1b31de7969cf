#include "model/task_heads.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "core/error.h"

namespace rwkv {
namespace {

constexpr double kNormEps = 1e-5;

struct Name {
  std::string_view task, official;
};
constexpr std::array<Name, 3> kHeads = {
    {{"retrieval", "head.retr_head."}, {"classification", "head.cls_head."}, {"similarity", "head.sts_head."}}};

double dot(const float* w, std::span<const double> x) {
  constexpr size_t kLanes = 16;
  std::array<double, kLanes> sums = {};
  const size_t whole = x.size() / kLanes * kLanes;
  for (size_t i = 0; i < whole; i += kLanes)
    for (size_t lane = 0; lane < kLanes; lane++) sums[lane] += double(w[i + lane]) * x[i + lane];
  for (size_t i = whole; i < x.size(); i++) sums[i - whole] += double(w[i]) * x[i];
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

std::vector<double> product(const std::vector<float>& matrix, std::span<const double> x) {
  std::vector<double> y(matrix.size() / x.size());
  for (size_t row = 0; row < y.size(); row++) y[row] = dot(matrix.data() + row * x.size(), x);
  return y;
}

}  // namespace

bool has_task_heads(const Checkpoint& file) {
  return std::ranges::any_of(
      file.tensors(), [](const TensorInfo& t) { return std::string_view(t.name).starts_with(kHeads[0].official); });
}

TaskHeads TaskHeads::load(Loader& loader, int n_embd) {
  TaskHeads heads;
  for (const Name& name : kHeads) {
    const std::string stem(name.official);
    const auto vector = [&](const char* part) { return loader.host_numbers(stem + part, {n_embd}); };
    const auto matrix = [&](const char* part) { return loader.host_numbers(stem + part, {n_embd, n_embd}); };
    heads.heads_[std::string(name.task)] = {.fc1 = matrix("fc1.weight"),
                                            .fc2 = matrix("fc2.weight"),
                                            .weight = vector("norm.weight"),
                                            .bias = vector("norm.bias")};
  }
  return heads;
}

std::vector<double> TaskHeads::apply(std::string_view task, std::span<const double> x) const {
  const auto found = heads_.find(task);
  RWKV_CHECK(Error, found != heads_.end(), "task: expected 'retrieval', 'classification' or 'similarity', found '",
             task, "'");
  const Head& head = found->second;
  RWKV_CHECK(Error, x.size() == head.weight.size(), "expected a vector of ", head.weight.size(), " numbers, found ",
             x.size());
  std::vector<double> hidden = product(head.fc1, x);
  for (double& h : hidden) h = std::max(h, 0.0);
  std::vector<double> y = product(head.fc2, hidden);
  for (size_t i = 0; i < y.size(); i++) y[i] += x[i];

  const auto size = double(y.size());
  const double mean = std::accumulate(y.begin(), y.end(), 0.0) / size;
  double squares = 0;
  for (const double v : y) squares += (v - mean) * (v - mean);
  const double scale = 1 / std::sqrt(squares / size + kNormEps);
  for (size_t i = 0; i < y.size(); i++) y[i] = (y[i] - mean) * scale * double(head.weight[i]) + double(head.bias[i]);
  const auto is_float = [](double v) { return std::isfinite(float(v)); };
  RWKV_CHECK(NonFiniteError, std::ranges::all_of(y, is_float), "expected finite numbers after the head for ", task,
             ", found NaN or infinity");
  return y;
}

size_t TaskHeads::bytes() const {
  size_t floats = 0;
  for (const auto& [task, head] : heads_)
    floats += head.fc1.size() + head.fc2.size() + head.weight.size() + head.bias.size();
  return floats * sizeof(float);
}

}  // namespace rwkv
