// Floor 1: what a device must do. Each verb is one parallel region on a CPU and one launch (or a short fixed run of
// them) on a GPU. Letters: L layers, C embedding, H heads, N head size, F ffn width, V vocabulary, T rows (tokens of
// all sequences in the batch, one behind the other), S sequences, R rows that want a result.
#pragma once
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/arena.h"
#include "core/tensor.h"

namespace rwkv {

// How a matrix is stored and multiplied.
enum class Format : uint8_t { f32, f16, bf16, i8, i4 };

// A matrix (rows = outputs, cols = inputs) packed for the device. Never owns.
struct Linear {
  std::byte* data = nullptr;
  Format format = Format::f32;
  int rows = 0, cols = 0;
  bool mostly_zero_inputs = false;
  std::byte* columns = nullptr;  // a second storage, by columns, to skip those whose inputs are zero; null: none
  explicit operator bool() const { return data != nullptr; }
};

// The left side of products: (rows, cols) activations in the layout and precision in which the device multiplies them
// with a Linear, whose Backend::operand_format this is. Producers write it, nobody else looks inside.
struct Operand {
  std::byte* data = nullptr;
  Format format = Format::f32;
  int rows = 0, cols = 0;
  explicit operator bool() const { return data != nullptr; }
};

// The rows of a matrix in a floating dtype, as they come from a file: `read` writes rows [row, row + count) to `to`. It
// is called by several threads at once, each with about `bytes`; what it throws ends the work.
struct RowSource {
  DType dtype = DType::f32;
  size_t bytes = 0;
  std::function<void(int64_t row, int64_t count, std::byte* to)> read;
};

struct Norm {
  Tensor weight, bias;  // (1, C)
  float eps = 1e-5f;
};

// All that a step reads from the host: which rows belong to which sequence, and whose results are wanted. Decode is
// every sequence one row long.
struct Batch {
  std::span<const int32_t> token;         // (T) token ids, all in [0, V)
  std::span<const int32_t> start;         // (S + 1) row where each sequence begins; none is empty
  std::span<const std::byte* const> src;  // (S) each sequence's state before the call; sequences may share one
  std::span<std::byte* const> dst;        // (S) and after it; all different, and equal to its own src or to none
  std::span<const int32_t> rows = {};     // (R) those that want a result, ascending
  // (T, C) in place of rows of the embedding table, before its norm; then token[t] is t. Empty: there are tokens.
  std::span<const float> embeddings = {};
};

enum class Act : uint8_t { none, tanh, sigmoid, silu, relu2 };  // silu: x sigmoid(x); relu2: max(0, x)^2

// y = W x, then exactly one of: `out` = act(y) as the operand of the next product; `sum` += y; neither: y = act(y) is
// the result. Where there is a gate, what goes to `out` or `sum` is multiplied with it; where there is a bias, `out` is
// act(y + bias). On devices that adapt(), w may have no data, but rows: then y is W x already, x says for how many
// rows, and what follows is done.
struct LinearJob {
  Operand x;  // (T, in)
  Linear w;   // (out, in)
  Tensor y;   // (T, out) f32; with `out` or `sum` it holds partial sums only
  Act act = Act::none;
  Operand out = {};  // (T, out)
  Tensor sum = {};   // (T, out) f32
  Tensor gate = {};  // (T, out) f32
  Tensor bias = {};  // (1, out) f32
};

// One lerp of the token shift: out = xn + (previous xn - xn) * mu, or * (mu + dynamic) where there is one.
struct MixJob {
  Tensor mu;            // (1, C)
  Operand out;          // (T, C)
  Tensor dynamic = {};  // (T, C) f32
};

// Some rows of an operand as one of their own: to = rows [first, first + to.rows) of `from`.
struct PickJob {
  Operand from;
  int first;
  Operand to;
};

// RWKV-7a's table of a small matrix for each token; formulas in model/rwkv7.h.
struct DeepEmbed {
  Tensor table;  // (V, D D), of which a step reads its tokens' rows; in the file where Backend::reads_mapped
  Tensor base;   // (T, D D) f32, added to them
  Tensor z;      // (T, D) f32, multiplied with them
};

// RWKV-4's recurrence, every channel for itself; formulas in model/rwkv4.h. a, b and m are its three state parts.
struct Wkv4 {
  Tensor r, k, v;              // (T, A) f32; r is what the result is multiplied with
  Tensor decay, bonus;         // (1, A); the decay is the logarithm of its factor
  size_t a = 0, b = 0, m = 0;  // bytes from the beginning of a slot
};

// RWKV-5's and 6's recurrence with everything that happens inside a head; formulas in model/rwkv6.h.
struct Wkv6 {
  Tensor r, k, v;       // (T, A) f32
  Tensor g;             // (T, A) what the result is multiplied with; empty: nothing
  Tensor w;             // (T, A) what a token adds to `decay`; empty: nothing
  Tensor decay, bonus;  // (1, A); a factor of the state is exp(-exp(decay))
  Norm out;             // group norm, one group per head
  int heads = 0, head_size = 0;
};

// RWKV-7's recurrence with everything that happens inside a head; formulas in model/rwkv7.h.
struct Wkv7 {
  Tensor r, w, k, v, a, g;           // (T, C) f32; w, a as the low-rank products leave them, before bias and gate
  Tensor v_mix;                      // (T, C) f32, before bias and sigmoid; empty in the first layer
  Tensor v_first;                    // (T, C) f32; written in the first layer, read in the others
  Tensor w0, a0, v0, k_k, k_a, r_k;  // (1, C); v0 empty in the first layer
  Norm out;                          // group norm, one group per head
  int heads = 0, head_size = 0;
};

// One named part of a layer's state in its portable form: a vector (C), or one matrix per head (H, N, N)
// [value, key]. How it lies on the device is the backend's own business.
struct StatePart {
  std::string name;
  std::vector<int64_t> shape;
  float initial = 0;
  DType dtype = DType::f32;  // in which a device keeps it: f32, or f16 where the strategy says state16
  int64_t count() const {
    int64_t n = 1;
    for (int64_t d : shape) n *= d;
    return n;
  }
};

// Where a part lies in each slot, and as what.
struct StatePlace {
  size_t at = 0;
  DType dtype = DType::f32;
};

// Added to a token's logit; -inf bans it.
struct TokenBias {
  int32_t token;
  float bias;
};

// A token with its share of the model's own distribution, before bias and truncation.
struct TokenLogprob {
  int32_t token;
  float logprob;
};

// One row of logits and how to draw from it. All randomness comes from (seed, counter), so results do not depend on
// scheduling. The order is: bias; then of softmax(logits) the tokens that top_p, top_k and min_p all keep; then
// temperature. Of equal tokens the lower id is the more likely.
struct SampleJob {
  Tensor logits;          // (1, V) in memory of the host, or of the device if `on_device` says so
  float temperature = 1;  // 0: the most likely token
  float top_p = 1;        // the most likely tokens that hold this share together, and those equal to the last of them
  int top_k = 0;          // the most likely tokens, this many; 0: all
  float min_p = 0;        // tokens at least this share as likely as the most likely
  uint64_t seed = 0, counter = 0;
  std::span<const TokenBias> bias = {};  // ascending tokens: penalties, logit bias and bans in one
  std::span<TokenLogprob> top = {};      // receives the most likely tokens, at most V, the most likely first
  bool on_device = false;
  int32_t given = -1;  // nothing is drawn: this token is taken, for its probability
};

// The largest step there will be of a model, so that the verbs never allocate.
struct StepShape {
  int64_t width = 0;          // of the widest row
  int64_t ffn = 0;            // and of one between the two matrices of the channel mix
  int rows = 0, results = 0;  // of a batch, and those of them that go through the head at a time
  int vocab = 0, heads = 0, head_size = 0;
  bool wkv7 = false;                 // which recurrence it has
  Format activations = Format::f32;  // as they meet the large matrices
};

// Where memory is, in the numbers that DLPack gives to kinds of devices.
struct DeviceId {
  enum Kind : int32_t { cpu = 1, cuda = 2 };
  Kind kind = cpu;
  int32_t index = 0;
  bool operator==(const DeviceId&) const = default;
};

// Weights of layers that take turns on a device.
class WeightStream {
 public:
  virtual ~WeightStream() = default;
  virtual Memory place(int layer) = 0;  // where a layer is whenever it is computed with; zeros now, to be loaded
  virtual void loaded(int layer) = 0;   // it lies there now, for the first time
  virtual void need(int layer) = 0;     // before the verbs with this layer; those before it have been called
};

// What the layers of a model ask of a device.
class Verbs {
 public:
  virtual ~Verbs() = default;

