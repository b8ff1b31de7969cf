#include "cuda/context.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <iomanip>

#include "core/error.h"
#include "core/platform.h"

namespace rwkv::cuda {

namespace {

constexpr size_t kStaging = size_t(4) << 20;

std::string megabytes(uint64_t bytes) { return join(std::fixed, std::setprecision(1), double(bytes) / 1e6, " MB"); }

[[noreturn]] void refuse(const std::string& device, const Fault& fault) {
  if (fault.failure == Failure::memory && fault.total != 0)
    throw DeviceError(join(device, ": expected ", megabytes(fault.wanted), " of memory, found ", megabytes(fault.free),
                           " free of ", megabytes(fault.total)));
  if (fault.failure == Failure::memory)
    throw DeviceError(
        join(device, ": expected ", megabytes(fault.wanted), " of the host's memory to copy from, found less"));
  if (fault.failure == Failure::absent) throw DeviceError(join("device '", device, "': ", fault.text));
  throw DeviceError(join(device, ": ", fault.text, "; it is lost to this process, which can be started again"));
}

}  // namespace

Features features_of_environment() {
  Features features;
  const char* named = std::getenv("RWKV_CUDA_FEATURES");
  for (std::string_view text = named ? named : ""; !text.empty();) {
    const std::string_view word = text.substr(0, text.find(','));
    text.remove_prefix(std::min(text.size(), word.size() + 1));
    if (word == "graphs")
      features.graphs = true;
    else if (word == "pdl")
      features.dependent = true;
    else if (word == "cublaslt")
      features.cublaslt = true;
    else if (word == "nofused")
      features.fused = false;
    else if (word == "noranks")
      features.ranks = false;
    else
      throw DeviceError(
          join("RWKV_CUDA_FEATURES: expected graphs, pdl, cublaslt, nofused and noranks, found '", word, "'"));
  }
  return features;
}

Context::Context(const DeviceApi& api, int index, Driver driver)
    : api_(api), driver_(driver), index_(index), process_(process_id()), name_(join("cuda:", index)) {
  const Caller caller(driver_);
  int32_t devices = 0;
  Fault fault = {};
  if (!api.count(&devices, &fault))
    throw DeviceError(join("device '", name_, "': expected a usable GPU, found none: ", fault.text));
  RWKV_CHECK(DeviceError, index < devices, "device '", name_, "': expected one of ", devices,
             devices == 1 ? " device, cuda:0" : " devices, from cuda:0 on");
  if (!api.open(index, &device_, &info_, &fault)) refuse(name_, fault);
  if (api.pin(device_, kStaging, &staging_, &fault)) return;
  api.close(device_);
  refuse(name_, fault);
}

bool Context::here() const { return process_id() == process_; }

Context::~Context() {
  if (!here()) return;
  const Caller caller(driver_);
  api_.unpin(device_, staging_);
  api_.close(device_);
}

template <class Call>
void Context::ask(const Call& call) {
  Fault fault = {};
  const std::lock_guard lock(calling_);
  const Caller caller(driver_);
  if (!call(&fault)) refuse(name_, fault);
}

Memory Context::owned(void* memory, size_t bytes, void (*release)(void* device, void* memory)) {
  const auto give_back = [self = shared_from_this(), release](std::byte* p) {
    if (!self->here()) return;
    const std::lock_guard lock(self->calling_);
    const Caller caller(self->driver_);
    release(self->device_, p);
  };
  return {std::shared_ptr<std::byte>(static_cast<std::byte*>(memory), give_back), bytes};
}

Memory Context::allocate(size_t bytes) {
  void* memory = nullptr;
  ask([&](Fault* f) { return api_.allocate(device_, bytes, &memory, f); });
  return owned(memory, bytes, api_.release);
}

Memory Context::pin(size_t bytes) {
  void* memory = nullptr;
  ask([&](Fault* f) { return api_.pin(device_, bytes, &memory, f); });
  return owned(memory, bytes, api_.unpin);
}

void Context::upload(void* to, const void* from, size_t bytes) {
  ask([&](Fault* f) { return api_.upload(device_, to, from, bytes, f); });
}

void Context::download(void* to, const void* from, size_t bytes) {
  ask([&](Fault* f) { return api_.download(device_, to, from, bytes, f); });
}

void Context::launch(std::span<const Launch> launches) {
  ask([&](Fault* f) { return api_.launch(device_, launches.data(), uint32_t(launches.size()), f); });
}

void Context::stage(void* to, const void* from, size_t bytes, int event) {
  ask([&](Fault* f) { return api_.stage(device_, to, from, bytes, event, f); });
}

void Context::await(int event) {
  ask([&](Fault* f) { return api_.await(device_, event, f); });
}

void Context::visit(const std::function<void(void* stream)>& work) {
  const Caller caller(driver_);
  void* stream = nullptr;
  Fault fault = {};
  {
    const std::lock_guard lock(calling_);
    if (!api_.stream(device_, &stream, &fault)) refuse(name_, fault);
  }
  work(stream);
}

void* Context::record(std::span<const Launch> launches) {
  void* graph = nullptr;
  ask([&](Fault* f) {
    const bool done = api_.record(device_, launches.data(), uint32_t(launches.size()), &graph, f);
    if (done && !graph && no_graph_.empty()) no_graph_ = f->text;
    return done;
  });
  return graph;
}

std::string Context::why_no_graph() {
  const std::lock_guard lock(calling_);
  return no_graph_;
}

void Context::replay(void* graph) {
  ask([&](Fault* f) { return api_.replay(device_, graph, f); });
}

void Context::forget(void* graph) {
  if (!here()) return;
  const std::lock_guard lock(calling_);
  const Caller caller(driver_);
  api_.forget(device_, graph);
}

void Context::synchronise() {
  ask([&](Fault* f) { return api_.synchronise(device_, f); });
}

void Context::settle() {
  ask([&](Fault* f) { return api_.settle(device_, f); });
}

void Context::copy_in(void* to, const void* from, size_t bytes) {
  const std::lock_guard lock(copying_);
  for (size_t at = 0, n; at < bytes; at += n) {
    n = std::min(kStaging, bytes - at);
    std::memcpy(staging_, static_cast<const std::byte*>(from) + at, n);
    upload(static_cast<std::byte*>(to) + at, staging_, n);
    synchronise();
  }
}

void Context::copy_out(void* to, const void* from, size_t bytes) {
  const std::lock_guard lock(copying_);
  for (size_t at = 0, n; at < bytes; at += n) {
    n = std::min(kStaging, bytes - at);
    download(staging_, static_cast<const std::byte*>(from) + at, n);
    synchronise();
    std::memcpy(static_cast<std::byte*>(to) + at, staging_, n);
  }
}

}  // namespace rwkv::cuda
