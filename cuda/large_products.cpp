#include "cuda/large_products.h"

#include <algorithm>

#include "core/error.h"

namespace rwkv::cuda {

namespace {

constexpr size_t kWorkspace = size_t(32) << 20;
constexpr int kLeast = 256;  // outputs and inputs of a matrix for which plain rows are worth their making

size_t elements(int64_t rows, int64_t cols) {
  return size_t(round_up(int(rows), kPad)) * size_t(round_up(int(cols), kPad));
}

}  // namespace

LargeProducts::LargeProducts(Context& context) : context_(context) {
  try {
    context_.visit([this](void*) { lt_ = std::make_unique<CublasLt>(); });
    said_ = join(", cublaslt ", lt_->version());
  } catch (const DeviceError& e) {
    end(e.what());
  }
}

LargeProducts::~LargeProducts() { close(); }

void LargeProducts::close() {
  try {
    if (lt_ && context_.here()) context_.visit([this](void*) { lt_.reset(); });
  } catch (const DeviceError&) {  // the device has failed before and said so
  }
  lt_.reset();
}

void LargeProducts::end(const std::string& why) {
  close();
  const std::lock_guard lock(saying_);
  said_ = join(", without cublaslt: ", why);
}

std::string LargeProducts::description() const {
  const std::lock_guard lock(saying_);
  return said_;
}

void LargeProducts::prepare(const StepShape& shape) {
  if (!lt_ || shape.activations == Format::f32) return;
  const int64_t most = std::max(shape.width, shape.ffn);
  const auto grow = [&](Memory& memory, size_t bytes) {
    if (memory.size < bytes) memory = {}, memory = context_.allocate(bytes);
  };
  try {
    grow(matrix_, elements(shape.width, most) * sizeof(uint16_t));
    grow(operand_, elements(shape.rows, most) * sizeof(uint16_t));
    grow(sums_, elements(shape.rows, most) * sizeof(float));
    grow(workspace_, kWorkspace);
  } catch (const DeviceError& e) {  // our own products need none of it
    matrix_ = operand_ = sums_ = workspace_ = {};
    end(e.what());
  }
}

// The head is larger than any other and has few rows.
bool LargeProducts::takes(const Linear& w, int tokens) const {
  return lt_ && (w.format == Format::f16 || w.format == Format::bf16) && std::min(w.rows, w.cols) >= kLeast &&
         elements(w.rows, w.cols) * sizeof(uint16_t) <= matrix_.size &&
         elements(tokens, w.cols) * sizeof(uint16_t) <= operand_.size &&
         elements(tokens, w.rows) * sizeof(float) <= sums_.size;
}

bool LargeProducts::multiply(const PlainProduct& product) {
  context_.visit([&](void* stream) {
    try {
      lt_->multiply(product, workspace_.data.get(), workspace_.size, stream);
    } catch (const DeviceError& e) {
      end(e.what());
    }
  });
  return lt_ != nullptr;
}

}  // namespace rwkv::cuda
