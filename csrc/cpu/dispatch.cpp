// Chooses the kernels for this machine at run time.
#include <cstdlib>
#include <cstring>

#if defined(CE_HAVE_AMX)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

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
#if defined(CE_HAVE_AMX)
namespace amx {
extern const Kernels table;
}
#endif
#endif

namespace {

#if defined(CE_HAVE_AMX)
// Whether this process may use the tile unit. The registers are large, so that Linux gives them to
// a process that asks.
bool may_use_tiles() {
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24;  // of EDX
  unsigned eax, ebx, ecx, edx;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  if ((edx & kBf16) == 0 || (edx & kTile) == 0) return false;
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

struct Candidate {
  const Kernels* table;
  bool supported;
};

// Best first.
constexpr int kMaxCandidates = 5;
int candidates(Candidate* out) {
  int count = 0;
#if defined(CE_HAVE_AVX2)
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") &&
                          __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool has_pairs = has_avx512 && __builtin_cpu_supports("avx512bf16");
#if defined(CE_HAVE_AMX)
  static const bool has_tiles = has_pairs && may_use_tiles();
  out[count++] = {&amx::table, has_tiles};
#endif
  out[count++] = {&avx512bf16::table, has_pairs};
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
        " is not an instruction set this build and machine can run; use portable, avx2, avx512, "
        "avx512bf16 or amx as the machine allows, or unset it");
    return *found;
  }
  Candidate list[kMaxCandidates];
  const int count = candidates(list);
  for (int i = 0; i < count; ++i)
    if (list[i].supported) return *list[i].table;
  fail("no kernels for this machine");
}

}  // namespace ce