  // ---- shared by every version ----
  // xn = norm(x); every job's lerp with the previous row's xn. The state part at byte `shift` of each slot holds the
  // xn of the last row: read from src, written to dst unless this call is to be followed by another over the same rows.
  enum class Shift : uint8_t { keep, write };
  virtual void mix(const Tensor& x, const Norm&, std::span<const MixJob>, size_t shift, const Batch&,
                   Shift = Shift::write) = 0;
  virtual void linear(std::span<const LinearJob>) = 0;  // independent jobs, one region
  // Both, where every job's x is the `out` of a lerp and nothing else reads those: a device may make them on the way.
  virtual void mix_linear(const Tensor& x, const Norm& norm, std::span<const MixJob> mixes, size_t shift,
                          const Batch& batch, std::span<const LinearJob> jobs, Shift write = Shift::write) {
    mix(x, norm, mixes, shift, batch, write);
    linear(jobs);
  }
  // y[t] = z[t] (table[token[t]] + base[t]), a row times a matrix.
  virtual void deep_embed(const DeepEmbed&, const Batch&, Operand y) = 0;

  // ---- one recurrence per family ----
  virtual void wkv4(const Wkv4&, const Batch&, Operand y) = 0;
  virtual void wkv6(const Wkv6&, StatePlace state, const Batch&, Operand y) = 0;
  virtual void wkv7(const Wkv7&, StatePlace state, const Batch&, Operand y) = 0;
  // Both, where the job gives the recurrence's w as it is, and nothing else reads that: a device may make it on the
  // way.
  virtual void linear_wkv6(const LinearJob& job, const Wkv6& w, StatePlace state, const Batch& batch, Operand y) {
    linear({&job, 1});
    wkv6(w, state, batch, y);
  }
  // The same of w, a, g and, if there is one, v_mix, in this order.
  virtual void linear_wkv7(std::span<const LinearJob> jobs, const Wkv7& w, StatePlace state, const Batch& batch,
                           Operand y) {
    linear(jobs);
    wkv7(w, state, batch, y);
  }
};

// What lies in its memory is looked at by its verbs alone: above this floor a pointer into it is a number to add to.
// The verbs of a step come from one thread at a time, the calls of memory and of states from any.
class Backend : public Verbs {
 public:
  virtual std::string description() const = 0;  // "cpu avx512, 2 threads"
  virtual DeviceId device() const { return {}; }

