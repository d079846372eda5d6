// peak.cl — what a device can do at most, and made-up operands: the yardstick of `diffused benchmark --operators`.
// Called by Sources/TensorOps/Peak.swift and Sources/TensorOps/OperatorBenchmark.swift

// peak_fma — x = a x + b in ROWS independent chains of vectors: float32 multiply-adds with no memory in their way.
// With |a| < 1 the chains stay near b / (1 - a), neither infinite nor denormal.
// Layout    y [work-items, VEC] float
// Mapping   global (work-items); `rounds` rounds of ROWS fused multiply-adds of VEC floats each
// Variants  -DROWS=12 -DVEC=16 | -DROWS=12 -DVEC=8 | -DROWS=12 -DVEC=4
#ifdef ROWS
#define FMA_START(n) floatv x##n = (floatv)(0.01f * n + 0.0001f * (float)(get_global_id(0) & 255));
#define FMA_STEP(n) x##n = fma(x##n, av, bv);
#define FMA_SUM(n) sum += x##n;
__kernel void peak_fma(__global float* restrict y, const float a, const float b, const int rounds)
{
    const floatv av = (floatv)(a);
    const floatv bv = (floatv)(b);
    FOR_ROWS(FMA_START)
    for (int round = 0; round < rounds; round++) {
        FOR_ROWS(FMA_STEP)
    }
    // What is not stored would not be computed.
    floatv sum = (floatv)(0.0f);
    FOR_ROWS(FMA_SUM)
    vstorev(sum, get_global_id(0), y);
}

// peak_dot — sum + a.lo * b.lo + a.hi * b.hi of bfloat16 pairs in ROWS independent chains; see dot_bfloat16 in common.clh.
// Layout    y [work-items, VEC] float; a, b: one pair of bfloat16 each, whose products cancel, so that the sums stay as they are
// Mapping   as peak_fma
// Variants  -DROWS=12 -DVEC=16
#define DOT_STEP(n) x##n = dot_bfloat16(x##n, av, bv);
__kernel void peak_dot(__global float* restrict y, const int a, const int b, const int rounds)
{
    const uintv av = (uintv)((uint)a);
    const uintv bv = (uintv)((uint)b);
    FOR_ROWS(FMA_START)
    for (int round = 0; round < rounds; round++) {
        FOR_ROWS(DOT_STEP)
    }
    floatv sum = (floatv)(0.0f);
    FOR_ROWS(FMA_SUM)
    vstorev(sum, get_global_id(0), y);
}
#endif

// peak_mma — D = A B + D of 16x16 by 16x8 halves with float sums by `mma.sync`, 8 independent tiles a warp, registers only.
// Layout    y [work-items] float; a, b: one pair of halves each, which all elements of A and of B are
// Mapping   global (work-items), local a multiple of 32: every warp runs `rounds` rounds of 8 products
// Built with MMA on NVIDIA only; scripts/lint-kernels leaves it out, as its target knows no constraints of PTX.
#ifdef MMA
#define MMA_TILE(n)                                                                                          \
    __asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%4,%4,%4}, {%5,%5}, " \
                   "{%0,%1,%2,%3};"                                                                          \
                   : "+f"(d##n.x), "+f"(d##n.y), "+f"(d##n.z), "+f"(d##n.w)                                  \
                   : "r"(a), "r"(b));
__kernel void peak_mma(__global float* restrict y, const int a, const int b, const int rounds)
{
    float4 d0 = 0.0f, d1 = 0.0f, d2 = 0.0f, d3 = 0.0f, d4 = 0.0f, d5 = 0.0f, d6 = 0.0f, d7 = 0.0f;
    for (int round = 0; round < rounds; round++) {
        MMA_TILE(0) MMA_TILE(1) MMA_TILE(2) MMA_TILE(3) MMA_TILE(4) MMA_TILE(5) MMA_TILE(6) MMA_TILE(7)
    }
    const float4 sum = d0 + d1 + d2 + d3 + d4 + d5 + d6 + d7;
    y[get_global_id(0)] = sum.x + sum.y + sum.z + sum.w;
}
#endif

// copy_vectors — y = x, for buffers larger than every cache: what reading and writing memory can reach.
// Layout    x, y: [COUNT, VEC] float
// Mapping   global (COUNT / 16 rounded up); a work-group copies 16 times its size, neighbours side by side
// Variants  -DVEC=16 | -DVEC=4
__kernel void copy_vectors(__global const float* restrict x, __global float* restrict y, const ulong COUNT)
{
    const size_t step = get_local_size(0);
    const size_t first = get_group_id(0) * step * 16 + get_local_id(0);
    for (int j = 0; j < 16; j++) {
        const size_t i = first + j * step;
        if (i < COUNT) vstorev(vloadv(i, x), i, y);
    }
}

// fill_operand — y[i] = +-(0.5 ... 1) from a hash of i: zeros would let some devices clock higher than they do with real numbers.
// Mapping   global (COUNT rounded up)
// Variants  -DOUTPUT=0 | -DOUTPUT=1 | -DOUTPUT=2
__kernel void fill_operand(__global output_t* restrict y, const ulong COUNT)
{
    const size_t i = get_global_id(0);
    if (i >= COUNT) return;
    uint hash = (uint)i * 2654435761u;
    hash = (hash ^ (hash >> 15)) * 2246822519u;
    hash ^= hash >> 13;
    STORE_OUTPUT(y, i, as_float(0x3f000000u | (hash >> 9) | (hash << 31)));
}
