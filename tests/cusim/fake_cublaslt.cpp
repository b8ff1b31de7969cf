// In the place of cuBLASLt, for a simulated device: the functions that are used, by their documented meaning, on the
// host. It checks what NVIDIA's would refuse. In the environment: FAKE_CUBLASLT_LOG, a file for a line about each
// product; FAKE_CUBLASLT_FAIL, the name of a function whose calls fail, "Matmul:3" from the third on;
// FAKE_CUBLASLT_VERSION.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "cusim/half.h"

namespace {

constexpr int kInvalid = 7, kFailed = 14;  // CUBLAS_STATUS_INVALID_VALUE and INTERNAL_ERROR

struct Desc {
  int compute, scale;
  int32_t transposed[2] = {};  // A and B
};
struct Layout {
  int type;
  uint64_t rows, cols;
  int64_t ld;
};
struct Preference {
  uint64_t workspace = 0;
  uint32_t alignment[4] = {256, 256, 256, 256};
};
struct Algorithm {
  uint64_t data[8];
};
struct Found {
  Algorithm algorithm;
  size_t workspace;
  int status;
  float waves;
  int reserved[4];
};
constexpr uint64_t kMark = 0x666f756e64;

int live = 0;  // descriptions that nobody has destroyed

bool fails(const char* function) {
  const char* named = std::getenv("FAKE_CUBLASLT_FAIL");
  if (!named) return false;
  const std::string text = named, name = text.substr(0, text.find(':'));
  static int calls;
  static std::string counted;
  if (name != function) return false;
  if (counted != text) counted = text, calls = 0;
  return ++calls >= (name == text ? 1 : std::atoi(text.c_str() + name.size() + 1));
}

void note(const std::string& line) {
  const char* path = std::getenv("FAKE_CUBLASLT_LOG");
  if (!path) return;
  if (std::FILE* file = std::fopen(path, "a")) {
    std::fprintf(file, "%s\n", line.c_str());
    std::fclose(file);
  }
}

template <class T, class... Values>
int create(const char* function, void** to, Values... values) {
  if (fails(function)) return kFailed;
  *to = new T{values...};
  live++;
  return 0;
}
template <class T>
int destroy(void* of) {
  delete static_cast<T*>(of);
  live--;
  return 0;
}

float number(const void* from, int type, uint64_t i) {
  const uint16_t h = static_cast<const uint16_t*>(from)[i];
  return type == 2 ? cusim::half_to_float(h) : cusim::bf16_to_float(h);
}
bool aligned(const void* p, uint32_t to) { return reinterpret_cast<uintptr_t>(p) % to == 0; }

}  // namespace

#define FAKE extern "C" __attribute__((visibility("default")))

FAKE size_t cublasLtGetVersion() {
  const char* version = std::getenv("FAKE_CUBLASLT_VERSION");
  return version ? size_t(std::atoi(version)) : 130100;
}
FAKE int cublasLtCreate(void** handle) { return create<int>("Create", handle, 5); }
FAKE int cublasLtDestroy(void* handle) {
  destroy<int>(handle);
  note("destroyed, left " + std::to_string(live));
  return 0;
}
FAKE int cublasLtMatmulDescCreate(void** desc, int compute, int scale) {
  return create<Desc>("MatmulDescCreate", desc, compute, scale);
}
FAKE int cublasLtMatmulDescDestroy(void* desc) { return destroy<Desc>(desc); }
FAKE int cublasLtMatmulDescSetAttribute(void* desc, int attribute, const void* value, size_t bytes) {
  if ((attribute != 3 && attribute != 4) || bytes != sizeof(int32_t)) return kInvalid;
  std::memcpy(&static_cast<Desc*>(desc)->transposed[attribute - 3], value, bytes);
  return 0;
}
FAKE int cublasLtMatrixLayoutCreate(void** layout, int type, uint64_t rows, uint64_t cols, int64_t ld) {
  if (ld < int64_t(rows)) return kInvalid;
  return create<Layout>("MatrixLayoutCreate", layout, type, rows, cols, ld);
}
FAKE int cublasLtMatrixLayoutDestroy(void* layout) { return destroy<Layout>(layout); }
FAKE int cublasLtMatmulPreferenceCreate(void** preference) {
  return create<Preference>("MatmulPreferenceCreate", preference);
}
FAKE int cublasLtMatmulPreferenceDestroy(void* preference) { return destroy<Preference>(preference); }
FAKE int cublasLtMatmulPreferenceSetAttribute(void* preference, int attribute, const void* value, size_t bytes) {
  auto* p = static_cast<Preference*>(preference);
  if (attribute == 1 && bytes == sizeof p->workspace) return std::memcpy(&p->workspace, value, bytes), 0;
  if (attribute < 5 || attribute > 8 || bytes != sizeof(uint32_t)) return kInvalid;
  return std::memcpy(&p->alignment[attribute - 5], value, bytes), 0;
}

