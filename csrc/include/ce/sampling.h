// From logits to a token. In the `exact` rule a token is a pure function of the target's logits,
// the prefix, and (seed, position, sample index): temperature 0 takes the arg max, otherwise
//   argmax over the kept tokens of logits / temperature + Gumbel noise (philox.h),
// which is a sample of the processed distribution (the Gumbel-max trick). Ties go to the lowest id.
//
// Processors, in the order of Hugging Face transformers (frequency and presence, which it lacks,
// come after the repetition penalty as in other engines):
//   1. logit_bias          added
//   2. repetition_penalty  tokens of prompt and output: logit / r where positive, else logit * r
//   3. frequency_penalty   minus f * occurrences in the output; prompt tokens do not count
//      presence_penalty    minus p for tokens of the output; prompt tokens do not count
//   4. min_tokens          stop ids are -inf until that many tokens are out
//   5. allowed             tokens whose bit is 0 are -inf
//   6. temperature
//   7. top_k               exactly k tokens, lower ids first among equals
//   8. top_p               of what top_k left, renormalised: the smallest descending set whose
//                          probability is at least p, lower ids first among equals
//   9. min_p               tokens at least min_p times as probable as the most probable
// "Output" is everything after the prompt, drafted tokens before the position included.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "ce/kernels.h"
#include "ce/philox.h"

namespace ce {

struct SamplerParams {
  float temperature = 1.0f;  // 0: greedy
  int64_t top_k = 0;         // 0: off
  float top_p = 1.0f;        // 1: off
  float min_p = 0.0f;        // 0: off
  float repetition_penalty = 1.0f;
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  std::vector<std::pair<int32_t, float>> logit_bias;  // ids past a level's vocabulary are skipped
  int64_t min_tokens = 0;
  std::vector<int32_t> stop_ids;  // end the request; kept out by min_tokens
  uint64_t seed = 0;
  uint32_t sample_index = 0;
  int64_t prompt_length = 0;  // tokens before it are prompt
  int64_t source_length = 0;  // tokens before it are an encoder's: no penalty counts them
  bool rejection = false;     // reviews keep the distribution instead of the tokens: accept.h
};

// What one request asks of its tokens; immutable, shared by all levels and threads.
class Sampler {
 public:
  // Throws InvalidArgument, naming the parameter, its value and its limits.
  explicit Sampler(SamplerParams params);

  const SamplerParams& params() const { return params_; }
  bool greedy() const { return params_.temperature == 0.0f; }
  // Greedy choices are the same under both rules.
  bool rejects() const { return params_.rejection && !greedy(); }
  bool filters(int64_t vocab) const;
  bool penalises() const;
  bool blocks_stops(int64_t position) const {
    return !params_.stop_ids.empty() && position < params_.prompt_length + params_.min_tokens;
  }
  // Whether this token at this position ends the request, so that nothing need be drafted behind
  // it. Never where reviews keep the distribution: who reviews a token must not depend on it.
  bool ends_drafts(int32_t token, int64_t position) const {
    const auto& ids = params_.stop_ids;
    return !rejects() && !blocks_stops(position) &&
           std::find(ids.begin(), ids.end(), token) != ids.end();
  }
  NoiseKey noise(int64_t position) const {
    return {params_.seed, static_cast<uint32_t>(position), params_.sample_index, kTokenStream};
  }

 private:
  SamplerParams params_;
};

// How often each token stands in a prefix. A pure function of the prefix; successive positions of
// one row extend it.
class PrefixCounts {
 public:
  // Counts tokens[begin:end]. Continues the previous call when `restart` is false and end grew.
  // Ids outside [0, vocab) are skipped: this level cannot choose them.
  void count(const int32_t* tokens, int64_t begin, int64_t end, int64_t prompt_length,
             int64_t vocab, bool restart);
  std::span<const int32_t> distinct() const { return distinct_; }
  int32_t in_output(int32_t token) const { return output_[static_cast<size_t>(token)]; }

 private:
  std::vector<int32_t> output_;  // [vocab], -1: not in the prefix
  std::vector<int32_t> distinct_;
  int64_t end_ = 0;
};

struct Candidate {
  float value;
  float weight;  // exp((value - highest) / temperature)
  int32_t id;
};

// Working memory of a thread, reused from position to position; it grows and never shrinks.
struct SamplerScratch {
  std::vector<float> processed, perturbed, maxima, bounds, values, weights;
  std::vector<int32_t> ids;
  std::vector<Candidate> candidates;
  PrefixCounts counts;
};
SamplerScratch& sampler_scratch();  // this thread's

// One position of one row.
struct PositionInput {
  const float* logits;  // [vocab], not changed
  int64_t vocab;
  const int32_t* tokens;  // the row; tokens[0:position] is the prefix
  int64_t position;
  const uint32_t* allowed;  // bit id % 32 of word id / 32, or null: all
  bool new_row;             // false: the previous position in this scratch was of the same row
};

// The processed logits of one position, and what follows from them. Borrows the scratch: only one
// is alive per scratch. Everything is computed when first asked for.
class Decision {
 public:
  Decision(const Kernels& kernels, const Sampler& sampler, const PositionInput& input,
           SamplerScratch& scratch);

  // Throws InvalidArgument when no token is allowed, or when the logits are NaN or +inf.
  int32_t token();
  // Probability in the processed distribution (temperature 0: of the soft-max at temperature 1).
  float prob_of(int32_t token) { return static_cast<float>(probability(token)); }
  float logprob_of(int32_t token);
  // The whole processed distribution, [vocab]. Temperature above 0; throws as token() does.
  void distribution(float* out);
  // The `count` tokens that would be chosen first, second, ...: by what token() compares.
  std::vector<int32_t> ranked(int64_t count);
  // The `count` most probable tokens of the processed distribution with their log-probabilities;
  // fewer where fewer are kept.
  std::vector<std::pair<int32_t, float>> top(int64_t count);

 private:
  void process(const PositionInput& input);
  void keep();
  void keep_top_p(double total);
  void perturb_kept();
  int32_t best_kept();
  void check_choice(int64_t index) const;
  double probability(int32_t token);
  double log_total();
  float divisor() const { return sampler_.greedy() ? 1.0f : sampler_.params().temperature; }

  const Kernels& kernels_;
  const Sampler& sampler_;
  SamplerScratch& scratch_;
  const float* values_;
  int64_t vocab_;
  int64_t position_;
  bool filtered_;
  bool kept_ = false;
  double kept_total_ = 0.0;
  double log_total_ = 0.0;
  bool has_log_total_ = false;
  int32_t token_ = -1;
};

// The `count` largest of values[0:vocab] that are above -inf, descending, lower ids first among
// equals, in scratch.candidates (weights unset).
void largest(const Kernels& kernels, const float* values, int64_t vocab, int64_t count,
             SamplerScratch& scratch);

// Log-probabilities of a token that stands in a row, and of the most probable tokens beside it.
struct TokenLogprobs {
  float logprob;
  std::vector<std::pair<int32_t, float>> top;
};
// `processed` false: of the soft-max of the logits as they are.
TokenLogprobs token_logprobs(const Kernels& kernels, const Sampler& sampler,
                             const PositionInput& input, int32_t token, int64_t top_count,
                             bool processed, SamplerScratch& scratch);

}  // namespace ce