  // ---- sizes ----
  // How the activations are stored that are multiplied with weights of a format.
  virtual Format operand_format(Format weights) const = 0;
  virtual size_t operand_bytes(Format, int rows, int cols) const = 0;
  virtual int64_t row_stride(int64_t cols) const = 0;  // floats from row to row of a (T, cols) activation tensor
  virtual size_t linear_bytes(const Linear& w) const = 0;
  // Of Linear::columns: 0 where this device skips nothing, or needs no second storage for it.
  virtual size_t column_bytes(const Linear& w) const = 0;
  virtual size_t state_bytes(const StatePart&) const = 0;
  // Numbers from one to the next of a part in each dimension of its shape, as it lies on the device.
  virtual std::vector<int64_t> state_strides(const StatePart&) const = 0;
  virtual size_t slab_bytes() const = 0;  // most bytes of slots for states to be allocated at once, if one fits
  // Most rows of one forward, if the largest part of a layer has so many multiply-adds per row: enough to compute at
  // full speed, few enough that such a part takes some 50 ms.
  virtual int panel_rows(int64_t work) const = 0;
  virtual int result_rows() const = 0;  // most rows of logits or hidden vectors at a time

  // ---- memory ----
  virtual Memory allocate(size_t bytes) = 0;   // zeroed
  virtual void prepare(const StepShape&) = 0;  // once per model
  // For so many layers of at most so many bytes. Throws DeviceError where weights lie in the host's memory anyway.
  virtual std::unique_ptr<WeightStream> stream(int layers, size_t bytes);
  virtual bool reads_mapped() const = 0;  // tables, and panels (backend/panels.h) as they lie in a file
  virtual void pack(const Linear& w, const RowSource& source) = 0;      // reads each row once
  virtual void copy(const Tensor& table, const RowSource& source) = 0;  // the same without packing, of equal dtypes
  virtual void pack_columns(const Linear& w) = 0;                       // of a matrix that is packed
  // The numbers of an f32 tensor from and to memory of the host, where rows lie one behind the other. Reading waits for
  // what is still to come into them.
  virtual void read(const Tensor& x, float* host) = 0;
  virtual void write(const Tensor& x, const float* host) = 0;
  virtual void copy_rows(const Tensor& from, const Tensor& to) = 0;  // f32, both on this device
  virtual void synchronise() {}                                      // everything that was asked for has happened
  virtual void settle() {}  // also for what other libraries have asked of the device
  // Numbers that another library has made, from any thread.
  virtual void read_foreign(const void* device, size_t bytes, void* host) = 0;
  // In float32 on the host. Of a part in halves, numbers past their range become the largest half.
  virtual void read_state(const StatePart&, const std::byte* device, float* host) const = 0;
  virtual void write_state(const StatePart&, std::byte* device, const float* host) const = 0;

