// Floor 3: one model, its states, and the calls that step them.
#pragma once
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "backend/backend.h"
#include "engine/device_array.h"
#include "engine/lists.h"
#include "engine/state.h"
#include "engine/turn.h"
#include "model/adapters.h"
#include "model/config.h"
#include "model/scratch.h"

namespace rwkv {

class Model;
class StatePool;
struct Batch;

enum class Output { last, all, none, hidden };

// Called between panels of work from the calling thread; whatever it throws ends the call and leaves every state as it
// was.
using Poll = std::function<void()>;
using Progress = std::function<void(int64_t done, int64_t total)>;

struct EngineOptions {
  std::string strategy = "auto";
  int threads = 0;    // 0: one per core this process may use
  Progress progress;  // bytes of weights read
  Poll poll;
  std::optional<bool> sparse = {};  // as DeviceOptions have them
  bool pin = false;
  std::vector<AdapterSpec> adapters = {};  // merged into the weights, in this order
};

struct Sequence {
  std::span<const int32_t> tokens;  // at least one
  State* state;
  std::shared_ptr<const SamplerState> sampler = nullptr;  // becomes the state's with the step
  // In place of tokens: (T, C) vectors that enter where rows of the embedding table would, before the first norm. All
  // sequences of a call have them, or none has.
  std::span<const float> embeddings = {};
};

// What a model made of a token that was there.
struct TokenScore {
  float logprob;
  bool greedy;  // none is more likely, nor as likely with a lower id
};

class Engine : public std::enable_shared_from_this<Engine> {
 public:
  static std::shared_ptr<Engine> open(const std::string& path, const EngineOptions& options = {});
  ~Engine();

  const Config& config() const;
  const std::string& fingerprint() const;  // hex SHA-256 of configuration and sampled weights
  std::string description() const;         // "cpu avx512, 2 threads"; of several devices "A *10 -> B *2"
  size_t weight_bytes() const;             // packed
  size_t column_bytes() const;             // of those, what is kept a second time to skip zeros
  size_t state_bytes() const;              // of one state, portable form

  // Brings an adapter beside the weights, for states that are made with it. One that is there already is the same
  // again; it goes when nobody has it any more. Throws as AdapterWeights does, and what `poll` throws.
  std::shared_ptr<const AdapterWeights> load_adapter(const AdapterSpec& spec, const Poll& poll = {});

  // With an adapter of this engine, whose tokens all go through it. Throws StateError for one of another.
  using AdapterRef = std::shared_ptr<const AdapterWeights>;
  std::shared_ptr<State> new_state(AdapterRef adapter = nullptr);
  // One that begins with a tuned state, a file's or arrays called as in such a file: [value, key], or `transposed`.
  // Throws StateError.
  std::shared_ptr<State> new_state(const std::string& tuned_path, bool transposed = false,
                                   AdapterRef adapter = nullptr);
  std::shared_ptr<State> new_state(std::span<const StateArray> tuned, bool transposed = false,
                                   AdapterRef adapter = nullptr);
  void check_process() const;  // throws DeviceError after os.fork()

  // Steps every sequence through its tokens and writes rows one behind the other: last (S, V), all (sum of T, V), none
  // (), hidden (sum of T, C) after ln_out. An empty `result` leaves it at the last logits that the states keep. On any
  // error no state has changed.
  void forward(std::span<const Sequence> sequences, Output output, std::span<float> result, const Poll& poll = {},
               const Progress& progress = {});
  // In floats. Throws Error for logits of a model without a language-model head.
  size_t result_size(std::span<const Sequence> sequences, Output output) const;
  std::vector<float> forward(std::span<const Sequence> sequences, Output output = Output::last, const Poll& poll = {},
                             const Progress& progress = {});

  // The same rows, which stay on the device that has computed them: (S, V) and so on.
  DeviceArray forward_on_device(std::span<const Sequence> sequences, Output output = Output::last,
                                const Poll& poll = {}, const Progress& progress = {});

