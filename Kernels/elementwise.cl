// elementwise.cl — the passes over memory that no other operator could absorb.
// Called by Sources/TensorOps/Elementwise.swift

// matmul_epilogue — what follows a CLBlast GEMM: y = f(x + bias) + residual, or the GEGLU of both halves of x.
// Layout    x [rows, O] float (GEGLU: [rows, 2*O], values then gates); bias [O] float (GEGLU: [2*O]); residual [rows, O] activation_t; y [rows, O] output_t
// Mapping   global (O rounded up, rows)
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
    const int o = (int)get_global_id(0);
    const size_t row = get_global_id(1);
    if (o >= O) return;
    float value = x[row * O * (GEGLU ? 2 : 1) + o] + bias[o];
    if (GEGLU) value *= activate_scalar(FUNCTION_GELU, x[row * O * 2 + O + o] + bias[O + o]);
    value = activate_scalar(FUNCTION, value);
    if (HAS_RESIDUAL) value += LOAD_ACTIVATION(residual, row * O + o);
    STORE_OUTPUT(y, row * O + o, value);
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

// guided_step — classifier-free guidance and the sampler's update in one pass, in place:
//   e = u + GUIDANCE * (c - u)                       (Ho & Salimans 2022, equation 6, in the form diffusers computes)
//   latents = SAMPLE_SCALE * latents + OUTPUT_SCALE * e
// Layout    output [2, COUNT] activation_t, unconditional first; without guidance [1, COUNT]; latents [COUNT] float
// Mapping   global (COUNT rounded up)
// Variants  -DACTIVATION=1 | -DACTIVATION=0
__kernel void guided_step(__global const activation_t* restrict output, __global float* restrict latents,
                          const int GUIDED, const float GUIDANCE, const float SAMPLE_SCALE, const float OUTPUT_SCALE,
                          const ulong COUNT)
{
    const size_t i = get_global_id(0);
    if (i >= COUNT) return;
    float e = LOAD_ACTIVATION(output, i);
    if (GUIDED) e += GUIDANCE * (LOAD_ACTIVATION(output, COUNT + i) - e);
    latents[i] = SAMPLE_SCALE * latents[i] + OUTPUT_SCALE * e;
}
