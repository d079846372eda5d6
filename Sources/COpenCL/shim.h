// OpenCL 1.2 and CLBlast in one module: two modules would each declare the cl_* types.
#define CL_TARGET_OPENCL_VERSION 120
#include <CL/cl.h>
#include <clblast_c.h>

// Whether this processor and its operating system know VDPBF16PS on 512-bit vectors. OpenCL has no name for it, and an unknown
// instruction ends the process.
static inline int diffused_has_avx512_bf16(void)
{
#if defined(__x86_64__)
    return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512f");
#else
    return 0;
#endif
}
