// Argument checks. Native code throws ce::InvalidArgument, which Python sees as ValueError;
// it never exits or aborts.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace ce {

struct InvalidArgument : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw InvalidArgument(message.str());
}

}  // namespace ce

// CE_CHECK(rows > 0, "rows must be > 0, got ", rows)
#define CE_CHECK(condition, ...)   \
  do {                             \
    if (!(condition)) [[unlikely]] \
      ::ce::fail(__VA_ARGS__);     \
  } while (0)
