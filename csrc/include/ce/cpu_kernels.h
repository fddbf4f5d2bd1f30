// Declarations of the kernels that are compiled once per instruction set (namespace ce::CE_ISA).
// Only those files include this header.
#pragma once

#include "ce/kernels.h"

namespace ce::CE_ISA {

void rms_norm(const RmsNormArgs& args, ThreadPool& pool);
void linear(const LinearArgs& args, ThreadPool& pool);
void rope_store(const RopeStoreArgs& args, ThreadPool& pool);
int64_t attention_scratch_bytes(const AttentionArgs& args, int workers);
void attention(const AttentionArgs& args, ThreadPool& pool);
void swiglu(const SwigluArgs& args, ThreadPool& pool);
void geglu(const GegluArgs& args, ThreadPool& pool);
void relu(const ReluArgs& args, ThreadPool& pool);
int64_t argmax(const float* values, int64_t count);
int64_t gumbel_argmax(const float* values, int64_t count, float temperature, const NoiseKey& noise);
void perturb(const float* values, const int32_t* ids, int64_t count, float temperature,
             const NoiseKey& noise, float* out);
double log_sum_exp(const float* values, int64_t count, float temperature);
double exp_terms(const float* values, int64_t count, float highest, float temperature, float* out);
void tile_maxima(const float* values, int64_t count, float* out);
int64_t find_last(const int32_t* tokens, int64_t count, int32_t wanted);
double stream(const StreamArgs& args, ThreadPool& pool);

}  // namespace ce::CE_ISA