FAKE int cublasLtMatmulAlgoGetHeuristic(void*, void* desc, void* a, void* b, void* c, void* d, void* preference,
                                        int wanted, Found* found, int* count) {
  if (fails("MatmulAlgoGetHeuristic")) return kFailed;
  const auto* p = static_cast<const Desc*>(desc);
  const auto *w = static_cast<const Layout*>(a), *x = static_cast<const Layout*>(b), *y = static_cast<const Layout*>(d);
  const uint64_t outputs = p->transposed[0] ? w->cols : w->rows, k = p->transposed[0] ? w->rows : w->cols;
  if (wanted < 1 || c != d || p->compute != 68 || p->scale != 0 || p->transposed[1] != 0 || k != x->rows ||
      outputs != y->rows || x->cols != y->cols || w->type != x->type || (w->type != 2 && w->type != 14) || y->type != 0)
    return kInvalid;
  found[0] = {};
  const auto& alignment = static_cast<const Preference*>(preference)->alignment;
  std::memcpy(found[0].algorithm.data + 2, alignment, sizeof alignment);
  found[0].algorithm.data[0] = kMark;
  found[0].workspace = 1000;
  *count = fails("NoAlgorithm") ? 0 : 1;
  return 0;
}

FAKE int cublasLtMatmul(void*, void* desc, const void* alpha, const void* a, void* layout_a, const void* b,
                        void* layout_b, const void* beta, const void* c, void*, void* d, void* layout_d,
                        const Algorithm* algorithm, void* workspace, size_t bytes, void* stream) {
  if (fails("Matmul")) return kFailed;
  const auto* p = static_cast<const Desc*>(desc);
  const auto *w = static_cast<const Layout*>(layout_a), *x = static_cast<const Layout*>(layout_b),
             *y = static_cast<const Layout*>(layout_d);
  uint32_t alignment[4];
  std::memcpy(alignment, algorithm->data + 2, sizeof alignment);
  if (algorithm->data[0] != kMark || bytes < 1000 || !workspace || stream || c != d || !aligned(a, alignment[0]) ||
      !aligned(b, alignment[1]) || !aligned(d, alignment[3]) || *static_cast<const float*>(alpha) != 1 ||
      *static_cast<const float*>(beta) != 0)
    return kInvalid;
  const uint64_t outputs = y->rows, tokens = y->cols, k = x->rows;
  for (uint64_t t = 0; t < tokens; t++)
    for (uint64_t i = 0; i < outputs; i++) {
      double sum = 0;
      for (uint64_t j = 0; j < k; j++)
        sum += double(number(a, w->type, p->transposed[0] ? i * uint64_t(w->ld) + j : j * uint64_t(w->ld) + i)) *
               double(number(b, x->type, t * uint64_t(x->ld) + j));
      static_cast<float*>(d)[t * uint64_t(y->ld) + i] = float(sum);
    }
  note((p->transposed[0] ? "rows " : "columns ") + std::to_string(outputs) + " x " + std::to_string(k) + " x " +
       std::to_string(tokens) + " ld " + std::to_string(w->ld) + " " + std::to_string(x->ld) + " " +
       std::to_string(y->ld) + (w->type == 2 ? " f16" : " bf16"));
  return 0;
}
