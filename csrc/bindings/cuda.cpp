// The CUDA launchers, called with keywords: pointers as integers, structs as dictionaries. The same
// file binds them for the GPU (in _C) and for the host emulation (in the tests' module).
#include <pybind11/pybind11.h>

#include <string>
#include <type_traits>

#include "ce/check.h"
#include "ce/cuda_kernels.h"

namespace py = pybind11;
using namespace ce;
using namespace ce::cuda;

namespace {

// Takes named values out of keywords; finish() refuses what nobody took.
class Keywords {
 public:
  Keywords(const char* what, py::dict values) : what_(what), values_(std::move(values)) {}

  template <typename T>
  Keywords& take(const char* name, T& field) {
    CE_CHECK(values_.contains(name), what_, ": missing argument ", name);
    convert(values_[name], field);
    ++taken_;
    return *this;
  }
  void finish() const {
    CE_CHECK(taken_ == values_.size(), what_, ": ", values_.size() - taken_,
             " unknown argument(s) among the ", values_.size());
  }

 private:
  template <typename T>
  static void convert(const py::handle& value, T& field) {
    if constexpr (std::is_pointer_v<T>)
      field = reinterpret_cast<T>(value.cast<std::uintptr_t>());
    else if constexpr (std::is_enum_v<T>)
      field = static_cast<T>(value.cast<std::underlying_type_t<T>>());
    else
      field = value.cast<T>();
  }
  static void convert(const py::handle& value, Batch& b) {
    Keywords k("batch", value.cast<py::dict>());
    k.take("rows", b.rows).take("width", b.width).take("slots", b.slots).take("starts", b.starts);
    k.take("counts", b.counts).take("bases", b.bases).take("ancestors", b.ancestors);
    k.take("tokens", b.tokens).take("token_stride", b.token_stride);
    k.take("block_tables", b.block_tables).take("table_stride", b.table_stride).finish();
  }
  static void convert(const py::handle& value, CacheView& c) {
    Keywords k("cache", value.cast<py::dict>());
    k.take("keys", c.keys).take("values", c.values).take("dtype", c.dtype);
    k.take("kv_heads", c.kv_heads).take("head_dim", c.head_dim).finish();
  }

