#include "cuda/backend.h"

namespace rwkv::cuda {

void CudaBackend::wkv4(const Wkv4& w, const Batch& batch, Operand y) {
  const Wkv4Params p = {.r = w.r.as<float>(),
                        .k = w.k.as<float>(),
                        .v = w.v.as<float>(),
                        .ld = int32_t(w.k.stride),
                        .cols = int32_t(w.k.cols),
                        .decay = w.decay.as<float>(),
                        .bonus = w.bonus.as<float>(),
                        .a = w.a,
                        .b = w.b,
                        .m = w.m,
                        .y = pointer(y),
                        .step = step_};
  const int threads = int(kKernels[size_t(Kernel::wkv4)].threads);
  launch(Kernel::wkv4, {blocks_of(round_up(p.cols, kPad), threads), int(batch.src.size()), 1}, &p);
}

void CudaBackend::wkv6(const Wkv6& w, size_t state, const Batch& batch, Operand y) {
  const Wkv6Params p = {.r = w.r.as<float>(),
                        .k = w.k.as<float>(),
                        .v = w.v.as<float>(),
                        .g = w.g.as<float>(),
                        .w = w.w.as<float>(),
                        .ld = int32_t(w.k.stride),
                        .heads = w.heads,
                        .n = w.head_size,
                        .decay = w.decay.as<float>(),
                        .bonus = w.bonus.as<float>(),
                        .out = pointers(w.out),
                        .state = state,
                        .y = pointer(y),
                        .step = step_};
  launch(Kernel::wkv6, {w.heads, int(batch.src.size()), 1}, &p);
}

void CudaBackend::wkv7(const Wkv7& w, size_t state, const Batch& batch, Operand y) {
  const Wkv7Params p = {.r = w.r.as<float>(),
                        .w = w.w.as<float>(),
                        .k = w.k.as<float>(),
                        .v = w.v.as<float>(),
                        .a = w.a.as<float>(),
                        .g = w.g.as<float>(),
                        .v_mix = w.v_mix.as<float>(),
                        .v_first = w.v_first.as<float>(),
                        .ld = int32_t(w.k.stride),
                        .heads = w.heads,
                        .n = w.head_size,
                        .w0 = w.w0.as<float>(),
                        .a0 = w.a0.as<float>(),
                        .v0 = w.v0.as<float>(),
                        .k_k = w.k_k.as<float>(),
                        .k_a = w.k_a.as<float>(),
                        .r_k = w.r_k.as<float>(),
                        .out = pointers(w.out),
                        .state = state,
                        .y = pointer(y),
                        .step = step_};
  launch(w.head_size == 64 ? Kernel::wkv7_64 : Kernel::wkv7, {w.heads, int(batch.src.size()), 1}, &p);
}

}  // namespace rwkv::cuda
