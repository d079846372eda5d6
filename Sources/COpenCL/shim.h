// OpenCL 1.2 and CLBlast in one module: two modules would each declare the cl_* types.
#define CL_TARGET_OPENCL_VERSION 120
#include <CL/cl.h>
#include <clblast_c.h>
