// Chooses the kernels for this machine at run time.
#include <cstdlib>
#include <cstring>

#include "ce/check.h"
#include "ce/kernels.h"

namespace ce {

namespace portable {
extern const Kernels table;
}
#if defined(CE_HAVE_AVX2)
namespace avx2 {
extern const Kernels table;
}
namespace avx512 {
extern const Kernels table;
}
namespace avx512bf16 {
extern const Kernels table;
}
#endif

namespace {

struct Candidate {
  const Kernels* table;
  bool supported;
};

// Best first.
constexpr int kMaxCandidates = 4;
int candidates(Candidate* out) {
  int count = 0;
#if defined(CE_HAVE_AVX2)
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") &&
                          __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  out[count++] = {&avx512bf16::table, has_avx512 && __builtin_cpu_supports("avx512bf16")};
  out[count++] = {&avx512::table, has_avx512};
  out[count++] = {&avx2::table, has_avx2};
#endif
  out[count++] = {&portable::table, true};
  return count;
}

}  // namespace

const Kernels* kernels_for(const char* name) {
  Candidate list[kMaxCandidates];
  const int count = candidates(list);
  for (int i = 0; i < count; ++i)
    if (list[i].supported && std::strcmp(list[i].table->name, name) == 0) return list[i].table;
  return nullptr;
}

const Kernels& default_kernels() {
  if (const char* wanted = std::getenv("CASCADE_CPU"); wanted != nullptr && *wanted != '\0') {
    const Kernels* found = kernels_for(wanted);
    CE_CHECK(
        found != nullptr, "CASCADE_CPU=", wanted,
        " is not an instruction set this build and machine can run; use portable, avx2, avx512 "
        "or avx512bf16 as the machine allows, or unset it");
    return *found;
  }
  Candidate list[kMaxCandidates];
  const int count = candidates(list);
  for (int i = 0; i < count; ++i)
    if (list[i].supported) return *list[i].table;
  fail("no kernels for this machine");
}

}  // namespace ce
