// The C library's functions whose newest versions would tie the extension to a recent Linux, bound to the versions that
// every glibc has: a wheel that is built here then loads wherever torch's own wheels do (manylinux_2_28).
//
// The linker sends calls of them to __wrap_* (cmake/portable_link.cmake), also those in the static libstdc++.
#include <pthread.h>

#if defined(__x86_64__)
#define CODEGEN_FAST_FIRST_GLIBC "GLIBC_2.2.5"
#elif defined(__aarch64__)
#define CODEGEN_FAST_FIRST_GLIBC "GLIBC_2.17"
#else
#error "the first version of glibc for this processor is not known: configure with -DCODEGEN_FAST_PORTABLE_LINK=OFF"
#endif

// glibc 2.34 moved threads into libc, 2.29 took the SVID error handling out of exp, log and pow: the code behind the
// older names is the same.
#define CODEGEN_FAST_OLD(name, result, parameters, arguments)                              \
  extern "C" result old_##name parameters;                                                 \
  asm(".symver old_" #name ", " #name "@" CODEGEN_FAST_FIRST_GLIBC);                       \
  extern "C" result __wrap_##name parameters { return old_##name arguments; }

CODEGEN_FAST_OLD(exp, double, (double x), (x))
CODEGEN_FAST_OLD(log, double, (double x), (x))
CODEGEN_FAST_OLD(pow, double, (double x, double y), (x, y))
CODEGEN_FAST_OLD(pthread_create, int, (pthread_t* t, const pthread_attr_t* a, void* (*f)(void*), void* of), (t, a, f, of))
CODEGEN_FAST_OLD(pthread_detach, int, (pthread_t t), (t))
CODEGEN_FAST_OLD(pthread_join, int, (pthread_t t, void** result), (t, result))
CODEGEN_FAST_OLD(pthread_mutex_trylock, int, (pthread_mutex_t* m), (m))

// glibc 2.32: whether shared pointers may count without atomic operations. Always no.
extern "C" {
char __libc_single_threaded = 0;
}
