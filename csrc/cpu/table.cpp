// The table of this instruction set's kernels.
#include "ce/cpu_kernels.h"

#define CE_NAME_OF(isa) #isa
#define CE_NAME(isa) CE_NAME_OF(isa)

namespace ce::CE_ISA {

extern const Kernels table;
const Kernels table = {
    .name = CE_NAME(CE_ISA),
    .rms_norm = rms_norm,
    .linear = linear,
    .rope_store = rope_store,
    .attention_scratch_bytes = attention_scratch_bytes,
    .attention = attention,
    .swiglu = swiglu,
    .geglu = geglu,
    .relu = relu,
    .argmax = argmax,
    .gumbel_argmax = gumbel_argmax,
    .perturb = perturb,
    .log_sum_exp = log_sum_exp,
    .exp_terms = exp_terms,
    .tile_maxima = tile_maxima,
    .find_last = find_last,
    .stream = stream,
};

}  // namespace ce::CE_ISA
