// The part of Python's pickle format that a dict or a list of tensors needs, as a machine that can do nothing else: no
// code is imported or called, and values are shared by index, so the memory used is a small multiple of the pickle's
// size.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/dtype.h"

namespace rwkv {

// A tensor as the pickle describes it. The numbers are not negative; whether they fit the storage is not yet known.
struct PickledTensor {
  std::string name;
  DType dtype = DType::f32;
  std::string storage;  // its name among the file's entries
  int64_t storage_elements = 0;
  int64_t storage_offset = 0;  // elements
  std::vector<int64_t> shape;
  std::vector<int64_t> stride;
};

// The tensors of the dict, or of the dict that it holds as "state_dict", in order. Other values are passed over.
// Throws ModelFormatError.
std::vector<PickledTensor> read_pickled_state_dict(std::string_view pickle);
// Of a list or tuple that holds nothing else; they are called "[0]", "[1]" and so on.
std::vector<PickledTensor> read_pickled_list(std::string_view pickle);

}  // namespace rwkv
