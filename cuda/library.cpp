#include "cuda/library.h"

#include <cstdlib>
#include <map>
#include <mutex>
#include <string>

#include "core/error.h"
#include "core/platform.h"

namespace rwkv::cuda {

namespace {

const DeviceApi& open(const std::string& path, std::string_view device) {
  const auto refuse = [&](const auto&... why) {
    throw DeviceError(join("device '", device, "': ", why..., "; cpu can be used"));
  };
  void* symbol = nullptr;
  try {
    symbol = Library(path).find(kGetBackend);
  } catch (const Error& e) {
    refuse("expected the CUDA backend of this build, found none: ", e.what());
  }
  const auto get = reinterpret_cast<GetBackend>(symbol);
  const DeviceApi* api = get ? get(kAbi) : nullptr;
  if (!api || api->abi != kAbi || api->bytes != sizeof(DeviceApi))
    refuse(path, ": expected a CUDA backend, found none");
  if (std::string_view(api->build) != RWKV_CUDA_BUILD)
    refuse(path, ": expected build " RWKV_CUDA_BUILD ", found ", api->build, ": install both again");
  return *api;
}

}  // namespace

const DeviceApi& library(std::string_view device) {
  static std::mutex opening;
  static std::map<std::string, const DeviceApi*> opened;
  const char* named = std::getenv("RWKV_CUDA_LIBRARY");
  const std::string path =
      named && *named ? named : folder_of(reinterpret_cast<const void*>(&library)) + "/librwkv_cuda.so";
  const std::lock_guard lock(opening);
  const DeviceApi*& api = opened[path];
  if (!api) api = &open(path, device);
  return *api;
}

}  // namespace rwkv::cuda
