#include "cuda/cublaslt.h"

#include <cstdlib>
#include <vector>

#include "core/error.h"
#include "core/platform.h"

namespace rwkv::cuda {

namespace {

// Names and numbers are those of cublasLt.h and library_types.h.
using Status = int;
constexpr int kR32F = 0, kR16F = 2, kR16BF = 14, kCompute32F = 68, kTransposed = 1;
constexpr int kDescTransA = 3;
constexpr int kPrefWorkspace = 1, kPrefAlignments[] = {5, 6, 7, 8};  // of A, B, C and D
struct Algorithm {
  uint64_t data[8];
};
struct Found {
  Algorithm algorithm;
  size_t workspace;
  Status status;
  float waves;
  int reserved[4];
};
static_assert(sizeof(Found) == 96);

constexpr uint32_t kAlignment = 64;  // of what an arena gives out
constexpr size_t kMostPlans = 64;

// In this order: what whoever starts this process says, what a process has loaded already or the system finds, and
// what pip has installed beside this package.
std::vector<std::string> places() {
  if (const char* named = std::getenv("RWKV_CUBLASLT"); named && *named) return {named};
  static const char here = 0;
  const std::string packages = folder_of(&here) + "/../nvidia/";
  return {"libcublasLt.so.13", "libcublasLt.so.12", packages + "cu13/lib/libcublasLt.so.13",
          packages + "cublas/lib/libcublasLt.so.12"};
}

void check(Status status, const char* what) {
  RWKV_CHECK(DeviceError, status == 0, "cublasLt", what, ": expected status 0, found ", status);
}

}  // namespace

struct CublasLt::Functions {
  Library library;
  explicit Functions(const std::string& place) : library(place) {}
  template <class F>
  F* find(const char* name) {
    void* const function = library.find(name);
    RWKV_CHECK(DeviceError, function, "expected ", name, ", found none");
    return reinterpret_cast<F*>(function);
  }
#define RWKV_LT(name, result, ...) result (*name)(__VA_ARGS__) = find<result(__VA_ARGS__)>("cublasLt" #name)
  RWKV_LT(GetVersion, size_t);
  RWKV_LT(Create, Status, void** handle);
  RWKV_LT(Destroy, Status, void* handle);
  RWKV_LT(MatmulDescCreate, Status, void** desc, int compute, int scale);
  RWKV_LT(MatmulDescSetAttribute, Status, void* desc, int attribute, const void* value, size_t bytes);
  RWKV_LT(MatmulDescDestroy, Status, void* desc);
  RWKV_LT(MatrixLayoutCreate, Status, void** layout, int type, uint64_t rows, uint64_t cols, int64_t ld);
  RWKV_LT(MatrixLayoutDestroy, Status, void* layout);
  RWKV_LT(MatmulPreferenceCreate, Status, void** preference);
  RWKV_LT(MatmulPreferenceSetAttribute, Status, void* preference, int attribute, const void* value, size_t bytes);
  RWKV_LT(MatmulPreferenceDestroy, Status, void* preference);
  RWKV_LT(MatmulAlgoGetHeuristic, Status, void* handle, void* desc, void* a, void* b, void* c, void* d,
          void* preference, int wanted, Found* found, int* count);
  RWKV_LT(Matmul, Status, void* handle, void* desc, const void* alpha, const void* a, void* layout_a, const void* b,
          void* layout_b, const void* beta, const void* c, void* layout_c, void* d, void* layout_d,
          const Algorithm* algorithm, void* workspace, size_t bytes, void* stream);
#undef RWKV_LT
};

// What it wants to know of products of one shape. Its matrices are by columns, so that rows of ours are columns of its,
// and it computes the transpose of what we have: y' = w x', of outputs and tokens.
struct CublasLt::Plan {
  const Functions& lt;
  void *desc = nullptr, *w = nullptr, *x = nullptr, *y = nullptr, *preference = nullptr;
  Algorithm algorithm = {};

  Plan(const Functions& functions, void* handle, const PlainProduct& p, uint64_t bytes) : lt(functions) {
    try {
      find(handle, p, bytes);
    } catch (...) {
      destroy();
      throw;
    }
  }
  ~Plan() { destroy(); }
  Plan(const Plan&) = delete;

