// The structs that DLPack exchanges arrays with (dmlc.github.io/dlpack), as far as they are used here.
#pragma once
#include <cstdint>

namespace dlpack {

struct Device {
  int32_t kind, index;
};
struct DataType {
  uint8_t code, bits;  // code 2: floating
  uint16_t lanes;
};
struct Tensor {
  void* data;
  Device device;
  int32_t ndim;
  DataType dtype;
  int64_t *shape, *strides;  // strides in elements; null: row by row
  uint64_t byte_offset;
};

// In a capsule called "dltensor"; who takes it over renames it "used_dltensor" and calls the deleter in the end.
struct Managed {
  Tensor tensor;
  void* context;
  void (*deleter)(Managed*);
};
// In a capsule called "dltensor_versioned".
struct ManagedVersioned {
  uint32_t major, minor;
  void* context;
  void (*deleter)(ManagedVersioned*);
  uint64_t flags;
  Tensor tensor;
};
constexpr uint64_t kReadOnly = 1;

}  // namespace dlpack
