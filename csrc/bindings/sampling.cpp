// Sampling, and the kernels of one row of logits.
#include "ce/sampling.h"

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/rows.h"
#include "ce/check.h"
#include "ce/parallel.h"

namespace py = pybind11;

namespace ce {
namespace {

// One logit row for each token row.
struct SampleArgs {
  const float* logits;
  int64_t logits_stride, vocab;
  const int32_t* tokens;
  int64_t token_stride;
};

PositionInput position_input(const SampleArgs& args, int64_t logit_row, int64_t row,
                             int64_t position, const uint32_t* allowed, bool new_row) {
  return {args.logits + logit_row * args.logits_stride,
          args.vocab,
          args.tokens + row * args.token_stride,
          position,
          allowed,
          new_row};
}

void check_sample(const SampleArgs& args, const Ints& rows, const Ints& ends) {
  CE_CHECK(args.vocab > 0 && args.vocab <= INT32_MAX, "vocab must be in [1, 2^31), got ",
           args.vocab);
  CE_CHECK(args.logits_stride >= args.vocab, "logits_stride must be >= vocab ", args.vocab,
           ", got ", args.logits_stride);
  for (size_t i = 0; i < rows.size(); ++i) {
    CE_CHECK(rows[i] >= 0, "rows[", i, "] must be >= 0, got ", rows[i]);
    CE_CHECK(ends[i] >= 0 && ends[i] <= args.token_stride, "position ", ends[i], " of rows[", i,
             "] is outside 0..", args.token_stride);
  }
}

std::vector<std::pair<int32_t, float>> sample_rows(CpuContext& c, Address logits,
                                                   int64_t logits_stride, int64_t vocab,
                                                   Address tokens, int64_t token_stride,
                                                   const Ints& rows, const Ints& positions,
                                                   const Samplers& samplers,
                                                   const std::vector<Address>& allowed) {
  check_lengths(rows.size(), {{"positions", positions.size()},
                              {"samplers", samplers.size()},
                              {"allowed", allowed.empty() ? rows.size() : allowed.size()}});
  check_samplers(samplers);
  const SampleArgs args{pointer<float>(logits), logits_stride, vocab, pointer<int32_t>(tokens),
                        token_stride};
  check_sample(args, rows, positions);
  std::vector<std::pair<int32_t, float>> out(rows.size());
  for_each_item(c.pool, static_cast<int64_t>(rows.size()), [&](int64_t i) {
    const size_t r = static_cast<size_t>(i);
    const auto* mask = allowed.empty() ? nullptr : pointer<uint32_t>(allowed[r]);
    Decision decision(c.kernels, *samplers[r],
                      position_input(args, i, rows[r], positions[r], mask, true),
                      sampler_scratch());
    const int32_t token = decision.token();
    out[r] = {token, decision.prob_of(token)};
  });
  return out;
}

using Logprobs = std::pair<float, std::vector<std::pair<int32_t, float>>>;

// Positions starts[i]..starts[i]+counts[i]-1 of rows[i], which a review has judged; the logit rows
// are first_logit_rows[i].. in order, or with paths first_logit_rows[i] + paths[i][j].
struct Judged {
  SampleArgs args;
  const Ints &rows, &first_logit_rows, &starts, &counts;
  const Samplers& samplers;
  const std::vector<Address>& allowed;
  const std::vector<Ints>& paths;