  const char* what_;
  py::dict values_;
  size_t taken_ = 0;
};

GateArgs gate_args(const char* name, const py::kwargs& kwargs) {
  GateArgs a;
  Keywords k(name, kwargs);
  k.take("gate_up", a.gate_up).take("rows", a.rows).take("cols", a.cols).take("out", a.out);
  k.take("out_stride", a.out_stride).take("dtype", a.dtype).finish();
  return a;
}

void bind_forward(py::module_& m) {
  m.def("embedding", [](Stream stream, const py::kwargs& kwargs) {
    EmbeddingArgs a;
    Keywords k("embedding", kwargs);
    k.take("batch", a.batch).take("table", a.table).take("dtype", a.dtype);
    k.take("packed", a.packed).take("vocab", a.vocab).take("cols", a.cols);
    k.take("out", a.out).finish();
    embedding(a, stream);
  });
  m.def("select_logit_rows", [](Stream stream, const py::kwargs& kwargs) {
    SelectArgs a;
    Keywords k("select_logit_rows", kwargs);
    k.take("batch", a.batch).take("wanted", a.wanted).take("logit_width", a.logit_width);
    k.take("x", a.x).take("words", a.words).take("out", a.out).finish();
    select_logit_rows(a, stream);
  });
  m.def("rms_norm", [](Stream stream, const py::kwargs& kwargs) {
    ce::cuda::RmsNormArgs a;
    Keywords k("rms_norm", kwargs);
    k.take("x", a.x).take("weight", a.weight).take("eps", a.eps).take("rows", a.rows);
    k.take("cols", a.cols).take("out", a.out).take("out_stride", a.out_stride);
    k.take("dtype", a.dtype).finish();
    rms_norm(a, stream);
  });
  m.def("swiglu", [](Stream stream, const py::kwargs& kwargs) {
    swiglu(gate_args("swiglu", kwargs), stream);
  });
  m.def("geglu",
        [](Stream stream, const py::kwargs& kwargs) { geglu(gate_args("geglu", kwargs), stream); });
  m.def("linear", [](Stream stream, const py::kwargs& kwargs) {
    ce::cuda::LinearArgs a;
    Keywords k("linear", kwargs);
    k.take("weights", a.weights).take("dtype", a.dtype).take("n", a.n).take("k", a.k);
    k.take("x", a.x).take("x_stride", a.x_stride).take("rows", a.rows).take("bias", a.bias);
    k.take("output", a.output).take("y", a.y).take("y_stride", a.y_stride);
    k.take("y_cols", a.y_cols).take("workspace", a.workspace).take("counters", a.counters);
    k.take("multiprocessors", a.multiprocessors).finish();
    linear(a, stream);
  });
  m.def("linear_splits", &linear_splits);
  m.def("linear_workspace_floats", &linear_workspace_floats);
  m.def("linear_counters", &linear_counters);
}

void bind_cache(py::module_& m) {
  m.def("rope_angles", [](Stream stream, const py::kwargs& kwargs) {
    RopeAnglesArgs a;
    Keywords k("rope_angles", kwargs);
    k.take("batch", a.batch).take("inv_freq", a.inv_freq).take("half", a.half);
    k.take("cos", a.cos).take("sin", a.sin).finish();
    rope_angles(a, stream);
  });
  m.def("rope_store", [](Stream stream, const py::kwargs& kwargs) {
    ce::cuda::RopeStoreArgs a;
    Keywords k("rope_store", kwargs);
    k.take("batch", a.batch).take("qkv", a.qkv).take("cos", a.cos).take("sin", a.sin);
    k.take("heads", a.heads).take("cache", a.cache).take("queries", a.queries).finish();
    rope_store(a, stream);
  });
  m.def("commit_path", [](Stream stream, const py::kwargs& kwargs) {
    CommitArgs a;
    Keywords k("commit_path", kwargs);
    k.take("batch", a.batch).take("paths", a.paths).take("path_lengths", a.path_lengths);
    k.take("path_stride", a.path_stride).take("cache", a.cache).take("planes", a.planes);
    k.take("plane_elements", a.plane_elements).take("kv_heads", a.kv_heads);
    k.take("head_dim", a.head_dim).finish();
    commit_path(a, stream);
  });
  m.def("copy_pages", [](Stream stream, const py::kwargs& kwargs) {
    CopyPagesArgs a;
    Keywords k("copy_pages", kwargs);
    k.take("pairs", a.pairs).take("count", a.count).take("cache", a.cache);
    k.take("planes", a.planes).take("plane_elements", a.plane_elements);
    k.take("page_elements", a.page_elements).finish();
    copy_pages(a, stream);
  });
  m.def("attention", [](Stream stream, const py::kwargs& kwargs) {
    ce::cuda::AttentionArgs a;
    Keywords k("attention", kwargs);
    k.take("batch", a.batch).take("queries", a.queries).take("heads", a.heads);
    k.take("scale", a.scale).take("bias", a.bias.table).take("bias_reach", a.bias.reach);
    k.take("sources", a.sources).take("over_source", a.over_source).take("cache", a.cache);
    k.take("out", a.out);
    k.take("max_chunks", a.max_chunks).take("partials", a.partials);
    k.take("multiprocessors", a.multiprocessors).take("shared_limit", a.shared_limit).finish();
    attention(a, stream);
  });
  m.def("attention_partial_floats", &attention_partial_floats);
}

// Samplers lie in device memory: Python copies there what this writes to host memory.
void pack_sampler(std::uintptr_t out, const py::kwargs& kwargs) {
  auto& s = *reinterpret_cast<DeviceSampler*>(out);
  Keywords k("pack_sampler", kwargs);
  k.take("temperature", s.temperature).take("top_p", s.top_p).take("min_p", s.min_p);
  k.take("repetition_penalty", s.repetition_penalty);
  k.take("presence_penalty", s.presence_penalty);
  k.take("frequency_penalty", s.frequency_penalty);
  k.take("top_k", s.top_k).take("sample_index", s.sample_index).take("seed", s.seed);
  k.take("prompt_length", s.prompt_length).take("min_tokens", s.min_tokens);
  k.take("source_length", s.source_length).take("rejects", s.rejects);
  k.take("bias_begin", s.bias_begin).take("bias_end", s.bias_end);
  k.take("stop_begin", s.stop_begin).take("stop_end", s.stop_end).finish();
}

ChooseArgs choose_args(const py::dict& values) {
  ChooseArgs a;
  Keywords k("choose", values);
  k.take("batch", a.batch).take("wanted", a.wanted).take("logit_width", a.logit_width);
  k.take("logits", a.logits).take("logits_stride", a.logits_stride).take("vocab", a.vocab);
  k.take("samplers", a.samplers).take("bias_ids", a.bias_ids);
  k.take("bias_values", a.bias_values).take("stop_ids", a.stop_ids).take("allowed", a.allowed);
  k.take("edits", a.edits).take("filters", a.filters).take("processed", a.processed);
  k.take("seen", a.seen).take("best", a.best).take("probs", a.probs);
  k.take("distributions", a.distributions).finish();
  return a;
}

AcceptArgs accept_args(const py::dict& values) {
  AcceptArgs a;
  Keywords k("accept", values);
  k.take("batch", a.batch).take("wanted", a.wanted).take("logit_width", a.logit_width);
  k.take("best", a.best).take("tokens", a.tokens).take("draft_probs", a.draft_probs);
  k.take("probs", a.probs).take("lenience", a.lenience).take("num_accepted", a.num_accepted);
  k.take("own", a.own).take("lengths", a.lengths).take("paths", a.paths);
  k.take("path_lengths", a.path_lengths).take("kept_probs", a.kept_probs);
  k.take("kept_stride", a.kept_stride).take("samplers", a.samplers).finish();
  return a;
}

void bind_choices(py::module_& m) {
  m.attr("SAMPLER_BYTES") = sizeof(DeviceSampler);
  m.def("pack_sampler", &pack_sampler);
  m.def("choose",
        [](Stream stream, const py::kwargs& kwargs) { choose(choose_args(kwargs), stream); });
  m.def("accept",
        [](Stream stream, const py::kwargs& kwargs) { accept(accept_args(kwargs), stream); });
  m.def("runners_up", [](Stream stream, const py::dict& chosen, const py::kwargs& kwargs) {
    RunnersUpArgs a;
    a.chosen = choose_args(chosen);
    Keywords k("runners_up", kwargs);
    k.take("count", a.count).take("tokens", a.tokens).take("probs", a.probs).finish();
    runners_up(a, stream);
  });
  m.def("rejection", [](Stream stream, const py::dict& chosen, const py::dict& accepted,
                        const py::kwargs& kwargs) {
    RejectionArgs a;
    a.chosen = choose_args(chosen);
    a.accepted = accept_args(accepted);
    Keywords k("rejection", kwargs);
    k.take("numbers", a.numbers).take("drawn", a.drawn).take("kept", a.kept);
    k.take("rests", a.rests).take("judged", a.judged).finish();
    rejection(a, stream);
  });
}

DraftArgs draft_args(const py::dict& values) {
  DraftArgs a;
  Keywords k("draft", values);
  k.take("rows", a.rows).take("slots", a.slots).take("lengths", a.lengths);
  k.take("counts", a.counts).take("tokens", a.tokens).take("draft_probs", a.draft_probs);
  k.take("token_stride", a.token_stride).take("max_match", a.max_match);
  k.take("corpora", a.corpora).take("corpus_lengths", a.corpus_lengths);
  k.take("matches", a.matches).take("drafted", a.drafted).finish();
  return a;
}

// {"base", "delta"} addresses.
NgramRuns runs(const py::handle& value) {
  NgramRuns r;
  Keywords k("runs", value.cast<py::dict>());
  k.take("base", r.base).take("delta", r.delta).finish();
  return r;
}

NgramView ngram_view(const py::dict& table) {
  NgramView v;
  v.vocab = table["vocab"].cast<int64_t>();
  v.block_shift = table["block_shift"].cast<int32_t>();
  v.counts = reinterpret_cast<const float*>(table["counts"].cast<std::uintptr_t>());
  for (const py::handle& item : table["orders"].cast<py::list>()) {
    CE_CHECK(v.order < kMaxOrder, "an n-gram table has at most ", kMaxOrder, " orders");
    NgramOrder& o = v.orders[v.order++];
    const auto order = item.cast<py::dict>();
    o.contexts = order["contexts"].cast<int64_t>();
    o.total = reinterpret_cast<const uint8_t*>(order["total"].cast<std::uintptr_t>());
    o.count = reinterpret_cast<const uint8_t*>(order["count"].cast<std::uintptr_t>());
    o.token.data = reinterpret_cast<const void*>(order["token"].cast<std::uintptr_t>());
    o.successor.data = reinterpret_cast<const void*>(order["successor"].cast<std::uintptr_t>());
    o.children = runs(order["children"]);
    o.successors = runs(order["successors"]);
  }
  return v;
}

void bind_drafts(py::module_& m) {
  m.def("max_gram",
        [](Stream stream, const py::kwargs& kwargs) { max_gram(draft_args(kwargs), stream); });
  m.def("ngram_chain", [](Stream stream, const py::dict& table, const py::kwargs& kwargs) {
    ngram_chain(draft_args(kwargs), ngram_view(table), stream);
  });
  m.def("draft_tree", [](Stream stream, const py::dict& table, const py::kwargs& kwargs) {
    DraftTreeArgs a;
    Keywords k("draft_tree", kwargs);
    k.take("rows", a.rows).take("slots", a.slots).take("lengths", a.lengths);
    k.take("searched", a.searched).take("budgets", a.budgets).take("depths", a.depths);
    k.take("tokens", a.tokens).take("token_stride", a.token_stride).take("least", a.least);
    k.take("doubts", a.doubts).take("finished", a.finished);
    k.take("finished_length", a.finished_length).take("finished_pairs", a.finished_pairs);
    k.take("finished_places", a.finished_places).take("predictions", a.predictions);
    k.take("prediction_lengths", a.prediction_lengths).take("parents", a.parents);
    k.take("probs", a.probs).take("drafted", a.drafted).finish();
    draft_tree(a, ngram_view(table), stream);
  });
  m.def("draft_segment", [](Stream stream, const py::dict& table, const py::kwargs& kwargs) {
    SegmentArgs a;
    Keywords k("draft_segment", kwargs);
    k.take("rows", a.rows).take("round", a.round).take("drafts", a.drafts);
    k.take("slots", a.slots).take("lengths", a.lengths).take("begins", a.begins);
    k.take("wanted", a.wanted).take("most", a.most).take("widths", a.widths);
    k.take("leasts", a.leasts).take("least_confidences", a.least_confidences);
    k.take("confidences", a.confidences).take("tokens", a.tokens);
    k.take("token_stride", a.token_stride).take("max_match", a.max_match);
    k.take("corpora", a.corpora).take("corpus_lengths", a.corpus_lengths);
    k.take("samplers", a.samplers).take("stop_ids", a.stop_ids);
    k.take("num_accepted", a.num_accepted).take("own", a.own);
    k.take("kept_probs", a.kept_probs).take("kept_stride", a.kept_stride);
    k.take("capacity", a.capacity)
        .take("drafted", a.drafted)
        .take("rounds", a.rounds)
        .take("open", a.open);
    k.take("gained", a.gained).take("gained_probs", a.gained_probs);
    k.take("gained_stride", a.gained_stride).finish();
    draft_segment(a, ngram_view(table), stream);
  });
  m.def("drafted_batch", [](Stream stream, const py::kwargs& kwargs) {
    DraftedBatchArgs a;
    Keywords k("drafted_batch", kwargs);
    k.take("rows", a.rows).take("width", a.width).take("slots", a.slots);
    k.take("lengths", a.lengths).take("cached", a.cached).take("frontiers", a.frontiers);
    k.take("ends", a.ends).take("drafted", a.drafted).take("parents", a.parents);
    k.take("tokens", a.tokens).take("token_stride", a.token_stride).take("starts", a.starts);
    k.take("counts", a.counts).take("bases", a.bases).take("ancestors", a.ancestors);
    k.take("wanted", a.wanted).take("nodes", a.nodes).finish();
    drafted_batch(a, stream);
  });
}

}  // namespace

void bind_cuda_kernels(py::module_& m) {
  m.def(
      "set_dependent_launch", [](bool on) { dependent_launch = on; },
      "Kernels may start while the launch before them ends; compute capability 9.0 or newer.");
  bind_forward(m);
  bind_cache(m);
  bind_choices(m);
  bind_drafts(m);
}
