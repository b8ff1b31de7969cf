#include "engine/device_array.h"

#include <algorithm>

#include "core/error.h"
#include "core/platform.h"

namespace rwkv {

std::shared_ptr<std::byte> ResultMemory::take(size_t bytes) {
  Memory memory;
  {
    const std::lock_guard lock(mutex_);
    // Of those that are large enough but not too large, any will do.
    const auto fits = [&](const Memory& m) { return m.size >= bytes && m.size / 2 <= bytes; };
    if (const auto found = std::ranges::find_if(free_, fits); found != free_.end()) {
      memory = std::move(*found);
      free_.erase(found);
    } else {
      std::erase_if(free_, [&](const Memory& m) { return m.size < bytes; });  // results have grown
    }
    free_.reserve(free_.size() + 1);  // giving back must not fail
  }
  if (!memory.data) memory = backend_->allocate(bytes);
  std::byte* const data = memory.data.get();
  const auto give_back = [self = shared_from_this(), memory, process = process_id()](std::byte*) {
    if (process_id() != process) return;  // a forked child: the lock may be held by a thread that is not there
    const std::lock_guard lock(self->mutex_);
    if (self->free_.size() < self->free_.capacity()) self->free_.push_back(memory);
  };
  return {data, give_back};
}

std::shared_ptr<const void> lent(std::shared_ptr<Backend> backend, std::shared_ptr<const void> memory) {
  if (backend->device().kind == DeviceId::cpu) return memory;
  const void* const data = memory.get();
  return {data, [backend = std::move(backend), memory = std::move(memory), process = process_id()](const void*) {
            if (process_id() != process) return;
            try {
              backend->settle();
            } catch (const Error&) {  // of a device that has failed nothing is used again
            }
          }};
}

}  // namespace rwkv
