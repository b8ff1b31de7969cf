// Which instruction set runs here. Asked once, when a backend opens.
#include <cstdlib>
#include <string>
#include <string_view>

#include "core/error.h"
#include "core/platform.h"
#include "cpu/kernels.h"
#include "cpu/simd/x86.h"

namespace rwkv::cpu {

namespace {

struct Candidate {
  const Kernels* kernels;
  bool runs;       // on this machine
  bool preferred;  // without being asked for
};

}  // namespace

const Kernels& choose_kernels() {
  const x86::Features has = x86::features();
  // Best first. vdpbf16ps gives the same bits as widening to float32 and is twice as fast on AMD (Zen 4), but Intel's
  // runs at half the rate of the float32 FMAs it stands for (118 against 220 Gop/s a core): there only RWKV_ISA chooses
  // it. Tiles multiply int8 and bf16; all else is as with VNNI.
  const Candidate candidates[] = {
#if RWKV_X86
      {&kAvx512Bf16, has.avx512bf16, !has.intel},
      {&kAvx512Amx, has.avx512amx && request_tiles(), true},
      {&kAvx512Vnni, has.avx512vnni, true},
      {&kAvx512, has.avx512, true},
      {&kAvxVnni, has.avxvnni, true},
      {&kAvx2, has.avx2, true},
#endif
      {&kGeneric, true, true},
  };
  const char* wanted = std::getenv("RWKV_ISA");
  if (!wanted || !*wanted) {
    for (const Candidate& c : candidates)
      if (c.runs && c.preferred) return *c.kernels;
  }
  std::string names;
  for (const Candidate& c : candidates) {
    if (!c.runs) continue;
    if (std::string_view(c.kernels->name) == wanted) return *c.kernels;
    names += (names.empty() ? "" : ", ") + std::string(c.kernels->name);
  }
  throw DeviceError(join("RWKV_ISA: expected one of the instruction sets this machine can run (", names, "), found \"",
                         wanted, "\""));
}

FlushDenormals::FlushDenormals(bool flush) : saved_(x86::float_mode()) {
  x86::set_float_mode(flush ? x86::kFlushDenormals : x86::kKeepDenormals);
}
FlushDenormals::~FlushDenormals() { x86::set_float_mode(saved_); }

void spin_pause() { x86::pause(); }

}  // namespace rwkv::cpu
