#include "ce/program.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "ce/check.h"

namespace ce {

void Scratch::Free::operator()(void* p) const {
  std::free(p);
}

void* Scratch::reserve(int64_t bytes) {
  if (bytes > bytes_) {
    // What grows again and again grows by a quarter at least.
    const int64_t grown = std::max(bytes, bytes_ + bytes_ / 4);
    const int64_t rounded = (grown + 4095) / 4096 * 4096;
    void* fresh = std::aligned_alloc(64, static_cast<size_t>(rounded));
    CE_CHECK(fresh != nullptr, "out of memory: ", rounded, " bytes of activations");
    data_.reset(fresh);
    bytes_ = rounded;
  }
  return data_.get();
}

Program::Program(ThreadPool& pool, const Kernels& kernels) : pool_(pool), kernels_(kernels) {}

int Program::buffer(DType dtype, int64_t cols, bool per_logit) {
  CE_CHECK(cols > 0, "a buffer needs cols > 0, got ", cols);
  CE_CHECK(dtype == activation_dtype(dtype), "a buffer is f32 or bf16, not i8");
  buffers_.push_back({dtype, cols, per_logit, {}, nullptr});
  return static_cast<int>(buffers_.size()) - 1;
}

const Program::Buffer& Program::checked(int id, DType dtype, int64_t cols, const char* what) const {
  CE_CHECK(id >= 0 && id < static_cast<int>(buffers_.size()), what, ": no buffer ", id);
  const Buffer& buffer = buffers_[static_cast<size_t>(id)];
  CE_CHECK(buffer.dtype == dtype, what, ": buffer ", id, " has another dtype");
  CE_CHECK(buffer.cols == cols, what, ": buffer ", id, " has ", buffer.cols, " columns, expected ",
           cols);
  return buffer;
}

const Program::Buffer& Program::at(int id) const {
  CE_CHECK(id >= 0 && id < static_cast<int>(buffers_.size()), "no buffer ", id);
  return buffers_[static_cast<size_t>(id)];
}

void Program::check_rows(int out, int x, const char* what) const {
  CE_CHECK(at(out).per_logit == at(x).per_logit, what, ": one of buffers ", out, " and ", x,
           " is per_logit, the other is not");
}

void Program::check_every_row(int id, const char* what) const {
  CE_CHECK(!at(id).per_logit, what, ": buffer ", id, " must not be per_logit");
}

void Program::embedding(int out, const PackedMatrix& table, bool packed) {
  checked(out, DType::f32, table.k, "embedding out");
  check_every_row(out, "embedding");
  CE_CHECK(packed || table.dtype == activation_dtype(table.dtype),
           "embedding: an i8 table must be packed, and so must a coded one");
  steps_.push_back([=, this] {
    ce::embedding({ids_.data(), static_cast<int64_t>(ids_.size()), table, packed, data_f32(out)},
                  pool_);
  });
}

void Program::rms_norm(int out, int x, const float* weight, float eps) {
  const int64_t width = cols(x);
  checked(x, DType::f32, width, "rms_norm x");
  const DType out_dtype = at(out).dtype;
  checked(out, out_dtype, width, "rms_norm out");
  check_rows(out, x, "rms_norm");
  steps_.push_back([=, this] {
    kernels_.rms_norm({data_f32(x), weight, eps, rows(x), width,
                       buffers_[static_cast<size_t>(out)].data, out_dtype},
                      pool_);
  });
}

void Program::linear(int y, int x, const PackedMatrix& w, const float* bias, bool accumulate) {
  checked(y, DType::f32, w.n, "linear y");
  checked(x, activation_dtype(w.dtype), w.k, "linear x");
  CE_CHECK(y != x, "linear: y and x are the same buffer ", y);
  check_rows(y, x, "linear");
  steps_.push_back([=, this] {
    const int64_t count = rows(x);
    if (count == 0) return;
    void* scratch = linear_scratch_.reserve(linear_scratch_bytes(count, w.k, pool_.size()));
    kernels_.linear(
        {w, buffers_[static_cast<size_t>(x)].data, count, bias, data_f32(y), accumulate, scratch},
        pool_);
  });
}

void Program::rope_angles(const float* inv_freq, int head_dim) {
  CE_CHECK(head_dim > 0 && head_dim % 2 == 0, "head_dim must be even, got ", head_dim);
  const size_t half = static_cast<size_t>(head_dim / 2);
  rope_dim_ = head_dim;
  // Cosines and sines of all positions so far, [positions][2][half]: computed once.
  const auto table = std::make_shared<std::vector<float>>();
  steps_.push_back([=, this] {
    if (positions_.empty()) return;
    const int32_t last = *std::max_element(positions_.begin(), positions_.end());
    const int64_t known = static_cast<int64_t>(table->size() / (2 * half)), wanted = last + 1;
    if (wanted > known) table->resize(static_cast<size_t>(wanted) * 2 * half);
    pool_.parallel_for(wanted - known, 16, [&](int64_t begin, int64_t end, int) {
      for (int64_t position = known + begin; position < known + end; ++position)
        for (size_t i = 0; i < half; ++i) {
          float* row = table->data() + static_cast<size_t>(position) * 2 * half;
          const float angle = static_cast<float>(position) * inv_freq[i];
          row[i] = std::cos(angle);
          row[half + i] = std::sin(angle);
        }
    });
    cos_.resize(std::max(cos_.size(), positions_.size() * half));
    sin_.resize(cos_.size());
    for (size_t row = 0; row < positions_.size(); ++row) {
      const float* angles = table->data() + static_cast<size_t>(positions_[row]) * 2 * half;
      std::copy_n(angles, half, cos_.data() + row * half);
      std::copy_n(angles + half, half, sin_.data() + row * half);
    }
  });
}

void Program::rope_store(int qkv, int heads, const CacheLayer& cache) {
  checked(qkv, DType::f32, int64_t{heads + 2 * cache.kv_heads} * cache.head_dim, "rope_store qkv");
  check_every_row(qkv, "rope_store");
  const bool rotary = rope_dim_ != 0;
  CE_CHECK(!rotary || rope_dim_ == cache.head_dim, "rope_store: the cache's head_dim ",
           cache.head_dim, " is not that of rope_angles, ", rope_dim_);
  layers_.push_back(cache);
  steps_.push_back([=, this] {
    kernels_.rope_store(
        {data_f32(qkv), rotary ? cos_.data() : nullptr, rotary ? sin_.data() : nullptr,
         segments_.data(), static_cast<int>(segments_.size()), heads, cache},
        pool_);
  });
}

void Program::attention(int out, int queries, int heads, float scale, const CacheLayer& cache,
                        bool over_source, const RelativeBias& bias) {
  CE_CHECK(cache.kv_heads > 0 && heads % cache.kv_heads == 0, "attention: ", heads,
           " heads are not a multiple of ", cache.kv_heads, " key/value heads");
  CE_CHECK(bias.reach >= 0, "attention: the bias must reach >= 0 positions, got ", bias.reach);
  const int64_t width = int64_t{heads} * cache.head_dim;
  const int64_t stride = over_source && cols(queries) == width
                             ? width
                             : width + int64_t{2} * cache.kv_heads * cache.head_dim;
  checked(queries, DType::f32, stride, over_source ? "attention queries" : "attention qkv");
  const DType out_dtype = at(out).dtype;
  checked(out, out_dtype, width, "attention out");
  check_every_row(queries, "attention");
  check_every_row(out, "attention");
  (over_source ? over_source_ : behind_source_) = true;
  steps_.push_back([=, this] {
    AttentionArgs args{.queries = data_f32(queries),
                       .stride = stride,
                       .segments = segments_.data(),
                       .segment_count = static_cast<int>(segments_.size()),
                       .heads = heads,
                       .scale = scale,
                       .bias = bias,
                       .over_source = over_source,
                       .cache = cache,
                       .out = buffers_[static_cast<size_t>(out)].data,
                       .out_dtype = out_dtype,
                       .scratch = nullptr};
    args.scratch = attention_scratch_.reserve(kernels_.attention_scratch_bytes(args, pool_.size()));
    kernels_.attention(args, pool_);
  });
}

void Program::swiglu(int out, int gate_up) {
  const int64_t width = cols(out);
  checked(gate_up, DType::f32, 2 * width, "swiglu gate_up");
  check_rows(out, gate_up, "swiglu");
  const DType out_dtype = at(out).dtype;
  steps_.push_back([=, this] {
    kernels_.swiglu({data_f32(gate_up), rows(gate_up), width,
                     buffers_[static_cast<size_t>(out)].data, out_dtype},
                    pool_);
  });
}

void Program::geglu(int out, int gate_up) {
  const int64_t width = cols(out);
  checked(gate_up, DType::f32, 2 * width, "geglu gate_up");
  check_rows(out, gate_up, "geglu");
  const DType out_dtype = at(out).dtype;
  steps_.push_back([=, this] {
    kernels_.geglu({data_f32(gate_up), rows(gate_up), width,
                    buffers_[static_cast<size_t>(out)].data, out_dtype},
                   pool_);
  });
}

void Program::relu(int out, int x) {
  const int64_t width = cols(out);
  checked(x, DType::f32, width, "relu x");
  check_rows(out, x, "relu");
  const DType out_dtype = at(out).dtype;
  steps_.push_back([=, this] {
    kernels_.relu({data_f32(x), rows(x), width, buffers_[static_cast<size_t>(out)].data, out_dtype},
                  pool_);
  });
}

void Program::select_logit_rows(int out, int x) {
  const int64_t width = cols(x);
  const DType dtype = at(x).dtype;
  check_every_row(x, "select_logit_rows");
  CE_CHECK(checked(out, dtype, width, "select_logit_rows out").per_logit,
           "select_logit_rows: buffer ", out, " must be per_logit");
  const int64_t bytes = width * dtype_size(dtype);
  steps_.push_back([=, this] {
    const char* from = static_cast<const char*>(at(x).data);
    char* to = static_cast<char*>(at(out).data);
    for (size_t i = 0; i < logit_rows_.size(); ++i)
      std::memcpy(to + static_cast<int64_t>(i) * bytes, from + logit_rows_[i] * bytes,
                  static_cast<size_t>(bytes));
  });
}

void Program::bind_rows(const int32_t* tokens, int64_t token_stride, int64_t capacity) {
  tokens_ = tokens;
  token_stride_ = token_stride;
  token_capacity_ = capacity;
}

void Program::bind_block_tables(const int32_t* tables, int64_t stride, int64_t pages) {
  tables_ = tables;
  table_stride_ = stride;
  pages_ = pages;
}

void Program::bind_sources(const int32_t* sources) {
  sources_ = sources;
}

std::vector<uint64_t> tree_ancestors(const std::vector<int32_t>& parents) {
  CE_CHECK(parents.size() <= kMaxTreeNodes, "a tree has at most ", kMaxTreeNodes, " nodes, got ",
           parents.size());
  std::vector<uint64_t> words(parents.size());
  for (size_t j = 0; j < parents.size(); ++j) {
    const int32_t parent = parents[j];
    CE_CHECK(parent >= -1 && parent < static_cast<int32_t>(j), "parents[", j, "] must be in -1..",
             static_cast<int32_t>(j) - 1, ", got ", parent);
    words[j] = uint64_t{1} << j | (parent < 0 ? 0 : words[static_cast<size_t>(parent)]);
  }
  return words;
}

void Program::run(const std::vector<int>& rows, const std::vector<int>& starts,
                  const std::vector<int>& counts, const std::vector<int>& logits, bool left_padded,
                  const std::vector<FedTree>& trees) {
  const size_t sequences = rows.size();
  CE_CHECK(starts.size() == sequences && counts.size() == sequences && logits.size() == sequences &&
               (trees.empty() || trees.size() == sequences),
           "rows, starts, counts and logits must have one entry per sequence, trees too or none");
  CE_CHECK(tokens_ != nullptr && tables_ != nullptr,
           "bind_rows and bind_block_tables come before run");
  segments_.clear();
  ancestors_.assign(sequences, {});
  ids_.clear();
  positions_.clear();
  logit_rows_.clear();
  const FedTree none;
  const int width =
      left_padded && sequences > 0 ? *std::max_element(counts.begin(), counts.end()) : 0;
  for (size_t s = 0; s < sequences; ++s) {
    CE_CHECK(starts[s] >= 0 && counts[s] > 0 && logits[s] >= 0 && logits[s] <= counts[s],
             "sequence ", s, ": start ", starts[s], ", count ", counts[s], ", logits ", logits[s]);
    add_sequence(rows[s], starts[s], counts[s], logits[s], std::max(0, width - counts[s]),
                 trees.empty() ? none : trees[s]);
  }
  token_rows_ = static_cast<int64_t>(ids_.size());
  wanted_rows_ = static_cast<int64_t>(logit_rows_.size());
  for (Buffer& buffer : buffers_) {
    const int64_t count = buffer.per_logit ? wanted_rows_ : token_rows_;
    const int64_t bytes = count * buffer.cols * dtype_size(buffer.dtype) + 64;
    buffer.data = buffer.memory.reserve(bytes);
    // Attention leaves rows of padding as they are: they must be numbers for what comes after.
    if (left_padded) std::memset(buffer.data, 0, static_cast<size_t>(bytes));
  }
  for (const auto& step : steps_) step();
}

const int32_t* Program::checked_table(int row, int64_t end) const {
  CE_CHECK(row >= 0 && row < token_capacity_, "row ", row, " is outside 0..", token_capacity_ - 1);
  CE_CHECK(end <= table_stride_ * kPageTokens, "row ", row, " ends at ", end,
           ", past its capacity");
  const int32_t* table = tables_ + row * table_stride_;
  for (int64_t p = 0; p * kPageTokens < end; ++p)
    CE_CHECK(table[p] >= 0 && table[p] < pages_, "row ", row, ": block ", p, " names page ",
             table[p], " of ", pages_);
  return table;
}

int32_t Program::checked_source(int row, int start, int count) const {
  const int32_t source = sources_ == nullptr ? 0 : sources_[row];
  CE_CHECK(source > 0 || !over_source_, "row ", row, " has no source to attend to");
  const bool encodes = start == 0 && count == source && !behind_source_;
  CE_CHECK(start >= source || encodes, "row ", row, " feeds positions ", start, "..",
           start + count - 1, ", but its source ends at ", source,
           ": an encoder takes the whole source, a decoder what is behind it");
  return source;
}

void Program::add_sequence(int row, int start, int count, int logits, int padding,
                           const FedTree& tree) {
  const int32_t* table = checked_table(row, int64_t{start} + count);
  const int nodes = static_cast<int>(tree.parents.size());
  CE_CHECK(tree.tokens.size() == tree.parents.size() && nodes <= count, "row ", row, ": a tree of ",
           tree.tokens.size(), " tokens and ", nodes, " parents in a pass of ", count);
  std::vector<uint64_t>& ancestors = ancestors_[segments_.size()];
  ancestors = tree_ancestors(tree.parents);
  const int32_t* tokens = tokens_ + row * token_stride_;
  for (int i = 0; i < padding; ++i) {
    ids_.push_back(0);
    positions_.push_back(0);
  }
  segments_.push_back({start, count, static_cast<int32_t>(ids_.size()), table, nodes,
                       ancestors.data(), checked_source(row, start, count)});
  const int base = start + count - nodes;
  CE_CHECK(base > 0 || nodes == 0, "row ", row, ": a tree needs a token before it");
  for (int i = 0; i < count; ++i) {
    const int node = i - (count - nodes);
    const int position =
        node < 0 ? start + i : base + std::popcount(ancestors[static_cast<size_t>(node)]) - 1;
    CE_CHECK(position < token_stride_, "row ", row, " ends at ", position + 1,
             ", past its capacity");
    if (i >= count - logits) logit_rows_.push_back(static_cast<int32_t>(ids_.size()));
    ids_.push_back(node < 0 ? tokens[position] : tree.tokens[static_cast<size_t>(node)]);
    positions_.push_back(position);
  }
}

void Program::commit(int row, int base, const std::vector<int>& path) {
  if (path.empty()) return;
  int previous = -1;
  for (const int node : path) {
    CE_CHECK(node > previous && node < kMaxTreeNodes, "commit: nodes must ascend within 0..",
             kMaxTreeNodes - 1, ", got ", node, " after ", previous);
    previous = node;
  }
  CE_CHECK(base >= 0, "commit: base must be >= 0, got ", base);
  const int32_t* table = checked_table(row, int64_t{base} + previous + 1);
  pool_.parallel_for(static_cast<int64_t>(layers_.size()), 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t layer = begin; layer < end; ++layer)
      for (size_t i = 0; i < path.size(); ++i)
        move_slot(layers_[static_cast<size_t>(layer)], table, base + path[i],
                  base + static_cast<int64_t>(i));
  });
}

float* Program::data_f32(int id) {
  return static_cast<float*>(at(id).data);
}

int64_t Program::cols(int id) const {
  return at(id).cols;
}

int64_t Program::rows(int id) const {
  return at(id).per_logit ? wanted_rows_ : token_rows_;
}

}  // namespace ce
