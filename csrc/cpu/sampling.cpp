#include "ce/sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "ce/check.h"

namespace ce {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kLowestTemperature = 1e-6f;
constexpr double kShortListWeight = 1e-3;  // relative to the most probable token

// A total order: no two candidates are equal, so every selection is unique.
bool before(const Candidate& a, const Candidate& b) {
  return a.value > b.value || (a.value == b.value && a.id < b.id);
}

void resize_at_least(std::vector<float>& v, int64_t size) {
  if (static_cast<int64_t>(v.size()) < size) v.resize(static_cast<size_t>(size));
}

// Fills scratch.maxima; returns the largest value.
float find_maxima(const Kernels& kernels, const float* values, int64_t vocab,
                  SamplerScratch& scratch) {
  const int64_t tiles = (vocab + kMaximaTile - 1) / kMaximaTile;
  scratch.maxima.resize(static_cast<size_t>(tiles));
  kernels.tile_maxima(values, vocab, scratch.maxima.data());
  return *std::max_element(scratch.maxima.begin(), scratch.maxima.end());
}

// Candidates: every value >= bound and above -inf, ascending ids. Needs scratch.maxima.
void collect(const float* values, int64_t vocab, float bound, SamplerScratch& scratch) {
  scratch.candidates.clear();
  for (int64_t tile = 0; tile < static_cast<int64_t>(scratch.maxima.size()); ++tile) {
    if (scratch.maxima[static_cast<size_t>(tile)] < bound) continue;
    const int64_t end = std::min((tile + 1) * kMaximaTile, vocab);
    for (int64_t id = tile * kMaximaTile; id < end; ++id)
      if (values[id] >= bound && values[id] > -kInfinity)
        scratch.candidates.push_back({values[id], 0.0f, static_cast<int32_t>(id)});
  }
}

// Keeps the `count` largest candidates, in no particular order. The count-th largest tile maximum
// bounds the count-th largest value from below, so that few values are looked at twice.
void keep_largest(const float* values, int64_t vocab, int64_t count, SamplerScratch& scratch) {
  float bound = -kInfinity;
  if (count <= static_cast<int64_t>(scratch.maxima.size())) {
    scratch.bounds = scratch.maxima;
    const auto nth = scratch.bounds.begin() + (count - 1);
    std::nth_element(scratch.bounds.begin(), nth, scratch.bounds.end(), std::greater<float>());
    bound = *nth;
  }
  collect(values, vocab, bound, scratch);
  auto& list = scratch.candidates;
  if (static_cast<int64_t>(list.size()) <= count) return;
  std::nth_element(list.begin(), list.begin() + (count - 1), list.end(), before);
  list.resize(static_cast<size_t>(count));
}

void copy_values(SamplerScratch& scratch) {
  scratch.values.resize(scratch.candidates.size());
  for (size_t i = 0; i < scratch.candidates.size(); ++i)
    scratch.values[i] = scratch.candidates[i].value;
}

// Sets the candidates' weights; returns their sum.
double weigh(const Kernels& kernels, float highest, float temperature, SamplerScratch& scratch) {
  copy_values(scratch);
  scratch.weights.resize(scratch.values.size());
  const double sum =
      kernels.exp_terms(scratch.values.data(), static_cast<int64_t>(scratch.values.size()), highest,
                        temperature, scratch.weights.data());
  for (size_t i = 0; i < scratch.weights.size(); ++i)
    scratch.candidates[i].weight = scratch.weights[i];
  return sum;
}

void check_range(const char* name, double value, double low, double high, const char* meaning) {
  CE_CHECK(value >= low && value <= high, name, " must be in [", low, ", ", high, "], got ", value,
           "; ", meaning);
}

}  // namespace

