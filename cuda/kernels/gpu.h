// The language that kernels are written in, beyond C++ and the names that CUDA itself defines. Whatever needs the
// instructions of a GPU is here and nowhere else; for the simulator cusim/gpu.h defines the same names.
#pragma once
#include "cuda/kernels.h"

// What a source of kernels ends with: RWKV_TABLE(add_rows, RWKV_ROW_KERNELS(RWKV_ENTRY)).
#define RWKV_ENTRY(name, source, ...) table[uint32_t(Kernel::name)] = entry source;
#define RWKV_TABLE(add, entries) \
  namespace rwkv::cuda { \
  void add(Entry* table) { entries } \
  }

#ifdef RWKV_SIMULATOR
#include "cusim/gpu.h"
#else

#define RWKV_KERNEL __global__
#define RWKV_BOUNDS(...) __launch_bounds__(__VA_ARGS__)  // threads, and how many blocks a processor should hold
#define RWKV_DEVICE __device__ __forceinline__
#define PARAMS(type, name) const __grid_constant__ type name
// All shared memory of a kernel is one struct.
#define SHARED(type, name) \
  extern __shared__ __align__(16) unsigned char shared_memory[]; \
  type& name = *reinterpret_cast<type*>(shared_memory)

namespace rwkv::cuda {

// Blocks of less than 50 KB of shared memory that a processor has room for: kernels that want them save registers.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr int kBlocksOf50KB = 1;
#else
constexpr int kBlocksOf50KB = 2;
#endif

template <class P>
Entry entry(void (*kernel)(P)) {
  return {reinterpret_cast<const void*>(kernel), nullptr};
}

RWKV_DEVICE int lane() { return int(threadIdx.x) % 32; }
RWKV_DEVICE int warp() { return int(threadIdx.x) / 32; }

// ---- all threads of a block, or all lanes of a warp, come here ----
RWKV_DEVICE void sync() { __syncthreads(); }
RWKV_DEVICE void sync_warp() { __syncwarp(); }
template <class T>
RWKV_DEVICE T shuffle(T v, int from) {
  return __shfl_sync(~0u, v, from);
}
template <class T>
RWKV_DEVICE T shuffle_xor(T v, int mask) {
  return __shfl_xor_sync(~0u, v, mask);
}
RWKV_DEVICE uint32_t ballot(bool v) { return __ballot_sync(~0u, v); }

// Where kernels may start before the one in front of them has ended: each lets the next one start, and waits before it
// reads or writes anything that another kernel of a step writes or reads.
RWKV_DEVICE void let_next_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
RWKV_DEVICE void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
RWKV_DEVICE void prefetch(const void* from) { asm volatile("prefetch.global.L2 [%0];" ::"l"(from)); }

// d += a b, 16 x 8 by k = 16; the fragments as PTX has them for m16n8k16.
RWKV_DEVICE void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  for (int i = 0; i < 2; i++)
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[2 * i]), "r"(a[2 * i + 1]), "r"(b[i]));
#endif
}
// From compute capability 8.0 on; the host refuses bf16 before.
RWKV_DEVICE void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  __trap();
#endif
}

// Four matrices of 8 rows of 8 halves from shared memory; lane l points to the 16 bytes of row l % 8 of matrix l / 8.
// Lane (g, t) = (l / 4, l % 4) gets columns 2 t and 2 t + 1 of row g of each, or if turned of their transposes.
template <bool Turned>
RWKV_DEVICE void load_tiles(uint32_t (&to)[4], const void* row) {
  const auto at = uint32_t(__cvta_generic_to_shared(row));
  if constexpr (Turned)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(at)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(at)
                 : "memory");
}
// The transpose of one such matrix.
RWKV_DEVICE uint32_t turn_tile(uint32_t v) {
  uint32_t turned;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(turned) : "r"(v));
  return turned;
}

// ---- numbers and bits ----
RWKV_DEVICE uint32_t bits(float v) { return __float_as_uint(v); }
RWKV_DEVICE float from_bits(uint32_t v) { return __uint_as_float(v); }
RWKV_DEVICE uint64_t double_bits(double v) { return uint64_t(__double_as_longlong(v)); }
RWKV_DEVICE double from_double_bits(uint64_t v) { return __longlong_as_double(int64_t(v)); }
RWKV_DEVICE float half_to_float(uint16_t h) {
  float v;
  asm("cvt.f32.f16 %0, %1;" : "=f"(v) : "h"(h));
  return v;
}
RWKV_DEVICE uint16_t float_to_half(float v) {  // to nearest even
  uint16_t h;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(v));
  return h;
}
// Two of them in a word.
RWKV_DEVICE uint32_t floats_to_halves(float low, float high) {
#if __CUDA_ARCH__ >= 800
  uint32_t h;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(h) : "f"(high), "f"(low));
  return h;
#else
  return float_to_half(low) | uint32_t(float_to_half(high)) << 16;
#endif
}
// Two halves in a word, each minus its partner.
RWKV_DEVICE uint32_t subtract_halves(uint32_t a, uint32_t b) {
  uint32_t d;
  asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}
// Four of the eight bytes of (b, a), as the nibbles of the selector say.
RWKV_DEVICE uint32_t permute(uint32_t a, uint32_t b, uint32_t selector) { return __byte_perm(a, b, selector); }

// ---- memory ----
// Of what nobody reads again soon.
RWKV_DEVICE uint4 load_stream(const void* from) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from));
  return v;
}
RWKV_DEVICE void atomic_or(int32_t* to, int32_t v) { atomicOr(to, v); }

// 16 bytes to shared memory, in the background; zeros where they are not wanted.
RWKV_DEVICE void copy_async(void* to, const void* from, bool wanted) {
#if __CUDA_ARCH__ >= 800
  const auto at = uint32_t(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(wanted ? 16 : 0) : "memory");
#else
  *static_cast<uint4*>(to) = wanted ? *static_cast<const uint4*>(from) : uint4{0, 0, 0, 0};
#endif
}
// What has been asked for since the last commit is a group; all groups but the last N are there after wait<N>.
RWKV_DEVICE void commit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int N>
RWKV_DEVICE void wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

}  // namespace rwkv::cuda
#endif
