// A forward pass recorded once and run many times. A model's Python description calls the
// recording methods (one per operation) with its weights and cache; `run` then executes the whole
// pass natively, so that a step costs one call and a handful of integers.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "ce/kernels.h"

namespace ce {

// Memory that grows and never shrinks, 64-byte aligned.
class Scratch {
 public:
  void* reserve(int64_t bytes);

 private:
  struct Free {
    void operator()(void* p) const;
  };
  std::unique_ptr<void, Free> data_;
  int64_t bytes_ = 0;
};

// Tokens drafted behind a row, as a tree: node j is a child of node parents[j] < j, or of the token
// before the tree (-1).
struct FedTree {
  std::vector<int32_t> tokens;
  std::vector<int32_t> parents;
};

// For each node the bits of its ancestors and of itself. Throws InvalidArgument for more than
// kMaxTreeNodes nodes and for a parent that does not come before its child.
std::vector<uint64_t> tree_ancestors(const std::vector<int32_t>& parents);

class Program {
 public:
  // The pool must outlive the program; kernels are a dispatch table.
  Program(ThreadPool& pool, const Kernels& kernels);

  // An activation matrix [rows of the pass, cols]; returns its id. `per_logit` buffers hold one
  // row per wanted logit row instead of one per token.
  int buffer(DType dtype, int64_t cols, bool per_logit);

  // Recording. Ids are of buffers; weights are borrowed and must outlive the program.
  void embedding(int out, const PackedMatrix& table, bool packed);
  void rms_norm(int out, int x, const float* weight, float eps);
  void linear(int y, int x, const PackedMatrix& w, const float* bias, bool accumulate);
  // Cosines and sines of position * inv_freq [head_dim / 2], once per pass; before any rope_store.
  void rope_angles(const float* inv_freq, int head_dim);
  void rope_store(int qkv, int heads, const CacheLayer& cache);
  // Causal, from the end of the source on; or over_source: of every row over the source. `queries`
  // may have keys and values behind its heads * head_dim columns.
  void attention(int out, int queries, int heads, float scale, const CacheLayer& cache,
                 bool over_source, const RelativeBias& bias);
  void swiglu(int out, int gate_up);
  void geglu(int out, int gate_up);
  void relu(int out, int x);
  // Keeps only the rows whose logits are wanted.
  void select_logit_rows(int out, int x);

  // Where tokens and block tables live: row-major int32, row r at base + r * stride.
  void bind_rows(const int32_t* tokens, int64_t token_stride, int64_t capacity);
  void bind_block_tables(const int32_t* tables, int64_t stride, int64_t pages);
  // How many tokens at each row's beginning are an encoder's input; unbound: none. A pass of a row
  // with a source feeds either exactly that (the encoder's pass) or tokens behind it.
  void bind_sources(const int32_t* sources);

  // One pass over sequences: rows[i] of the bound tables feeds tokens in slots
  // starts[i]..starts[i]+counts[i]-1, and wants logits for the last logits[i] of them. With
  // left_padded, every sequence takes as many activation rows as the longest: dense shapes, with
  // rows of padding before its own that no attention sees and nothing is stored for.
  // trees: empty, or one for each sequence; its nodes (0: none) take the last slots instead of
  // tokens of the bound row, node j at the position of its depth.
  void run(const std::vector<int>& rows, const std::vector<int>& starts,
           const std::vector<int>& counts, const std::vector<int>& logits, bool left_padded,
           const std::vector<FedTree>& trees);

  // Moves the keys and values of a path through a tree from slots base + path[i] to base + i, in
  // all layers. path ascends, so that nothing is overwritten before it is moved.
  void commit(int row, int base, const std::vector<int>& path);

  float* data_f32(int id);  // of the last run
  int64_t cols(int id) const;
  int64_t rows(int id) const;  // of the last run

 private:
  struct Buffer {
    DType dtype;
    int64_t cols;
    bool per_logit;
    Scratch memory;
    void* data = nullptr;
  };
  void add_sequence(int row, int start, int count, int logits, int padding, const FedTree& tree);
  const int32_t* checked_table(int row, int64_t end) const;
  int32_t checked_source(int row, int start, int count) const;
  const Buffer& checked(int id, DType dtype, int64_t cols, const char* what) const;
  const Buffer& at(int id) const;
  // Both hold a row per token, or both a row per wanted logit row.
  void check_rows(int out, int x, const char* what) const;
  void check_every_row(int id, const char* what) const;

  ThreadPool& pool_;
  const Kernels& kernels_;
  std::vector<Buffer> buffers_;
  std::vector<std::function<void()>> steps_;
  std::vector<CacheLayer> layers_;

  const int32_t* tokens_ = nullptr;
  int64_t token_stride_ = 0;
  int64_t token_capacity_ = 0;
  const int32_t* tables_ = nullptr;
  int64_t table_stride_ = 0;
  int64_t pages_ = 0;
  const int32_t* sources_ = nullptr;

  // State of the pass being run.
  std::vector<Segment> segments_;
  std::vector<std::vector<uint64_t>> ancestors_;  // of the segments' trees
  std::vector<int32_t> ids_;
  std::vector<int32_t> positions_;
  std::vector<int32_t> logit_rows_;
  std::vector<float> cos_, sin_;
  int64_t token_rows_ = 0, wanted_rows_ = 0;  // what the buffers hold, also after a refused run
  int rope_dim_ = 0;                          // 0: no rotation
  bool over_source_ = false, behind_source_ = false;  // what attention there is
  Scratch linear_scratch_, attention_scratch_;
};

}  // namespace ce