Sampler::Sampler(SamplerParams params) : params_(std::move(params)) {
  const SamplerParams& p = params_;
  CE_CHECK(p.temperature == 0.0f || (p.temperature >= kLowestTemperature && p.temperature <= 1e6f),
           "temperature must be 0 (greedy) or in [", kLowestTemperature, ", 1e6], got ",
           p.temperature);
  CE_CHECK(p.top_k >= 0, "top_k must be >= 0 (0: off), got ", p.top_k);
  CE_CHECK(p.top_p > 0.0f && p.top_p <= 1.0f, "top_p must be in (0, 1] (1: off), got ", p.top_p);
  check_range("min_p", p.min_p, 0.0, 1.0, "0 switches it off");
  CE_CHECK(p.repetition_penalty > 0.0f && p.repetition_penalty <= 1e6f,
           "repetition_penalty must be in (0, 1e6] (1: off), got ", p.repetition_penalty);
  check_range("presence_penalty", p.presence_penalty, -1e6, 1e6, "0 switches it off");
  check_range("frequency_penalty", p.frequency_penalty, -1e6, 1e6, "0 switches it off");
  CE_CHECK(p.min_tokens >= 0, "min_tokens must be >= 0, got ", p.min_tokens);
  CE_CHECK(p.prompt_length >= 0, "prompt_length must be >= 0, got ", p.prompt_length);
  CE_CHECK(p.source_length >= 0, "source_length must be >= 0, got ", p.source_length);
  for (const auto& [id, bias] : p.logit_bias) {
    CE_CHECK(id >= 0, "logit_bias names token ", id, "; ids start at 0");
    CE_CHECK(bias < kInfinity, "logit_bias of token ", id, " is ", bias,
             "; it must be a number or -inf (which forbids the token)");
  }
  for (const int32_t id : p.stop_ids) CE_CHECK(id >= 0, "stop id ", id, "; ids start at 0");
}

bool Sampler::filters(int64_t vocab) const {
  return !greedy() && ((params_.top_k > 0 && params_.top_k < vocab) || params_.top_p < 1.0f ||
                       params_.min_p > 0.0f);
}

bool Sampler::penalises() const {
  return params_.repetition_penalty != 1.0f || params_.presence_penalty != 0.0f ||
         params_.frequency_penalty != 0.0f;
}

void PrefixCounts::count(const int32_t* tokens, int64_t begin, int64_t end, int64_t prompt_length,
                         int64_t vocab, bool restart) {
  if (restart || end < end_ || static_cast<int64_t>(output_.size()) != vocab) {
    for (const int32_t token : distinct_) output_[static_cast<size_t>(token)] = -1;
    distinct_.clear();
    output_.resize(static_cast<size_t>(vocab), -1);
    distinct_.reserve(static_cast<size_t>(vocab));
    end_ = begin;
  }
  for (; end_ < end; ++end_) {
    const int32_t token = tokens[end_];
    if (token < 0 || token >= vocab) continue;
    int32_t& count = output_[static_cast<size_t>(token)];
    if (count < 0) {
      count = 0;
      distinct_.push_back(token);
    }
    if (end_ >= prompt_length) ++count;
  }
}

SamplerScratch& sampler_scratch() {
  thread_local SamplerScratch scratch;
  return scratch;
}

Decision::Decision(const Kernels& kernels, const Sampler& sampler, const PositionInput& input,
                   SamplerScratch& scratch)
    : kernels_(kernels),
      sampler_(sampler),
      scratch_(scratch),
      values_(input.logits),
      vocab_(input.vocab),
      position_(input.position),
      filtered_(sampler.filters(input.vocab)) {
  process(input);
}

void Decision::process(const PositionInput& input) {
  const SamplerParams& p = sampler_.params();
  const bool penalises = sampler_.penalises();
  const bool blocks = sampler_.blocks_stops(position_);
  if (p.logit_bias.empty() && !penalises && !blocks && input.allowed == nullptr) return;

  resize_at_least(scratch_.processed, vocab_);
  float* values = scratch_.processed.data();
  std::copy(values_, values_ + vocab_, values);
  values_ = values;

  for (const auto& [id, bias] : p.logit_bias)
    if (id < vocab_) values[id] += bias;
  if (penalises) {
    PrefixCounts& counts = scratch_.counts;
    counts.count(input.tokens, p.source_length, position_, p.prompt_length, vocab_, input.new_row);
    for (const int32_t token : counts.distinct()) {
      float value = values[token];
      value = value > 0.0f ? value / p.repetition_penalty : value * p.repetition_penalty;
      if (const int32_t n = counts.in_output(token); n > 0)
        value -= p.frequency_penalty * static_cast<float>(n) + p.presence_penalty;
      values[token] = value;
    }
  }
  if (blocks)
    for (const int32_t id : p.stop_ids)
      if (id < vocab_) values[id] = -kInfinity;
  if (input.allowed != nullptr)
    for (int64_t word = 0; word * 32 < vocab_; ++word) {
      if (input.allowed[word] == 0xffffffffu) continue;
      const int64_t end = std::min(word * 32 + 32, vocab_);
      for (int64_t id = word * 32; id < end; ++id)
        if ((input.allowed[word] >> (id % 32) & 1u) == 0) values[id] = -kInfinity;
    }
}

