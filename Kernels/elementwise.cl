// elementwise.cl — the passes over memory that no other operator could absorb.
// Called by Sources/TensorOps/Elementwise.swift

// matmul_epilogue — what follows a CLBlast GEMM: y = f(x + bias) + residual, or the GEGLU of both halves of x.
// Layout    x [rows, O] float (GEGLU: [rows, 2*O], values then gates); bias [O] float (GEGLU: [2*O]); residual [rows, O] activation_t; y [rows, O] output_t
// Mapping   global (rows * O rounded up to whole work-groups): a work-group takes a piece of one row. One dimension, as NVIDIA's second ends at 65535
// Variants  -DFUNCTION=1 -DHAS_RESIDUAL=1 -DACTIVATION=1 | -DGEGLU=1 | -DACTIVATION=2
#ifndef FUNCTION
#define FUNCTION 0
#endif
#ifndef GEGLU
#define GEGLU 0
#endif
#ifndef HAS_RESIDUAL
#define HAS_RESIDUAL 0
#endif
__kernel void matmul_epilogue(__global const float* restrict x, __global const float* restrict bias,
                              __global const activation_t* restrict residual, __global output_t* restrict y, const int O)
{
    const size_t pieces = (O + get_local_size(0) - 1) / get_local_size(0), row = get_group_id(0) / pieces;
    const int o = (int)(get_group_id(0) % pieces * get_local_size(0) + get_local_id(0));
    if (o >= O) return;
    float value = x[row * O * (GEGLU ? 2 : 1) + o] + bias[o];
    if (GEGLU) value *= activate_scalar(FUNCTION_GELU, x[row * O * 2 + O + o] + bias[O + o]);
    value = activate_scalar(FUNCTION, value);
    if (HAS_RESIDUAL) value += LOAD_ACTIVATION(residual, row * O + o);
    STORE_OUTPUT(y, row * O + o, value);
}

// masked — y = m x + (1 - m) (A a + B b): what is drawn where a mask says so, and the picture there was at its level of noise elsewhere.
// Layout    all [COUNT] float
// Mapping   global (COUNT rounded up)
// Variants  -DACTIVATION=0
__kernel void masked(__global const float* restrict x, __global const float* restrict m, __global const float* restrict a,
                     __global const float* restrict b, __global float* restrict y, const float A, const float B, const ulong COUNT)
{
    const size_t i = get_global_id(0);
    if (i < COUNT) y[i] = m[i] * x[i] + (1 - m[i]) * (A * a[i] + B * b[i]);
}

// activated_sum — y = f(a + b).
// Mapping   global (COUNT rounded up)
// Variants  -DFUNCTION=1 | -DFUNCTION=1 -DACTIVATION=1
__kernel void activated_sum(__global const activation_t* restrict a, __global const activation_t* restrict b,
                            __global activation_t* restrict y, const ulong COUNT)
{
    const size_t i = get_global_id(0);
    if (i < COUNT) STORE_ACTIVATION(y, i, activate_scalar(FUNCTION, LOAD_ACTIVATION(a, i) + LOAD_ACTIVATION(b, i)));
}

// gated_values — y = value * gelu(gate): a GEGLU whose values and gates were computed apart, so that something could be added to them.
// Layout    x [rows, PITCH] activation_t: DISTANCE values, then their gates, and again; y [rows, O] output_t
// Mapping   as matmul_epilogue
// Variants  -DACTIVATION=1 | -DOUTPUT=2
__kernel void gated_values(__global const activation_t* restrict x, __global output_t* restrict y, const int PITCH, const int O,
                           const int DISTANCE)
{
    const size_t pieces = (O + get_local_size(0) - 1) / get_local_size(0), row = get_group_id(0) / pieces;
    const int o = (int)(get_group_id(0) % pieces * get_local_size(0) + get_local_id(0));
    if (o >= O) return;
    const size_t at = row * PITCH + o / DISTANCE * 2 * DISTANCE + o % DISTANCE;
    STORE_OUTPUT(y, row * O + o, LOAD_ACTIVATION(x, at) * activate_scalar(FUNCTION_GELU, LOAD_ACTIVATION(x, at + DISTANCE)));
}

// to_float — y = x as float; from_float — y = x in the storage type STORED.
// Mapping   global (COUNT rounded up)
// Variants  -DSTORED=1 | -DSTORED=2
#ifdef STORED
typedef JOIN(STORED_, STORED) stored_t;

__kernel void to_float(__global const stored_t* restrict x, __global float* restrict y, const ulong COUNT)
{
    const size_t i = get_global_id(0);
    if (i < COUNT) y[i] = JOIN(LOAD_, STORED)(x, i);
}

__kernel void from_float(__global const float* restrict x, __global stored_t* restrict y, const ulong COUNT)
{
    const size_t i = get_global_id(0);
    if (i < COUNT) JOIN(STORE_, STORED)(y, i, x[i]);
}
#endif

// dot_probe — y[i] = dot_bfloat16(y[i], a[i], b[i]): whether a processor and its compiler multiply pairs of bfloat16.
// Mapping   global (1), local (1); VEC lanes
// Variants  -DVEC=16
__kernel void dot_probe(__global const uint* restrict a, __global const uint* restrict b, __global float* restrict y)
{
    vstorev(dot_bfloat16(vloadv(0, y), vloadv(0, a), vloadv(0, b)), 0, y);
}

// model_input — the latents, scaled, once for each of COPIES pictures of the batch (twice with classifier-free guidance).
// Layout    latents [COUNT] float, y [COPIES, COUNT] activation_t
// Mapping   global (COUNT rounded up)
// Variants  -DACTIVATION=1
__kernel void model_input(__global const float* restrict latents, __global activation_t* restrict y, const float SCALE,
                          const int COPIES, const ulong COUNT)
{
    const size_t i = get_global_id(0);
    if (i >= COUNT) return;
    const float value = latents[i] * SCALE;
    for (int copy = 0; copy < COPIES; copy++) STORE_ACTIVATION(y, copy * COUNT + i, value);
}

// guidance — classifier-free guidance: y = u + SCALE * (c - u)   (Ho & Salimans 2022, equation 6, in the form diffusers computes)
// Layout    output [2, COUNT] activation_t, unconditional first; y [COUNT] float
// Mapping   global (COUNT rounded up)
// Variants  -DACTIVATION=1 | -DACTIVATION=0
__kernel void guidance(__global const activation_t* restrict output, __global float* restrict y, const float SCALE,
                       const ulong COUNT)
{
    const size_t i = get_global_id(0);
    if (i >= COUNT) return;
    const float unconditional = LOAD_ACTIVATION(output, i);
    y[i] = unconditional + SCALE * (LOAD_ACTIVATION(output, COUNT + i) - unconditional);
}

// weighted_sum — y = F0 * x0 + F1 * x1 + F2 * x2 + F3 * x3: a sampler's update, of TERMS operands; those beyond are not read.
// Layout    x0 ... x3, y [COUNT] float
// Mapping   global (COUNT rounded up)
// Variants  -DACTIVATION=0
__kernel void weighted_sum(__global const float* x0, __global const float* x1, __global const float* x2,
                           __global const float* x3, const float F0, const float F1, const float F2, const float F3,
                           const int TERMS, __global float* restrict y, const ulong COUNT)
{
    const size_t i = get_global_id(0);
    if (i >= COUNT) return;
    float sum = F0 * x0[i];
    if (TERMS > 1) sum += F1 * x1[i];
    if (TERMS > 2) sum += F2 * x2[i];
    if (TERMS > 3) sum += F3 * x3[i];
    y[i] = sum;
}
