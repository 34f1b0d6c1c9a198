// Image libraries that were built for programs address `stderr` in a way that a shared library may not. The linker
// gives them this variable in its place: see CMakeLists.txt.
#include <dlfcn.h>
#include <cstdio>

extern "C" {
extern std::FILE* own_stderr;
std::FILE* own_stderr = *static_cast<std::FILE**>(dlsym(RTLD_DEFAULT, "stderr"));
}