  // Steps one sequence and writes what the layers asked for (ascending) leave of its tokens, the residual behind each:
  // (layers, T, C).
  void layer_outputs(const Sequence& sequence, std::span<const int> layers, std::span<float> result,
                     const Poll& poll = {}, const Progress& progress = {});
  // What the head of an embedding model for a task makes of pooled rows of Output::hidden. Throws Error for another
  // model or task.
  std::vector<double> apply_task_head(std::string_view task, std::span<const double> pooled) const;
  // What each token of the sequences is given by those before it: all where the state has last logits, else all but the
  // first. A sequence may be empty. Memory does not depend on the number of tokens. The states stay as they are, or
  // `advance`, those of at most 32 sequences, over all tokens but the last, so that a text can be scored in pieces:
  // then each state may be there once, and as in forward() no error moves one.
  std::vector<std::vector<TokenScore>> score(std::span<const Sequence> sequences, const Poll& poll = {},
                                             const Progress& progress = {}, bool advance = false);

  // One draw for each job.
  std::vector<TokenLogprob> sample(std::span<const SampleJob> jobs, const Poll& poll = {});

  // ---- portable states ----
  // `contents` is what a state of this engine holds at one moment; its parts are stored as `type`, f32 or f16.
  size_t snapshot_size(const StateContents& contents, DType type = DType::f32) const;
  void to_bytes(const StateContents& contents, std::span<std::byte> snapshot,  // of exactly that size
                DType type = DType::f32);
  std::vector<std::byte> to_bytes(const State& state, DType type = DType::f32);
  // Of the adapter that made it, if that is loaded, or of the one that is given: another's throws StateError. With
  // check_weights = false other weights of the same shape may have made it; it goes on with the adapter that is given.
  std::shared_ptr<State> state_from_bytes(std::span<const std::byte> bytes, bool check_weights = true,
                                          AdapterRef adapter = nullptr);
  void save(const State& state, const std::string& path, DType type = DType::f32);
  std::shared_ptr<State> load_state(const std::string& path, bool check_weights = true, AdapterRef adapter = nullptr);
  std::vector<StateArray> parts(const State& state);
  // The same parts where they lie, by name; the state may move on meanwhile, these numbers stay. Throws DeviceError
  // where they do not lie in one piece, as layers are on several devices.
  std::vector<std::pair<std::string, DeviceArray>> views(const State& state);
  // Numbers of another library in memory of one of this engine's devices, or of the CPU.
  std::vector<int64_t> part_shape(const std::string& name) const;  // throws StateError where there is none
  void read_device(DeviceId device, const std::byte* from, std::span<std::byte> to);
  std::shared_ptr<State> state_from_parts(std::span<const StateArray> parts, AdapterRef adapter = nullptr);
  // The same contents, bit for bit: parts, tokens seen, last token, last logits, of the same adapter. How a text is
  // sampled is not compared.
  bool equal(const State& a, const State& b);

 private:
  Engine(std::shared_ptr<const Model> model, int64_t process);
  std::shared_ptr<State> state_with(std::vector<float> wkv, bool transposed, AdapterRef adapter);
  void check_mine(const AdapterRef& adapter) const;
  const std::string& fingerprint_of(const StateContents& contents) const;  // of whoever goes on with it
  std::vector<AdapterRef> adapters() const;                                // that are loaded
  void check_output(Output output) const;
  void check_tokens(std::span<const int32_t> tokens) const;
  void check_mine(const State& state) const;  // throws StateError for another engine's state
  using Look = std::function<void(const Tensor& rows)>;
  // Where a step's numbers go, beside the states.
  struct Results {
    Output output = Output::last;
    std::span<float> rows = {};        // if it is not empty
    float* on_device = nullptr;        // if there is such a place
    std::span<const int> layers = {};  // whose outputs go to
    float* of_layers = nullptr;        // (layers, T, C)
    Look look = {};                    // at rows as they come, in memory of the last device
  };
  void step(std::span<const Sequence> sequences, const Results& results, const Poll& poll, const Progress& progress);
  int64_t rows_of(const Sequence& sequence) const;
  void score_some(std::span<const Sequence> sequences, std::span<std::vector<TokenScore>> scores, const Poll& poll,
                  const Progress& progress, bool advance);
  void check_sequences(std::span<const Sequence> sequences, std::vector<const State*>& states) const;
  static void check_once(std::vector<const State*>& states);  // sorts them

  std::shared_ptr<const Model> model_;
  std::shared_ptr<StatePool> pool_;
  std::shared_ptr<const StateSlot> initial_;
  Workspace space_;
  std::shared_ptr<ResultMemory> results_;
  int64_t process_;
  Turn turn_;
  ListsPool lists_;
  mutable std::mutex loading_;
  std::vector<std::weak_ptr<const AdapterWeights>> adapters_;
};

}  // namespace rwkv
