// On x86-64 a switch is fourteen instructions; elsewhere ucontext does it, whose switches ask the
// kernel for the signal mask each time.
#include "emulation/fiber.h"

#include <sys/mman.h>
#include <ucontext.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace ce::emulation {
namespace {

constexpr size_t kStackBytes = size_t{256} << 10;
Fiber* entering = nullptr;

}  // namespace

#if defined(__x86_64__)
extern "C" void ce_switch_stack(void** from, void* to);
asm(R"(
.text
.globl ce_switch_stack
.type ce_switch_stack, @function
ce_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size ce_switch_stack, .-ce_switch_stack
)");

struct Fiber::Context {
  void* fiber = nullptr;
  void* scheduler = nullptr;
  // The registers ce_switch_stack pops, then the address it returns to.
  void prepare(char* stack, void (*entry)()) {
    void** top = reinterpret_cast<void**>(stack + kStackBytes) - 1;  // as after a call
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    fiber = top;
  }
  void to_fiber() { ce_switch_stack(&scheduler, fiber); }
  void to_scheduler() { ce_switch_stack(&fiber, scheduler); }
};
#else
struct Fiber::Context {
  ucontext_t fiber, scheduler;
  void prepare(char* stack, void (*entry)()) {
    getcontext(&fiber);
    fiber.uc_stack.ss_sp = stack;
    fiber.uc_stack.ss_size = kStackBytes;
    fiber.uc_link = nullptr;
    makecontext(&fiber, entry, 0);
  }
  void to_fiber() { swapcontext(&scheduler, &fiber); }
  void to_scheduler() { swapcontext(&fiber, &scheduler); }
};
#endif

// The sanitizer must know which stack is in use.
#if defined(__SANITIZE_ADDRESS__)
namespace {
void* scheduler_fake = nullptr;
const void* scheduler_stack = nullptr;
size_t scheduler_size = 0;
}  // namespace
#define CE_BEFORE_ENTER(stack) __sanitizer_start_switch_fiber(&scheduler_fake, stack, kStackBytes)
#define CE_AFTER_ENTER() __sanitizer_finish_switch_fiber(scheduler_fake, nullptr, nullptr)
#define CE_BEFORE_LEAVE(fake) __sanitizer_start_switch_fiber(fake, scheduler_stack, scheduler_size)
#define CE_AFTER_LEAVE(fake) \
  __sanitizer_finish_switch_fiber(fake, &scheduler_stack, &scheduler_size)
#else
#define CE_BEFORE_ENTER(stack)
#define CE_AFTER_ENTER()
#define CE_BEFORE_LEAVE(fake) (void)fake
#define CE_AFTER_LEAVE(fake) (void)fake
#endif

void Fiber::Free::operator()(char* stack) const {
  munmap(stack, kStackBytes);
}
void Fiber::Forget::operator()(Context* context) const {
  delete context;
}

void Fiber::begin() {
  Fiber* self = entering;
  CE_AFTER_LEAVE(nullptr);
  self->body_(self->argument_);
}

void Fiber::start(Body body, void* argument) {
  if (stack_ == nullptr) {  // mapped, so that a deep thread costs pages only where it is deep
    void* memory = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    stack_.reset(static_cast<char*>(memory));
    context_.reset(new Context);
  }
#if defined(__SANITIZE_ADDRESS__)
  ASAN_UNPOISON_MEMORY_REGION(stack_.get(), kStackBytes);  // what an abandoned run left behind
#endif
  body_ = body;
  argument_ = argument;
  context_->prepare(stack_.get(), &Fiber::begin);
}

void Fiber::enter() {
  entering = this;
  CE_BEFORE_ENTER(stack_.get());
  context_->to_fiber();
  CE_AFTER_ENTER();
}

void Fiber::leave() {
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  CE_BEFORE_LEAVE(&fake);
#else
  void* fake = nullptr;
  CE_BEFORE_LEAVE(fake);
#endif
  context_->to_scheduler();
  CE_AFTER_LEAVE(fake);
}

}  // namespace ce::emulation
