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
        const int isInside = (!BLOCKED || c < C) && o < limit;
        const float value = isInside ? load_source(source, ((size_t)o * C + c) * TAPS + tap, TYPE) : 0.0f;
        const int depth = BLOCKED ? (C + 31) / 32 * 32 : C;
        const int at = BLOCKED  ? c / 32 * 1024 + blocked_index(lane, c % 32, geglu)
                       : PAIRED ? (c & ~1) * P + 2 * lane + (c & 1)
                                : c * P + lane;
        STORE_WEIGHT(w, ((size_t)panel * TAPS + tap) * depth * P + at, value);
    }
}

#if defined(SOURCE)

// pack_weights_cpu — what pack_weights does, for processors. A work-item packs BLOCK channels of a panel: it brings VEC neighbouring numbers of
// each lane's row into a tile, and writes the tile's columns, whole lines of a panel. Numbers that keep their type are not converted.
// Mapping   global (panels that the source has a part in, ceil(C/BLOCK)), local (1, 1); the first of the panels is FIRST_PANEL
// Needs     PANEL = 2 * VEC
// Gain      a float16 checkpoint of 2 GB into float32 in 4.6 to 5.0 s instead of 5.9 to 7.1 with a work-item that moves number by number (PoCL
//           3.1, 2 cores of a Zen 3, 2026-11-25); into float16 in 4.4 to 4.7 instead of 4.1 to 4.2, where nothing is converted
// Macros    SOURCE 0|1|2: type of the source; PANEL: what is P above
// Variants  -DSOURCE=0 -DWEIGHT=0 -DVEC=16 -DPANEL=32 | -DSOURCE=1 -DWEIGHT=1 -DVEC=8 -DPANEL=16 | -DSOURCE=0 -DWEIGHT=1 -DPANEL=8 | -DSOURCE=1 -DWEIGHT=0 -DVEC=8 -DPANEL=16 | -DSOURCE=0 -DWEIGHT=2 -DPAIRED=1 -DVEC=16 -DPANEL=32 | -DSOURCE=2 -DWEIGHT=2 -DPAIRED=1 -DVEC=16 -DPANEL=32
typedef JOIN(STORED_, SOURCE) source_t;
#if SOURCE == WEIGHT && SOURCE != SOURCE_FLOAT32
typedef ushort moved_t;
#define TAKE(p, i) ((__global const ushort*)(p))[i]
#define TAKE_VECTOR(p) vloadv(0, (__global const ushort*)(p))
#define PUT(p, i, v) (((__global ushort*)(p))[i] = (v))
#define PUT_VECTOR(v, i, p) vstorev(v, i, (__global ushort*)(p))
#else
typedef float moved_t;
#define TAKE(p, i) JOIN(LOAD_, SOURCE)(p, i)
#define TAKE_VECTOR(p) JOIN(LOAD_VECTOR_, SOURCE)(0, p)
#define PUT(p, i, v) STORE_WEIGHT(p, i, v)
#define PUT_VECTOR(v, i, p) JOIN(STORE_VECTOR_, WEIGHT)(v, i, p)
#endif

__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void pack_weights_cpu(
    __global const source_t* restrict source, __global weight_t* restrict w, const int O, const int C, const int TAPS,
    const int first, const int geglu, const int FIRST_PANEL, const int BLOCK)
{
    const int panel = FIRST_PANEL + (int)get_global_id(0);
    const int begin = (int)get_global_id(1) * BLOCK * TAPS, end = min(begin + BLOCK * TAPS, C * TAPS);
    // The row of each lane, -1 for zeros beyond the last; lanes before `mine` belong to a tensor that was packed earlier.
    int rows[PANEL], mine = 0;
    for (int lane = 0; lane < PANEL; lane++) {
        int o = panel * PANEL + lane - first, limit = O;
        if (geglu) {
            const int isGate = lane >= PANEL / 2;
            o = panel * (PANEL / 2) + lane % (PANEL / 2) + (isGate ? O / 2 : 0);
            limit = isGate ? O : O / 2;
        }
        if (o < 0) mine = lane + 1;
        rows[lane] = o >= 0 && o < limit ? o : -1;
    }
    int c = begin / TAPS, tap = 0;
    for (int e = begin; e < end; e += VEC) {
        const int count = min(VEC, end - e);
        moved_t tile[VEC * PANEL];
        for (int lane = 0; lane < PANEL; lane++) {
            moved_t line[VEC];
            __global const source_t* from = source + (size_t)max(rows[lane], 0) * C * TAPS + e;
            if (rows[lane] >= 0 && count == VEC) vstorev(TAKE_VECTOR(from), 0, line);
            else
                for (int i = 0; i < VEC; i++) line[i] = rows[lane] >= 0 && i < count ? TAKE(from, i) : 0;
            for (int i = 0; i < VEC; i++) tile[i * PANEL + lane] = line[i];
        }
        for (int i = 0; i < count; i++) {
            __global weight_t* to = w + ((size_t)panel * TAPS + tap) * C * PANEL;
            if (mine > 0 || PAIRED) {
                for (int lane = mine; lane < PANEL; lane++)
                    PUT(to, PAIRED ? (c & ~1) * PANEL + 2 * lane + (c & 1) : c * PANEL + lane, tile[i * PANEL + lane]);
            } else {
                PUT_VECTOR(vloadv(2 * i, tile), 0, to + c * PANEL);
                PUT_VECTOR(vloadv(2 * i + 1, tile), 1, to + c * PANEL);
            }
            if (++tap == TAPS) {
                tap = 0;
                c++;
            }
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