// Leaves the kept tokens in scratch.candidates, with weights.
void Decision::keep() {
  if (kept_) return;
  const SamplerParams& p = sampler_.params();
  const float highest = find_maxima(kernels_, values_, vocab_, scratch_);
  if (highest == -kInfinity || highest == kInfinity) check_choice(kernels_.argmax(values_, vocab_));

  double total;  // weight of everything that top_p looks at
  const auto lowest_of_weight = [&](double weight) {
    const double slack = 1e-3;  // well above the rounding of exp and log; the list is cut again
    return static_cast<float>(highest + p.temperature * (std::log(weight) - slack));
  };
  if (p.top_k > 0 && p.top_k < vocab_) {
    keep_largest(values_, vocab_, p.top_k, scratch_);
    total = weigh(kernels_, highest, p.temperature, scratch_);
  } else if (p.top_p < 1.0f) {
    // Tokens lighter than (1 - p) total / vocab weigh less than (1 - p) total together.
    // Before that bound, which always suffices, a short list is tried, which mostly does.
    total = kernels_.exp_terms(values_, vocab_, highest, p.temperature, nullptr);
    const double negligible = (1.0 - p.top_p) * total / static_cast<double>(vocab_);
    double mass = 0.0;
    if (negligible < kShortListWeight) {
      collect(values_, vocab_, lowest_of_weight(kShortListWeight), scratch_);
      mass = weigh(kernels_, highest, p.temperature, scratch_);
    }
    if (mass < p.top_p * total) {
      collect(values_, vocab_, lowest_of_weight(negligible), scratch_);
      weigh(kernels_, highest, p.temperature, scratch_);
    }
  } else {
    collect(values_, vocab_, lowest_of_weight(p.min_p), scratch_);
    total = weigh(kernels_, highest, p.temperature, scratch_);
  }
  if (p.top_p < 1.0f) keep_top_p(total);
  if (p.min_p > 0.0f)
    std::erase_if(scratch_.candidates, [&](const Candidate& c) { return c.weight < p.min_p; });
  kept_total_ = 0.0;
  for (const Candidate& c : scratch_.candidates) kept_total_ += c.weight;
  kept_ = true;
}

// Quick-select by weight: halves the range that holds the set's last member until it is found.
void Decision::keep_top_p(double total) {
  auto& list = scratch_.candidates;
  const double wanted = static_cast<double>(sampler_.params().top_p) * total;
  double mass = 0.0;  // of list[0:low], which all belong to the set
  auto low = list.begin(), high = list.end();
  while (high - low > 1) {
    const auto middle = low + (high - low) / 2;
    std::nth_element(low, middle, high, before);
    double upper = 0.0;
    for (auto c = low; c != middle; ++c) upper += c->weight;
    if (mass + upper >= wanted) {
      high = middle;
    } else {
      mass += upper;
      low = middle;
    }
  }
  list.erase(high, list.end());
}

// Leaves the candidates' ids and values / temperature + noise in scratch.ids and perturbed.
void Decision::perturb_kept() {
  auto& s = scratch_;
  const int64_t count = static_cast<int64_t>(s.candidates.size());
  copy_values(s);
  s.ids.resize(s.values.size());
  for (size_t i = 0; i < s.ids.size(); ++i) s.ids[i] = s.candidates[i].id;
  resize_at_least(s.perturbed, count);
  kernels_.perturb(s.values.data(), s.ids.data(), count, sampler_.params().temperature,
                   sampler_.noise(position_), s.perturbed.data());
}

int32_t Decision::best_kept() {
  perturb_kept();
  const auto& s = scratch_;
  size_t best = 0;
  for (size_t i = 1; i < s.ids.size(); ++i)
    if (s.perturbed[i] > s.perturbed[best] ||
        (s.perturbed[i] == s.perturbed[best] && s.ids[i] < s.ids[best]))
      best = i;
  return s.ids[best];
}

