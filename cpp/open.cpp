// The porch: the only file that knows which backends exist.
#include "cuda/open.h"

#include <charconv>

#include "backend/backend.h"
#include "core/error.h"
#include "cpu/backend.h"

namespace rwkv {

std::shared_ptr<Backend> open_backend(std::string_view device, const DeviceOptions& options) {
  if (device == "auto") device = cuda::available() ? "cuda:0" : "cpu";
  if (device == "cpu") return std::make_shared<cpu::CpuBackend>(options);
  int number = 0;
  const char* end = device.data() + device.size();
  RWKV_CHECK(DeviceError,
             device.starts_with("cuda:") && std::from_chars(device.data() + 5, end, number).ptr == end && number >= 0,
             "expected the device cpu or cuda:N, found '", device, "'");
  return cuda::open(number, options);
}

}  // namespace rwkv