 private:
  void find(void* handle, const PlainProduct& p, uint64_t bytes) {
    const int type = p.format == Stored::f16 ? kR16F : kR16BF;
    const auto n = uint64_t(p.outputs), k = uint64_t(p.k), tokens = uint64_t(p.tokens);
    check(lt.MatmulDescCreate(&desc, kCompute32F, kR32F), "MatmulDescCreate");
    if (!p.by_columns) {
      const int32_t transposed = kTransposed;
      check(lt.MatmulDescSetAttribute(desc, kDescTransA, &transposed, sizeof transposed), "MatmulDescSetAttribute");
    }
    check(lt.MatrixLayoutCreate(&w, type, p.by_columns ? n : k, p.by_columns ? k : n, p.ld_w), "MatrixLayoutCreate");
    check(lt.MatrixLayoutCreate(&x, type, k, tokens, p.ld_x), "MatrixLayoutCreate");
    check(lt.MatrixLayoutCreate(&y, kR32F, n, tokens, p.ld_y), "MatrixLayoutCreate");
    check(lt.MatmulPreferenceCreate(&preference), "MatmulPreferenceCreate");
    const auto prefer = [&](int attribute, const auto& value) {
      check(lt.MatmulPreferenceSetAttribute(preference, attribute, &value, sizeof value),
            "MatmulPreferenceSetAttribute");
    };
    prefer(kPrefWorkspace, bytes);
    for (int attribute : kPrefAlignments) prefer(attribute, kAlignment);
    Found found = {};
    int count = 0;
    check(lt.MatmulAlgoGetHeuristic(handle, desc, w, x, y, y, preference, 1, &found, &count), "MatmulAlgoGetHeuristic");
    RWKV_CHECK(DeviceError, count > 0 && found.status == 0 && found.workspace <= bytes,
               "cublasLtMatmulAlgoGetHeuristic: expected a way to multiply ", p.outputs, " x ", p.k, " x ", p.tokens,
               ", found none");
    algorithm = found.algorithm;
  }
  void destroy() {
    if (preference) lt.MatmulPreferenceDestroy(preference);
    for (void* layout : {y, x, w})
      if (layout) lt.MatrixLayoutDestroy(layout);
    if (desc) lt.MatmulDescDestroy(desc);
  }
};

CublasLt::CublasLt() : process_(process_id()) {
  std::string reasons;
  for (const std::string& place : places()) {
    try {
      open(place);
      return;
    } catch (const Error& e) {
      reasons += join(reasons.empty() ? "" : "; ", place, ": ", e.what());
    }
  }
  throw DeviceError(reasons);
}

void CublasLt::open(const std::string& place) {
  auto lt = std::make_unique<const Functions>(place);
  // 130100 and, of later ones, 13.1.0 with two digits each.
  const size_t version = lt->GetVersion(), major = version / 10000;
  RWKV_CHECK(DeviceError, major == 12 || major == 13, "expected cuBLASLt 12 or 13, found version ", version);
  check(lt->Create(&handle_), "Create");
  version_ = join(major, ".", version / 100 % 100, ".", version % 100);
  lt_ = std::move(lt);
}

CublasLt::~CublasLt() {
  plans_.clear();
  if (process_id() == process_) lt_->Destroy(handle_);  // the device is the parent's after a fork
}

const CublasLt::Plan& CublasLt::plan_for(const PlainProduct& p, size_t bytes) {
  const Key key{p.format, p.by_columns, p.outputs, p.k, p.tokens, p.ld_w, p.ld_x, p.ld_y};
  if (const auto found = plans_.find(key); found != plans_.end()) return *found->second;
  auto plan = std::make_unique<Plan>(*lt_, handle_, p, bytes);
  if (plans_.size() == kMostPlans) plans_.clear();
  return *(plans_[key] = std::move(plan));
}

void CublasLt::multiply(const PlainProduct& p, void* workspace, size_t bytes, void* stream) {
  const Plan& plan = plan_for(p, bytes);
  const float one = 1, zero = 0;
  check(lt_->Matmul(handle_, plan.desc, &one, p.w, plan.w, p.x, plan.x, &zero, p.y, plan.y, p.y, plan.y,
                    &plan.algorithm, workspace, bytes, stream),
        "Matmul");
}

}  // namespace rwkv::cuda
