// packing.cl — brings weights from a checkpoint's layout and type into the form the kernels read; runs once per tensor at load.
// Called by Sources/TensorOps/Packing.swift

// Source types; ElementType in Sources/TensorOps/Tensor.swift lists the same numbers.
#define SOURCE_FLOAT32 0
#define SOURCE_FLOAT16 1
#define SOURCE_BFLOAT16 2

inline float load_source(__global const uchar* source, size_t i, int type)
{
    if (type == SOURCE_FLOAT32) return ((__global const float*)source)[i];
    if (type == SOURCE_FLOAT16) return vload_half(i, (__global const half*)source);
    return bfloat16_to_float(((__global const ushort*)source)[i]);
}

// pack_weights — w[panel][tap][c][lane] from source[o][c][tap], P lanes a panel; lanes beyond the last channel become zero. With
// PAIRED, w[panel][tap][c / 2][lane][c % 2]: two neighbouring channels of one lane together.
// The source's channel 0 becomes packed channel `first`, so that several tensors (query, key, value) make one weight.
// With GEGLU the source's first O/2 channels are values and the rest their gates; a panel takes P/2 of each.
// With BLOCKED, w[panel][tap][c / 32][tile][product][lane][element] for convolution_mma.cl, which says what stands where: zero up to a
// multiple of 32 channels, P = 32.
// Mapping   global (P, C, panels); with BLOCKED C is rounded up to 32
// Variants  -DWEIGHT=0 | -DWEIGHT=1 | -DWEIGHT=2 | -DWEIGHT=2 -DPAIRED=1 | -DWEIGHT=1 -DBLOCKED=1
#ifndef PAIRED
#define PAIRED 0
#endif
#ifndef BLOCKED
#define BLOCKED 0
#endif

// Where input channel c (below 32) of a panel's output channel `lane` stands in a block: as an element of the fragments of mma.clh.
inline int blocked_index(int lane, int c, int geglu)
{
    const int tile = geglu ? lane / 16 : lane % 4 / 2, isLowerRow = lane % 2, group = geglu ? lane % 16 / 2 : lane / 4;
    const int quad = c / 8, product = c % 8 / 4, isRightHalf = c % 4 / 2;
    return (((tile * 2 + product) * 32 + group * 4 + quad) * 4 + isRightHalf * 2 + isLowerRow) * 2 + c % 2;
}

__kernel void pack_weights(__global const uchar* restrict source, __global weight_t* restrict w, const int TYPE,
                           const int O, const int C, const int TAPS, const int P, const int first, const int geglu)
{
    const int lane = (int)get_global_id(0), c = (int)get_global_id(1), panel = (int)get_global_id(2);
    const int packed = panel * P + lane;
    int o = packed - first, limit = O;
    if (geglu) {
        const int isGate = lane >= P / 2;
        o = panel * (P / 2) + lane % (P / 2) + (isGate ? O / 2 : 0);
        limit = isGate ? O : O / 2;
    }
    // Channels before `first` belong to a tensor that was packed earlier.
    if (o < 0) return;
    for (int tap = 0; tap < TAPS; tap++) {
        const int isInside = o < limit && (!BLOCKED || c < C);
        const float value = isInside ? load_source(source, ((size_t)o * C + c) * TAPS + tap, TYPE) : 0.0f;
        const int depth = BLOCKED ? (C + 31) / 32 * 32 : C;
        const int at = BLOCKED  ? c / 32 * 1024 + blocked_index(lane, c % 32, geglu)
                       : PAIRED ? (c & ~1) * P + 2 * lane + (c & 1)
                                : c * P + lane;
        STORE_WEIGHT(w, ((size_t)panel * TAPS + tap) * depth * P + at, value);
    }
}

#if defined(SOURCE)

// pack_weights_cpu — what pack_weights does, for processors. A work-item packs BLOCK channels of a panel, one output channel after another: the
// source is read in runs, and what is written in strides stays in the first-level cache until it is whole.
// Numbers that keep their type are moved, not converted.
// Mapping   global (panels that the source has a part in, ceil(C/BLOCK)), local (1, 1); the first of the panels is FIRST_PANEL
// Macros    SOURCE 0|1|2: type of the source
// Variants  -DSOURCE=0 -DWEIGHT=0 | -DSOURCE=1 -DWEIGHT=1 | -DSOURCE=0 -DWEIGHT=1 | -DSOURCE=1 -DWEIGHT=0 | -DSOURCE=0 -DWEIGHT=2 -DPAIRED=1 | -DSOURCE=2 -DWEIGHT=2
typedef JOIN(STORED_, SOURCE) source_t;
#if SOURCE != WEIGHT
#define MOVE(w, at, source, i) STORE_WEIGHT(w, at, JOIN(LOAD_, SOURCE)(source, i))
#elif SOURCE == SOURCE_FLOAT32
#define MOVE(w, at, source, i) ((w)[at] = (source)[i])
#else
#define MOVE(w, at, source, i) (((__global ushort*)(w))[at] = ((__global const ushort*)(source))[i])
#endif

__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void pack_weights_cpu(
    __global const source_t* restrict source, __global weight_t* restrict w, const int O, const int C, const int TAPS,
    const int P, const int first, const int geglu, const int FIRST_PANEL, const int BLOCK)
{
    const int panel = FIRST_PANEL + (int)get_global_id(0);
    const int begin = (int)get_global_id(1) * BLOCK, end = min(begin + BLOCK, C);
    for (int lane = 0; lane < P; lane++) {
        int o = panel * P + lane - first, limit = O;
        if (geglu) {
            const int isGate = lane >= P / 2;
            o = panel * (P / 2) + lane % (P / 2) + (isGate ? O / 2 : 0);
            limit = isGate ? O : O / 2;
        }
        if (o < 0) continue;
        __global const source_t* row = source + (size_t)o * C * TAPS;
        for (int c = begin; c < end; c++)
            for (int tap = 0; tap < TAPS; tap++) {
                const size_t at = ((size_t)panel * TAPS + tap) * C * P +
                                  (PAIRED ? (c & ~1) * P + 2 * lane + (c & 1) : c * P + lane);
                if (o < limit) MOVE(w, at, row, (size_t)c * TAPS + tap);
                else STORE_WEIGHT(w, at, 0.0f);
            }
    }
}

#endif

// convert_weights — y[i] = source[i] as weight_t: the token table.
// Mapping   global (COUNT rounded up)
// Variants  -DWEIGHT=0 | -DWEIGHT=1 | -DWEIGHT=2
__kernel void convert_weights(__global const uchar* restrict source, __global weight_t* restrict y, const int TYPE,
                              const ulong COUNT)
{
    const size_t i = get_global_id(0);
    if (i < COUNT) STORE_WEIGHT(y, i, load_source(source, i, TYPE));
}

// unpack_float — y[OFFSET + i] = source[i] as float: weights for CLBlast. (convert_float is a built-in function's name.)
// Mapping   global (COUNT rounded up)
// Variants  -DWEIGHT=0
__kernel void unpack_float(__global const uchar* restrict source, __global float* restrict y, const int TYPE,
                           const ulong COUNT, const ulong OFFSET)
{
    const size_t i = get_global_id(0);
    if (i < COUNT) y[OFFSET + i] = load_source(source, i, TYPE);
}