  void check() const {
    check_lengths(rows.size(), {{"first_logit_rows", first_logit_rows.size()},
                                {"starts", starts.size()},
                                {"counts", counts.size()},
                                {"samplers", samplers.size()},
                                {"allowed", allowed.empty() ? rows.size() : allowed.size()},
                                {"paths", paths.empty() ? rows.size() : paths.size()}});
    check_samplers(samplers);
    Ints ends(rows.size());
    for (size_t i = 0; i < rows.size(); ++i) {
      CE_CHECK(starts[i] >= 0 && counts[i] >= 0 && first_logit_rows[i] >= 0,
               "starts, counts and first_logit_rows of entry ", i, " must be >= 0, got ", starts[i],
               ", ", counts[i], ", ", first_logit_rows[i]);
      CE_CHECK(paths.empty() || static_cast<int64_t>(paths[i].size()) == counts[i], "paths[", i,
               "] has ", paths.empty() ? 0 : paths[i].size(), " entries for ", counts[i],
               " positions");
      ends[i] = starts[i] + counts[i];
    }
    check_sample(args, rows, ends);
  }
  PositionInput input(size_t i, int64_t j) const {
    const int64_t offset = paths.empty() ? j : paths[i][static_cast<size_t>(j)];
    const int64_t mask_words = (args.vocab + 31) / 32;
    const auto* mask = allowed.empty() || allowed[i] == 0
                           ? nullptr
                           : pointer<uint32_t>(allowed[i]) + offset * mask_words;
    return position_input(args, first_logit_rows[i] + offset, rows[i], starts[i] + j, mask, j == 0);
  }
};

std::vector<std::vector<Logprobs>> logprobs_of_rows(
    CpuContext& c, Address logits, int64_t logits_stride, int64_t vocab, Address tokens,
    int64_t token_stride, const Ints& rows, const Ints& first_logit_rows, const Ints& starts,
    const Ints& counts, const Samplers& samplers, const Ints& top,
    const std::vector<bool>& processed, const std::vector<Address>& allowed,
    const std::vector<Ints>& paths) {
  check_lengths(rows.size(), {{"top", top.size()}, {"processed", processed.size()}});
  for (size_t i = 0; i < top.size(); ++i)
    CE_CHECK(top[i] >= 0, "top[", i, "] must be >= 0, got ", top[i]);
  const Judged judged{
      {pointer<float>(logits), logits_stride, vocab, pointer<int32_t>(tokens), token_stride},
      rows,
      first_logit_rows,
      starts,
      counts,
      samplers,
      allowed,
      paths};
  judged.check();
  std::vector<std::vector<Logprobs>> out(rows.size());
  for_each_item(c.pool, static_cast<int64_t>(rows.size()), [&](int64_t i) {
    const size_t r = static_cast<size_t>(i);
    for (int64_t j = 0; j < counts[r]; ++j) {
      const PositionInput input = judged.input(r, j);
      TokenLogprobs found =
          token_logprobs(c.kernels, *samplers[r], input, input.tokens[input.position], top[r],
                         processed[r], sampler_scratch());
      out[r].emplace_back(found.logprob, std::move(found.top));
    }
  });
  return out;
}

// The rejection rule draws tokens anew in each review: there the most probable ones are likeliest.
std::vector<int32_t> runners_up(Decision& decision, const Sampler& sampler, int64_t count) {
  if (!sampler.rejects()) return decision.ranked(count);
  std::vector<int32_t> ids;
  for (const auto& [id, logprob] : decision.top(count)) ids.push_back(id);
  return ids;
}

using Ranked = std::vector<std::pair<int32_t, float>>;

std::vector<std::vector<Ranked>> siblings_of_rows(
    CpuContext& c, Address logits, int64_t logits_stride, int64_t vocab, Address tokens,
    int64_t token_stride, const Ints& rows, const Ints& first_logit_rows, const Ints& starts,
    const Ints& counts, const Samplers& samplers, const Ints& siblings,
    const std::vector<Address>& allowed, const std::vector<Ints>& paths) {
  check_lengths(rows.size(), {{"siblings", siblings.size()}});
  for (size_t i = 0; i < siblings.size(); ++i)
    CE_CHECK(siblings[i] >= 0, "siblings[", i, "] must be >= 0, got ", siblings[i]);
  const Judged judged{
      {pointer<float>(logits), logits_stride, vocab, pointer<int32_t>(tokens), token_stride},
      rows,
      first_logit_rows,
      starts,
      counts,
      samplers,
      allowed,
      paths};
  judged.check();
  std::vector<std::vector<Ranked>> out(rows.size());
  for_each_item(c.pool, static_cast<int64_t>(rows.size()), [&](int64_t i) {
    const size_t r = static_cast<size_t>(i);
    for (int64_t j = 0; j < counts[r]; ++j) {
      const PositionInput input = judged.input(r, j);
      Decision decision(c.kernels, *samplers[r], input, sampler_scratch());
      Ranked ranked;
      for (const int32_t id : runners_up(decision, *samplers[r], siblings[r] + 1))
        if (id != input.tokens[input.position] && static_cast<int64_t>(ranked.size()) < siblings[r])
          ranked.emplace_back(id, decision.prob_of(id));
      out[r].push_back(std::move(ranked));
    }
  });
  return out;
}

void bind_kernels_of_one_row(py::module_& m) {
  py::class_<NoiseKey>(m, "NoiseKey",
                       "Names one noise vector: (seed, position, sample_index, stream).")
      .def(py::init([](uint64_t seed, uint32_t position, uint32_t sample_index, uint32_t stream) {
             return NoiseKey{seed, position, sample_index, stream};
           }),
           py::arg("seed"), py::arg("position"), py::arg("sample_index") = 0,
           py::arg("stream") = kTokenStream);
  m.def(
      "philox",
      [](const std::array<uint32_t, 4>& counter, const std::array<uint32_t, 2>& key) {
        const PhiloxBlock b =
            philox4x32(counter[0], counter[1], counter[2], counter[3], key[0], key[1]);
        return py::make_tuple(b.lane[0], b.lane[1], b.lane[2], b.lane[3]);
      },
      py::arg("counter"), py::arg("key"), "One Philox4x32-10 block: four words of 32 bits.");
  m.def(
      "argmax",
      [](CpuContext& c, Address values, int64_t count) {
        return c.kernels.argmax(pointer<float>(values), count);
      },
      py::arg("context"), py::arg("values"), py::arg("count"),
      py::call_guard<py::gil_scoped_release>(),
      "Index of the largest of `count` float32 values, the lowest among equals; NaN is never "
      "chosen; -1 when all are NaN.");
  m.def(
      "gumbel_argmax",
      [](CpuContext& c, Address values, int64_t count, float temperature, const NoiseKey& noise) {
        return c.kernels.gumbel_argmax(pointer<float>(values), count, temperature, noise);
      },
      py::arg("context"), py::arg("values"), py::arg("count"), py::arg("temperature"),
      py::arg("noise"), py::call_guard<py::gil_scoped_release>(),
      "Index of the largest values[i] / temperature + Gumbel noise of token i.");
  m.def(
      "perturb",
      [](CpuContext& c, Address values, Address ids, int64_t count, float temperature,
         const NoiseKey& noise, Address out) {
        c.kernels.perturb(pointer<float>(values), pointer<int32_t>(ids), count, temperature, noise,
                          pointer<float>(out));
      },
      py::arg("context"), py::arg("values"), py::arg("ids"), py::arg("count"),
      py::arg("temperature"), py::arg("noise"), py::arg("out"),
      py::call_guard<py::gil_scoped_release>(),
      "out[i] = values[i] / temperature + Gumbel noise of token ids[i] (int32; 0: token i).");
  m.def(
      "log_sum_exp",
      [](CpuContext& c, Address values, int64_t count, float temperature) {
        return c.kernels.log_sum_exp(pointer<float>(values), count, temperature);
      },
      py::arg("context"), py::arg("values"), py::arg("count"), py::arg("temperature") = 1.0f,
      py::call_guard<py::gil_scoped_release>(), "log(sum(exp(values / temperature))).");
}

py::dict sampler_params(const Sampler& sampler) {
  const SamplerParams& p = sampler.params();
  py::dict out;
  out["temperature"] = p.temperature;
  out["top_k"] = p.top_k;
  out["top_p"] = p.top_p;
  out["min_p"] = p.min_p;
  out["repetition_penalty"] = p.repetition_penalty;
  out["presence_penalty"] = p.presence_penalty;
  out["frequency_penalty"] = p.frequency_penalty;
  out["logit_bias"] = p.logit_bias;
  out["min_tokens"] = p.min_tokens;
  out["stop_ids"] = p.stop_ids;
  out["seed"] = p.seed;
  out["sample_index"] = p.sample_index;
  out["prompt_length"] = p.prompt_length;
  out["source_length"] = p.source_length;
  out["rejection"] = p.rejection;
  return out;
}

void bind_sampler(py::module_& m) {
  py::class_<Sampler, std::shared_ptr<Sampler>>(
      m, "Sampler",
      "What one request asks of its tokens: temperature, filters, penalties, noise; immutable. "
      "The order and meaning of the processors is told in csrc/include/ce/sampling.h.")
      .def(py::init([](float temperature, int64_t top_k, float top_p, float min_p,
                       float repetition_penalty, float presence_penalty, float frequency_penalty,
                       std::vector<std::pair<int32_t, float>> logit_bias, int64_t min_tokens,
                       std::vector<int32_t> stop_ids, uint64_t seed, uint32_t sample_index,
                       int64_t prompt_length, int64_t source_length, bool rejection) {
             return std::make_shared<Sampler>(SamplerParams{
                 temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty,
                 frequency_penalty, std::move(logit_bias), min_tokens, std::move(stop_ids), seed,
                 sample_index, prompt_length, source_length, rejection});
           }),
           py::kw_only(), py::arg("temperature") = 1.0f, py::arg("top_k") = 0,
           py::arg("top_p") = 1.0f, py::arg("min_p") = 0.0f, py::arg("repetition_penalty") = 1.0f,
           py::arg("presence_penalty") = 0.0f, py::arg("frequency_penalty") = 0.0f,
           py::arg("logit_bias") = std::vector<std::pair<int32_t, float>>(),
           py::arg("min_tokens") = 0, py::arg("stop_ids") = std::vector<int32_t>(),
           py::arg("seed") = 0, py::arg("sample_index") = 0, py::arg("prompt_length") = 0,
           py::arg("source_length") = 0, py::arg("rejection") = false,
           "temperature 0 is greedy; top_k 0, top_p 1, min_p 0, penalties 1 / 0 / 0 are off. "
           "logit_bias lists (token id, addend); min_tokens keeps stop_ids out of the first "
           "min_tokens tokens after the prompt. rejection: reviews keep the distribution, not the "
           "tokens. Raises ValueError naming the parameter.")
      .def_property_readonly("params", &sampler_params, "Its keywords, for other backends.")
      .def("ends_drafts", &Sampler::ends_drafts, py::arg("token"), py::arg("position"),
           "Whether this token there ends the request, so that nothing need be drafted behind it.")
      .def_property_readonly("rejects", &Sampler::rejects,
                             "Whether reviews go by the rejection rule: never at temperature 0.");
  m.def("sample", &sample_rows, py::arg("context"), py::arg("logits"), py::arg("logits_stride"),
        py::arg("vocab"), py::arg("tokens"), py::arg("token_stride"), py::arg("rows"),
        py::arg("positions"), py::arg("samplers"), py::arg("allowed") = std::vector<Address>(),
        py::call_guard<py::gil_scoped_release>(),
        "(token, probability) for each row: logit row i predicts position positions[i] of token "
        "row rows[i], whose earlier tokens are the prefix. `allowed`: addresses of uint32 masks "
        "[ceil(vocab / 32)], 0 for none.");
  m.def("logprobs", &logprobs_of_rows, py::arg("context"), py::arg("logits"),
        py::arg("logits_stride"), py::arg("vocab"), py::arg("tokens"), py::arg("token_stride"),
        py::arg("rows"), py::arg("first_logit_rows"), py::arg("starts"), py::arg("counts"),
        py::arg("samplers"), py::arg("top"), py::arg("processed"),
        py::arg("allowed") = std::vector<Address>(), py::arg("paths") = std::vector<Ints>(),
        py::call_guard<py::gil_scoped_release>(),
        "For each row, for each token at positions starts..starts + counts - 1 (predicted by logit "
        "rows first_logit_rows.., or with paths first_logit_rows[i] + paths[i][j]): (logprob, "
        "[(id, logprob) of the `top` most probable]). "
        "`processed` false: of the soft-max of the raw logits; true: of the distribution that was "
        "sampled from, where tokens filtered out have -inf and are not listed. Call it after "
        "`accept` with the same logits for the tokens emitted.");
  m.def("siblings", &siblings_of_rows, py::arg("context"), py::arg("logits"),
        py::arg("logits_stride"), py::arg("vocab"), py::arg("tokens"), py::arg("token_stride"),
        py::arg("rows"), py::arg("first_logit_rows"), py::arg("starts"), py::arg("counts"),
        py::arg("samplers"), py::arg("siblings"), py::arg("allowed") = std::vector<Address>(),
        py::arg("paths") = std::vector<Ints>(), py::call_guard<py::gil_scoped_release>(),
        "For each row, for each position as in `logprobs`: up to siblings[i] pairs (token, "
        "probability) that the sampler would have chosen next after the token that stands there: "
        "by logits / temperature + noise, or by logits at temperature 0 and where it rejects.");
}

}  // namespace
}  // namespace ce

void bind_sampling(py::module_& m) {
  ce::bind_kernels_of_one_row(m);
  ce::bind_sampler(m);
}
