// The porch: the only file that knows which backends exist.
#include "backend/backend.h"
#include "core/error.h"
#include "cpu/backend.h"

namespace rwkv {

std::shared_ptr<Backend> open_backend(std::string_view device, const DeviceOptions& options) {
  if (device == "cpu" || device == "auto") return std::make_shared<cpu::CpuBackend>(options);
  if (device.starts_with("cuda:"))
    throw DeviceError(join("device '", device, "': this build has no CUDA backend; cpu can be used"));
  throw DeviceError(join("expected the device cpu or cuda:N, found '", device, "'"));
}

}  // namespace rwkv
