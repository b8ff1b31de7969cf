#include "backend/backend.h"

#include "core/error.h"

namespace rwkv {

std::unique_ptr<WeightStream> Backend::stream(int, size_t) {
  throw DeviceError(join("expected a device that layers can be streamed to, found ", description()));
}

}  // namespace rwkv