  // ---- a step, beside its layers' verbs ----
  // In between, calls need not leave the thread as they found it: leave() does, in the same thread. See Visit.
  virtual void enter() {}
  virtual void leave() {}
  // Around the verbs of a step over some layers. They get the very Batch that was begun, whose lists stay as they are
  // until the end; after an error there is none, and the next step begins anew.
  virtual void begin(const Batch&) {}
  virtual void end() {}
  // x[t] = norm(table[token[t]]) where x is given, and the same as an operand where out is given. `table` may be x
  // itself where token[t] is t.
  virtual void embed(const Tensor& table, const Norm&, const Batch&, Tensor x, Operand out = {}) = 0;
  // Of rows [first, first + count) of those that want a result: y[i] = norm(x[rows[first + i]]) where y is given, and
  // the same as an operand where out is given.
  virtual void norm(const Tensor& x, const Norm&, const Batch&, int first, int count, Tensor y, Operand out) = 0;
  // Often before what it has looked at is read, by `read`; `to_be_read` says whether it will be.
  virtual bool all_finite(const Tensor& x, bool to_be_read) = 0;
  // Rows (n, N) of those that want a result, from the first-th on: those that are the last of their sequence in the
  // batch also go to byte `offset` of its dst slot.
  virtual void keep_rows(const Tensor& rows, const Batch&, int first, size_t offset);
  virtual void sample(std::span<const SampleJob>, std::span<TokenLogprob> drawn) = 0;  // one for each job

  // ---- for adapters of some rows of a batch ----
  virtual bool adapts() const { return false; }  // whether there is what they need: pick, and jobs without a matrix
  virtual void pick(std::span<const PickJob>);
};

// A stage's part of a step, which ends with whatever exception leaves.
class Visit {
 public:
  explicit Visit(Backend& backend) : backend_(backend) { backend_.enter(); }
  ~Visit() { backend_.leave(); }
  Visit(const Visit&) = delete;

 private:
  Backend& backend_;
};

struct DeviceOptions {
  int threads = 0;  // 0: one per core this process may use
  // Whether Linear::columns are kept, and zero inputs skipped: always, never, or, where nothing is said, when the share
  // of zeros says that it pays.
  std::optional<bool> sparse = std::nullopt;
  bool pin = false;  // each thread but the caller's stays on a core of its own
};

// "cpu", "cuda:0", "auto" for the best there is. Throws DeviceError if this build or this machine has no such device.
std::shared_ptr<Backend> open_backend(std::string_view device, const DeviceOptions&);

}  // namespace rwkv
