// Lets what is built on a newer glibc load on 2.28, the one that PyTorch's own wheels ask for.
//
// Two names in PyTorch's and the standard library's headers would ask for a newer one: dlsym, which glibc 2.34 moved
// from one library to another, and __libc_single_threaded, of 2.32. Defined here, and hidden, they are nobody's else.
#include <cstdlib>

#if defined(__GLIBC__) && (defined(__x86_64__) || defined(__aarch64__))
#define LENI_HIDDEN extern "C" __attribute__((visibility("hidden")))

#if defined(__x86_64__)
__asm__(".symver leni_dlsym, dlsym@GLIBC_2.2.5");
#else
__asm__(".symver leni_dlsym, dlsym@GLIBC_2.17");
#endif

extern "C" void* leni_dlsym(void* handle, const char* name);

LENI_HIDDEN void* dlsym(void* handle, const char* name) { return leni_dlsym(handle, name); }

// It says that reference counts may be added to without atomic instructions, and never has to.
LENI_HIDDEN char __libc_single_threaded;
char __libc_single_threaded = 0;

#endif