std::vector<int32_t> Decision::ranked(int64_t count) {
  token();  // raises where there is no distribution
  auto& s = scratch_;
  std::vector<int32_t> out;
  if (filtered_) {
    perturb_kept();
    std::vector<size_t> order(s.ids.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = i;
    const size_t wanted = std::min(order.size(), static_cast<size_t>(count));
    std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(wanted),
                      order.end(), [&](size_t a, size_t b) {
                        return s.perturbed[a] != s.perturbed[b] ? s.perturbed[a] > s.perturbed[b]
                                                                : s.ids[a] < s.ids[b];
                      });
    for (size_t i = 0; i < wanted; ++i) out.push_back(s.ids[order[i]]);
    return out;
  }
  const float* values = values_;
  if (!sampler_.greedy()) {
    resize_at_least(s.perturbed, vocab_);
    kernels_.perturb(values_, nullptr, vocab_, sampler_.params().temperature,
                     sampler_.noise(position_), s.perturbed.data());
    values = s.perturbed.data();
  }
  largest(kernels_, values, vocab_, count, s);
  for (const Candidate& c : s.candidates) out.push_back(c.id);
  return out;
}

void Decision::check_choice(int64_t index) const {
  CE_CHECK(index >= 0, "the logits for position ", position_,
           " are all NaN; the model's weights or its input are broken");
  CE_CHECK(values_[index] < kInfinity, "the logit of token ", index, " for position ", position_,
           " is +inf; the model's weights are broken, or they overflow in this dtype");
  CE_CHECK(values_[index] > -kInfinity, "no token is allowed at position ", position_,
           ": the allowed-token mask, logit_bias and min_tokens exclude all ", vocab_);
}

int32_t Decision::token() {
  if (token_ >= 0) return token_;
  int64_t index;
  if (sampler_.greedy()) {
    index = kernels_.argmax(values_, vocab_);
  } else if (!filtered_) {
    index = kernels_.gumbel_argmax(values_, vocab_, sampler_.params().temperature,
                                   sampler_.noise(position_));
  } else {
    keep();
    index = best_kept();
  }
  check_choice(index);
  token_ = static_cast<int32_t>(index);
  return token_;
}

double Decision::log_total() {
  if (!has_log_total_) {
    token();  // raises where there is no distribution
    log_total_ = kernels_.log_sum_exp(values_, vocab_, divisor());
    has_log_total_ = true;
  }
  return log_total_;
}

double Decision::probability(int32_t token) {
  if (token < 0 || token >= vocab_) return 0.0;
  if (!filtered_) {
    const double exponent = static_cast<double>(values_[token]) / divisor() - log_total();
    return exponent == exponent ? std::exp(exponent) : 0.0;
  }
  keep();
  for (const Candidate& c : scratch_.candidates)
    if (c.id == token) return c.weight / kept_total_;
  return 0.0;
}

float Decision::logprob_of(int32_t token) {
  if (filtered_ || token < 0 || token >= vocab_)
    return static_cast<float>(std::log(probability(token)));
  const double value = static_cast<double>(values_[token]) / divisor() - log_total();
  return value == value ? static_cast<float>(value) : -kInfinity;
}

std::vector<std::pair<int32_t, float>> Decision::top(int64_t count) {
  std::vector<std::pair<int32_t, float>> out;
  if (count <= 0) return out;
  if (filtered_) {
    keep();
    auto& list = scratch_.candidates;
    std::sort(list.begin(), list.end(), before);
    for (const Candidate& c : list) {
      if (static_cast<int64_t>(out.size()) == count) break;
      out.emplace_back(c.id, static_cast<float>(std::log(c.weight / kept_total_)));
    }
    return out;
  }
  log_total();
  largest(kernels_, values_, vocab_, count, scratch_);
  for (const Candidate& c : scratch_.candidates) out.emplace_back(c.id, logprob_of(c.id));
  return out;
}

void largest(const Kernels& kernels, const float* values, int64_t vocab, int64_t count,
             SamplerScratch& scratch) {
  find_maxima(kernels, values, vocab, scratch);
  keep_largest(values, vocab, std::min(count, vocab), scratch);
  std::sort(scratch.candidates.begin(), scratch.candidates.end(), before);
}

TokenLogprobs token_logprobs(const Kernels& kernels, const Sampler& sampler,
                             const PositionInput& input, int32_t token, int64_t top_count,
                             bool processed, SamplerScratch& scratch) {
  static const Sampler plain{SamplerParams{}};  // temperature 1 and nothing else
  PositionInput as_is = input;
  as_is.allowed = nullptr;
  Decision decision(kernels, processed ? sampler : plain, processed ? input : as_is, scratch);
  return {decision.logprob_of(token), decision.top(top_count)};
}

}  // namespace ce
