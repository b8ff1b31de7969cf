#include <algorithm>
#include <cstring>

#include "backend/sample_job.h"
#include "core/philox.h"
#include "cuda/backend.h"

namespace rwkv::cuda {

namespace {

constexpr size_t kMostSampled = 1024;          // rows in one launch
constexpr size_t kMostBiased = 64;             // of those, as each has a copy of its own
constexpr size_t kSampling = size_t(1) << 20;  // bytes of their lists, if those of one row are not more

size_t biased_bytes(size_t vocabulary) { return (vocabulary * sizeof(float) + 63) / 64 * 64; }
bool biased(const SampleJob& job) { return !job.bias.empty(); }

// Of a row's lists, as an arena gives them out.
size_t list_bytes(size_t biases, size_t logits, size_t tops) {
  size_t bytes = 0;
  for (size_t list : {sizeof(SampleJobParams), biases * sizeof(TokenNumber), logits * sizeof(float),
                      sizeof(SampleResult), tops * sizeof(TokenNumber)})
    bytes += (list + 63) / 64 * 64;
  return bytes;
}
size_t list_bytes(const SampleJob& job) {
  return list_bytes(job.bias.size(), job.on_device ? 0 : size_t(job.logits.cols), job.top.size());
}

}  // namespace

void CudaBackend::prepare_sampling(int64_t vocabulary) {
  const auto n = size_t(vocabulary);
  sampling_.grow(*context_, std::max(kSampling, list_bytes(n, n, n)));
  const size_t scratch = sample_scratch_bytes(int(n)) * kMostSampled + biased_bytes(n) * kMostBiased;
  if (sample_scratch_.size < scratch) sample_scratch_ = {}, sample_scratch_ = context_->allocate(scratch);
}

// In the words of all devices.
void CudaBackend::refuse(const SampleJob& job, const SampleResult& found) {
  const auto n = size_t(job.logits.cols), where = size_t(found.where);
  if (found.code == SampleCode::all_infinite) refuse_no_logit(n);
  if (found.code == SampleCode::all_banned) refuse_all_banned(n);
  float logit = 0;
  if (job.on_device)
    context_->copy_out(&logit, job.logits.row(0) + where, sizeof logit);
  else
    logit = job.logits.row(0)[where];
  const auto bias = std::ranges::find(job.bias, found.where, &TokenBias::token);
  if (bias != job.bias.end() && found.code == SampleCode::not_finite_biased) logit += bias->bias;
  refuse_logit(where, logit, found.code == SampleCode::not_finite_biased);
}

void CudaBackend::sample(std::span<const SampleJob> jobs, std::span<TokenLogprob> drawn) {
  std::ranges::for_each(jobs, check);
  const Caller caller(context_->driver());
  for (size_t at = 0; at < jobs.size();) {
    // Rows of the model's own width have their room; others may come from a caller.
    const int64_t cols = jobs[at].logits.cols;
    prepare_sampling(cols);
    size_t count = 1, bytes = list_bytes(jobs[at]), copies = biased(jobs[at]);
    while (at + count < jobs.size() && count < kMostSampled && jobs[at + count].logits.cols == cols &&
           (bytes += list_bytes(jobs[at + count])) <= sampling_.host.size &&
           (copies += biased(jobs[at + count])) <= kMostBiased)
      count++;
    sample_some(jobs.subspan(at, count), drawn.subspan(at, count));
    at += count;
  }
}

// What goes up lies in front of what comes back.
void CudaBackend::sample_some(std::span<const SampleJob> jobs, std::span<TokenLogprob> drawn) {
  const auto n = size_t(jobs.front().logits.cols);
  size_t room = 0;
  for (const SampleJob& job : jobs) room += list_bytes(job);
  sampling_.grow(*context_, room);
  std::byte *const up = sampling_.device.data.get(), *const down = sampling_.host.data.get();
  Arena arena(sampling_.device);
  const auto place = [&]<class T>(size_t count, T*& list) {
    list = reinterpret_cast<T*>(arena.take(count * sizeof(T)));
  };
  // Of a list on the device the one that is copied to it or from it.
  const auto here = [&]<class T>(T* there) {
    return reinterpret_cast<std::remove_const_t<T>*>(down + (reinterpret_cast<const std::byte*>(there) - up));
  };
  SampleJobParams* there;
  place(jobs.size(), there);
  SampleJobParams* const params = here(there);
  std::byte* copies = sample_scratch_.data.get() + sample_scratch_bytes(int(n)) * kMostSampled;
  for (size_t i = 0; i < jobs.size(); i++) {
    const SampleJob& job = jobs[i];
    TokenNumber* bias;
    float* logits = job.logits.row(0);
    place(job.bias.size(), bias);
    std::ranges::transform(job.bias, here(bias), [](const TokenBias& b) { return TokenNumber{b.token, b.bias}; });
    if (!job.on_device) place(n, logits), std::copy_n(job.logits.row(0), n, here(logits));
    params[i] = {.logits = logits,
                 .bias = bias,
                 .top = nullptr,
                 .biased = reinterpret_cast<float*>(copies),
                 .scale = job.temperature == 0 ? 0 : 1 / double{job.temperature},
                 .uniform = philox_uniform(job.seed, job.counter),
                 .top_p = job.top_p,
                 .min_p = job.min_p,
                 .top_k = job.top_k,
                 .biases = int32_t(job.bias.size()),
                 .tops = int32_t(job.top.size()),
                 .given = job.given};
    if (biased(job)) copies += biased_bytes(n);
  }
  const size_t back = arena.used();
  SampleResult* results;
  place(jobs.size(), results);
  for (size_t i = 0; i < jobs.size(); i++) place(jobs[i].top.size(), params[i].top);
  context_->upload(up, down, back);
  const SampleParams p = {
      .jobs = there, .results = results, .scratch = sample_scratch_.data.get(), .vocabulary = int32_t(n)};
  fetched_ = nullptr;
  context_->launch(Kernel::sample, {int(jobs.size()), 1, 1}, &p);
  context_->download(down + back, up + back, arena.used() - back);
  context_->synchronise();
  for (size_t i = 0; i < jobs.size(); i++) {
    const SampleResult& found = here(results)[i];
    if (found.code != SampleCode::drawn) refuse(jobs[i], found);
    drawn[i] = {found.token, found.logprob};
    std::transform(here(params[i].top), here(params[i].top) + jobs[i].top.size(), jobs[i].top.begin(),
                   [](const TokenNumber& t) { return TokenLogprob{t.token, t.number}; });
  }
}

}  // namespace rwkv::cuda
