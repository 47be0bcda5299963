// Which build of a module's loops this machine takes: chosen once, when the module is loaded.
#pragma once
#include <cstdlib>
#include <string>

#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__)
#define PROBGEN_X86 1
#endif

namespace {

enum class Isa { Generic, Avx2, Avx512 };

// The widest that the processor has, or the lower one that the environment variable PROBGEN_ISA asks for.
Isa widest() {
    const char *asked = std::getenv("PROBGEN_ISA");
    std::string name = asked ? asked : "";
    (void)name;
#ifdef PROBGEN_X86
    __builtin_cpu_init();
    bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw");
    bool middle = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
    if (wide && name != "avx2" && name != "generic") return Isa::Avx512;
    if (middle && name != "generic") return Isa::Avx2;
#endif
    return Isa::Generic;
}

}  // namespace
