// Fibers: threads that run one at a time and hand over to each other only where they say so.
#pragma once

#include <cstddef>
#include <memory>

namespace ce::emulation {

class Fiber {
 public:
  using Body = void (*)(void* argument);

  // Prepares a run of body(argument) on this fiber's stack. The body must not return: it ends with
  // a last switch to the scheduler, after which the stack may be used again.
  void start(Body body, void* argument);
  // From the scheduler into the fiber, until it calls leave().
  void enter();
  // From the fiber back to the scheduler.
  void leave();

 private:
  static void begin();
  struct Free {
    void operator()(char* stack) const;
  };
  std::unique_ptr<char, Free> stack_;
  Body body_ = nullptr;
  void* argument_ = nullptr;
  struct Context;
  struct Forget {
    void operator()(Context* context) const;
  };
  std::unique_ptr<Context, Forget> context_;
};

}  // namespace ce::emulation
