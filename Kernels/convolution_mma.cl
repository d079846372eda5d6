// convolution_mma.cl — convolution.cl's function on tensor cores: an implicit GEMM of half activations and half weights, summed in float.
//
// y[m, o] = f( sum_{tap, c} x[source(m, tap), c] * w[o, c, tap] + bias[o] + channelBias[n(m), o] ) + residual[m, o]
//
// Letters   as in convolution.cl; C is a multiple of 8; P = 32 output channels in a panel; a step is 32 channels of one tap,
//           STEPS = KERNEL*KERNEL * ceil(C/32)
// Layout    x         [N, H, W, C]                     half
//           w         [ceil(O/P)][STEPS][2][2][32][8]  half, zero beyond O and C (packing.cl, BLOCKED): a panel's two tiles of 16 channels as
//                     left operands of two products, by lane; a work-group copies them as they lie
//           bias      [ceil(O/P)*P]                    float
//           channelBias [N, O], residual [M, O], y [N, OH, OW, O]   half
//           partial   [splits][M][ceil(O/P)*P]         float, with SPLIT
// Roles     weights are the left operand, whose parts can be packed as the instruction wants them, pixels the right one, whose parts are
//           neighbouring channels. In row r of tile t stands the panel's channel 4 (r % 8) + 2 t + r / 8, so that a work-item has
//           4 neighbouring ones of a pixel.
// GEGLU     a panel holds 16 value channels, then their gates; O counts the values. Tile 0 holds values, channel 2 (r % 8) + r / 8, tile 1
//           their gates.
// Macros    KERNEL 1|3, FUNCTION 0..3 (common.clh), GEGLU 0|1, HAS_CHANNEL_BIAS 0|1, HAS_RESIDUAL 0|1, UPSAMPLE 0|1
//           WHOLE 0|1         O is a multiple of 4, so that a work-item's neighbouring channels are stored at once
//           SPLIT 0|1         a work-group sums only a part of the steps, into `partial`, which convolution_mma_finish adds up
//           TILE_M, TILE_N    pixels and channels of a work-group
//           WARP_M, WARP_N    those of one of its warps, multiples of 16 and 32
// Called by Sources/TensorOps/TensorCores.swift

#if !defined(KERNEL) || !defined(WHOLE)
#error "KERNEL and WHOLE must be defined"
#endif
#ifndef FUNCTION
#define FUNCTION 0
#endif
#ifndef GEGLU
#define GEGLU 0
#endif
#ifndef HAS_CHANNEL_BIAS
#define HAS_CHANNEL_BIAS 0
#endif
#ifndef HAS_RESIDUAL
#define HAS_RESIDUAL 0
#endif
#ifndef UPSAMPLE
#define UPSAMPLE 0
#endif
#ifndef SPLIT
#define SPLIT 0
#endif

#define PANEL 32
// Neighbouring channels that a work-item has of a panel: all its results, or its values of a GEGLU.
#define OWNED (GEGLU ? 2 : 4)

inline void load_owned(float* values, __global const half* p, int left)
{
#if WHOLE
    UNROLL for (int e = 0; e < OWNED / 2; e++) {
        const float2 pair = unpack_halves(((__global const uint*)p)[e]);
        values[2 * e] = pair.x;
        values[2 * e + 1] = pair.y;
    }
#else
    UNROLL for (int e = 0; e < OWNED; e++) values[e] = e < left ? vload_half(e, p) : 0.0f;
#endif
}

inline void store_owned(const float* values, __global half* p, int left)
{
#if WHOLE && GEGLU
    *(__global uint*)p = pack_halves(values[0], values[1]);
#elif WHOLE
    *(__global uint2*)p = (uint2)(pack_halves(values[0], values[1]), pack_halves(values[2], values[3]));
#else
    UNROLL for (int e = 0; e < OWNED; e++)
        if (e < left) vstore_half_rte(values[e], e, p);
#endif
}

// OWNED floats of a buffer in the order of the panels, where they are aligned; vload4 promises the compiler nothing of the kind.
inline void load_floats(float* values, __global const float* p)
{
    UNROLL for (int e = 0; e < OWNED / 2; e++) vstore2(((__global const float2*)p)[e], e, values);
}

// Everything after the sums: OWNED channels of pixel m (of picture n) from channel o on. With GEGLU, values and gates.
inline void finish(const float* sums, const float* gates, size_t m, int n, int o, int O, __global const float* bias,
                   __global const half* channelBias, __global const half* residual, __global half* y)
{
    if (o >= O) return;
    const int packed = GEGLU ? o / 16 * PANEL + o % 16 : o;
    float added[OWNED], values[OWNED];
    load_floats(added, bias + packed);
    UNROLL for (int e = 0; e < OWNED; e++) values[e] = sums[e] + added[e];
    if (GEGLU) {
        load_floats(added, bias + packed + 16);
        UNROLL for (int e = 0; e < OWNED; e++) values[e] *= activate_scalar(FUNCTION_GELU, gates[e] + added[e]);
    }
    if (HAS_CHANNEL_BIAS) {
        load_owned(added, channelBias + (size_t)n * O + o, O - o);
        UNROLL for (int e = 0; e < OWNED; e++) values[e] += added[e];
    }
    UNROLL for (int e = 0; e < OWNED; e++) values[e] = activate_scalar(FUNCTION, values[e]);
    if (HAS_RESIDUAL) {
        load_owned(added, residual + m * O + o, O - o);
        UNROLL for (int e = 0; e < OWNED; e++) values[e] += added[e];
    }
    store_owned(values, y + m * O + o, O - o);
}

#if defined(TILE_M)

#define WARPS_N (TILE_N / WARP_N)
#define ITEMS (TILE_M / WARP_M * WARPS_N * 32)
// Products of a warp: tiles of 16 channels by tiles of 8 pixels.
#define CHANNEL_TILES (WARP_N / 16)
#define PIXEL_TILES (WARP_M / 8)
// 16-byte pieces, of 8 channels, that a work-item brings of each tile in a step, and the number of its i-th.
#define X_PIECES ((TILE_M * 4 + ITEMS - 1) / ITEMS)
#define W_PIECES ((TILE_N * 4 + ITEMS - 1) / ITEMS)
#define PIECE(i) (item + ITEMS * (i))
// Whether there is an i-th for all work-items, or for this one.
#define HAS_PIECE(i, TILE) (ITEMS * ((i) + 1) <= (TILE) * 4 || PIECE(i) < (TILE) * 4)

// convolution_mma — a work-group of ITEMS/32 warps computes TILE_M pixels x TILE_N channels. While a step is multiplied out of one half of the
// local memory, the next is on its way to registers, and goes into the other half afterwards: one barrier a step.
// Mapping   global (ITEMS * ceil(packed O/TILE_N) * ceil(M/TILE_M), splits), local (ITEMS, 1): in one dimension, as the others of NVIDIA's
//           GPUs end at 65535 work-groups
// Memory    local: 128 * (TILE_M + TILE_N) bytes; without bank conflicts, as rows of 64 bytes are written and read by 4 neighbours each
// Variants  -DKERNEL=3 -DWHOLE=1 -DTILE_M=128 -DTILE_N=128 -DWARP_M=64 -DWARP_N=64 | -DKERNEL=3 -DWHOLE=1 -DTILE_M=128 -DTILE_N=64 -DWARP_M=64 -DWARP_N=32 -DHAS_CHANNEL_BIAS=1 -DHAS_RESIDUAL=1 -DFUNCTION=1 -DUPSAMPLE=1 | -DKERNEL=3 -DWHOLE=1 -DTILE_M=64 -DTILE_N=64 -DWARP_M=32 -DWARP_N=32 -DHAS_RESIDUAL=1 | -DKERNEL=3 -DWHOLE=1 -DTILE_M=128 -DTILE_N=160 -DWARP_M=64 -DWARP_N=32 -DHAS_RESIDUAL=1 | -DKERNEL=3 -DWHOLE=1 -DTILE_M=128 -DTILE_N=160 -DWARP_M=64 -DWARP_N=32 -DSPLIT=1 | -DKERNEL=1 -DWHOLE=1 -DTILE_M=128 -DTILE_N=128 -DWARP_M=64 -DWARP_N=64 -DGEGLU=1 | -DKERNEL=3 -DWHOLE=0 -DTILE_M=64 -DTILE_N=64 -DWARP_M=32 -DWARP_N=32 | -DKERNEL=3 -DWHOLE=1 -DTILE_M=128 -DTILE_N=128 -DWARP_M=64 -DWARP_N=64 -DSPLIT=1 | -DKERNEL=3 -DWHOLE=1 -DTILE_M=128 -DTILE_N=64 -DWARP_M=64 -DWARP_N=32 -DSPLIT=1 | -DKERNEL=3 -DWHOLE=1 -DTILE_M=64 -DTILE_N=64 -DWARP_M=32 -DWARP_N=32 -DSPLIT=1
__kernel WARP_KERNEL __attribute__((reqd_work_group_size(ITEMS, 1, 1))) void convolution_mma(
    __global const uint4* restrict x, __global const uint4* restrict w, __global const float* restrict bias,
    __global const half* restrict channelBias, __global const half* restrict residual, __global half* restrict y,
    __global float* restrict partial, const int N, const int H, const int W, const int C, const int OH, const int OW,
    const int O, const int VH, const int VW, const int STRIDE, const int PAD, const int PANELS, const int STEPS_PER_SPLIT)
{
    __local uint4 pixels[2][TILE_M * 4];
    __local uint4 weights[2][TILE_N * 4];
    const int item = (int)get_local_id(0), lane = item & 31, warp = item >> 5, quad = lane & 3, group = lane >> 2;
    const int warpRow = warp / WARPS_N * WARP_M, warpColumn = warp % WARPS_N * WARP_N;
    const int columns = (PANELS * PANEL + TILE_N - 1) / TILE_N;
    const int M = N * OH * OW, firstRow = (int)get_group_id(0) / columns * TILE_M;
    const int firstPanel = (int)get_group_id(0) % columns * (TILE_N / PANEL);
    const int pieces = C / 8, stepsPerTap = (C + 31) / 32, STEPS = KERNEL * KERNEL * stepsPerTap;
    const int firstStep = SPLIT ? (int)get_group_id(1) * STEPS_PER_SPLIT : 0;
    const int endStep = SPLIT ? min(firstStep + STEPS_PER_SPLIT, STEPS) : STEPS;

    // What this work-item brings. Pixels beyond the last repeat it and are not stored, nor are panels beyond the last.
    int row[X_PIECES], column[X_PIECES], image[X_PIECES], source[X_PIECES];
    UNROLL for (int i = 0; i < X_PIECES; i++) {
        const int m = min(firstRow + PIECE(i) / 4, M - 1);
        row[i] = m / OW % OH * STRIDE - PAD;
        column[i] = m % OW * STRIDE - PAD;
        image[i] = m / OW / OH * H * W;
    }
    __global const uint4* panel[W_PIECES];
    UNROLL for (int i = 0; i < W_PIECES; i++)
        panel[i] = w + ((size_t)min(firstPanel + PIECE(i) / (PANEL * 4), PANELS - 1) * STEPS + firstStep) * (PANEL * 4) +
                   PIECE(i) % (PANEL * 4);

    // Where the pixels' channels begin at a tap, in pieces; -1 outside the picture.
#define LOCATE(tap)                                                                                          \
    UNROLL for (int i = 0; i < X_PIECES; i++) {                                                              \
        const int v = row[i] + (tap) / KERNEL, u = column[i] + (tap) % KERNEL;                               \
        const int from = UPSAMPLE ? v * H / VH * W + u * W / VW : v * W + u;                                 \
        source[i] = HAS_PIECE(i, TILE_M) && (uint)v < (uint)VH && (uint)u < (uint)VW                         \
                        ? (image[i] + from) * pieces                                                         \
                        : -1;                                                                                \
    }
#define FETCH(at)                                                                                            \
    {                                                                                                        \
        const int piece = (at) * 4 + quad;                                                                   \
        UNROLL for (int i = 0; i < X_PIECES; i++)                                                            \
            nextPixels[i] = source[i] >= 0 && piece < pieces ? x[source[i] + piece] : (uint4)(0u);           \
        UNROLL for (int i = 0; i < W_PIECES; i++)                                                            \
        {                                                                                                    \
            if (HAS_PIECE(i, TILE_N)) nextWeights[i] = *panel[i];                                            \
            panel[i] += PANEL * 4;                                                                           \
        }                                                                                                    \
    }
#define KEEP(half_)                                                                                          \
    {                                                                                                        \
        UNROLL for (int i = 0; i < X_PIECES; i++)                                                            \
            if (HAS_PIECE(i, TILE_M)) pixels[half_][PIECE(i)] = nextPixels[i];                               \
        UNROLL for (int i = 0; i < W_PIECES; i++)                                                            \
            if (HAS_PIECE(i, TILE_N)) weights[half_][PIECE(i)] = nextWeights[i];                             \
    }

    float4 sum[CHANNEL_TILES][PIXEL_TILES];
    UNROLL for (int i = 0; i < CHANNEL_TILES; i++)
        UNROLL for (int j = 0; j < PIXEL_TILES; j++) sum[i][j] = (float4)(0.0f);

    uint4 nextPixels[X_PIECES], nextWeights[W_PIECES];
    int tap = firstStep / stepsPerTap, at = firstStep % stepsPerTap, current = 0;
    LOCATE(tap)
    FETCH(at)
    KEEP(0)
    barrier(CLK_LOCAL_MEM_FENCE);  // the first step is written

    for (int step = firstStep; step < endStep; step++) {
        const bool hasNext = step + 1 < endStep;
        if (hasNext) {
            if (++at == stepsPerTap) {
                at = 0;
                tap++;
                LOCATE(tap)
            }
            FETCH(at)
        }

        uint4 left[CHANNEL_TILES][2];
        UNROLL for (int i = 0; i < CHANNEL_TILES; i++)
            UNROLL for (int e = 0; e < 2; e++) left[i][e] = weights[current][(warpColumn + 16 * i + 8 * e) * 4 + lane];
        UNROLL for (int j = 0; j < PIXEL_TILES; j++) {
            const uint4 right = pixels[current][(warpRow + 8 * j) * 4 + lane];
            UNROLL for (int i = 0; i < CHANNEL_TILES; i++) sum[i][j] = mma_m16n8k16(sum[i][j], left[i][0], right.xy);
            UNROLL for (int i = 0; i < CHANNEL_TILES; i++) sum[i][j] = mma_m16n8k16(sum[i][j], left[i][1], right.zw);
        }

        current ^= 1;
        if (hasNext) KEEP(current)
        barrier(CLK_LOCAL_MEM_FENCE);  // this step is read, the next written
    }

    // Of a panel, two tiles, a work-item has 4 neighbouring channels, or 2 values and their gates, of each of two pixels.
    UNROLL for (int j = 0; j < PIXEL_TILES; j++)
        UNROLL for (int second = 0; second < 2; second++) {
            const int m = firstRow + warpRow + 8 * j + 2 * quad + second;
            UNROLL for (int i = 0; i < CHANNEL_TILES; i += 2) {
                const int at32 = firstPanel + (warpColumn + 16 * i) / PANEL;
                const float2 first = second ? sum[i][j].yw : sum[i][j].xz;
                const float2 other = second ? sum[i + 1][j].yw : sum[i + 1][j].xz;
                if (m < M && at32 < PANELS) {
#if SPLIT
                    __global float* sums =
                        partial + ((size_t)get_group_id(1) * M + m) * PANELS * PANEL + at32 * PANEL + OWNED * group;
                    ((__global float2*)sums)[0] = first;
                    ((__global float2*)sums)[GEGLU ? 8 : 1] = other;
#else
                    const float values[4] = {first.x, first.y, other.x, other.y};
                    finish(values, values + 2, (size_t)m, m / OW / OH, at32 * (GEGLU ? 16 : PANEL) + OWNED * group, O,
                           bias, channelBias, residual, y);
#endif
                }
            }
        }
}

#endif

// linear_few_mma — the same for KERNEL 1 and so few rows that only reading the weights counts: no tensor cores, a work-group a panel, whose
// warps share the steps. A lane has the weights of 4 neighbouring channels for its quad's 8 elements of a step.
// Mapping   global (128 * ceil(O/32), ceil(M/FEW)), local (128, 1); FEW at most 16
// Memory    local: 512 * FEW bytes
// Variants  -DKERNEL=1 -DFEW=4 -DWHOLE=1 -DFUNCTION=1 -DHAS_CHANNEL_BIAS=1 | -DKERNEL=1 -DFEW=4 -DWHOLE=0 -DHAS_RESIDUAL=1
#if defined(FEW)
inline float2 add_products(float2 sum, uint a, uint b) { return fma(unpack_halves(a), unpack_halves(b), sum); }

__kernel WARP_KERNEL __attribute__((reqd_work_group_size(128, 1, 1))) void linear_few_mma(
    __global const uint4* restrict x, __global const uint4* restrict w, __global const float* restrict bias,
    __global const half* restrict channelBias, __global const half* restrict residual, __global half* restrict y,
    const int M, const int PIXELS, const int C, const int O)
{
    __local float4 shares[4][FEW][8];
    const int item = (int)get_local_id(0), lane = item & 31, warp = item >> 5, quad = lane & 3, group = lane >> 2;
    const int panel = (int)get_group_id(0), firstRow = (int)get_group_id(1) * FEW;
    const int pieces = C / 8, steps = (C + 31) / 32;
    __global const uint4* weights = w + (size_t)panel * steps * (PANEL * 4) + lane;

    // Even and odd elements apart, of 4 channels each.
    float2 sums[FEW][4];
    UNROLL for (int r = 0; r < FEW; r++)
        UNROLL for (int c = 0; c < 4; c++) sums[r][c] = (float2)(0.0f);
    for (int step = warp; step < steps; step += 4) {
        // Tile t has channels 2 t and 2 t + 1 of the lane's four; its two products elements 0 to 3 and 4 to 7.
        uint4 left[2][2];
        UNROLL for (int t = 0; t < 2; t++)
            UNROLL for (int e = 0; e < 2; e++) left[t][e] = weights[step * (PANEL * 4) + (2 * t + e) * 32];
        UNROLL for (int r = 0; r < FEW; r++) {
            const int piece = step * 4 + quad;
            const uint4 right =
                firstRow + r < M && piece < pieces ? x[(size_t)(firstRow + r) * pieces + piece] : (uint4)(0u);
            UNROLL for (int t = 0; t < 2; t++) {
                sums[r][2 * t] = add_products(add_products(sums[r][2 * t], left[t][0].x, right.x), left[t][0].z, right.y);
                sums[r][2 * t] = add_products(add_products(sums[r][2 * t], left[t][1].x, right.z), left[t][1].z, right.w);
                sums[r][2 * t + 1] =
                    add_products(add_products(sums[r][2 * t + 1], left[t][0].y, right.x), left[t][0].w, right.y);
                sums[r][2 * t + 1] =
                    add_products(add_products(sums[r][2 * t + 1], left[t][1].y, right.z), left[t][1].w, right.w);
            }
        }
    }
    UNROLL for (int r = 0; r < FEW; r++) {
        float total[4];
        UNROLL for (int c = 0; c < 4; c++) {
            total[c] = sums[r][c].x + sums[r][c].y;
            total[c] += exchange_1(total[c]);
            total[c] += exchange_2(total[c]);
        }
        if (quad == 0) shares[warp][r][group] = (float4)(total[0], total[1], total[2], total[3]);
    }
    barrier(CLK_LOCAL_MEM_FENCE);  // every warp's shares are written
    const int m = firstRow + item / 8;
    if (item < FEW * 8 && m < M) {
        const float4 total = shares[0][item / 8][item % 8] + shares[1][item / 8][item % 8] + shares[2][item / 8][item % 8] +
                             shares[3][item / 8][item % 8];
        const float values[4] = {total.x, total.y, total.z, total.w};
        finish(values, values, (size_t)m, m / PIXELS, panel * PANEL + 4 * (item % 8), O, bias, channelBias, residual, y);
    }
}
#endif

// convolution_mma_finish — adds up what the splits of convolution_mma summed, and finishes OWNED channels of a pixel.
// Mapping   global (ceil(O/OWNED), M)
// Variants  -DKERNEL=3 -DWHOLE=1 -DHAS_CHANNEL_BIAS=1 -DHAS_RESIDUAL=1 -DFUNCTION=1 | -DKERNEL=1 -DWHOLE=1 -DGEGLU=1 | -DKERNEL=3 -DWHOLE=0
__kernel void convolution_mma_finish(__global const float* restrict partial, __global const float* restrict bias,
                                     __global const half* restrict channelBias, __global const half* restrict residual,
                                     __global half* restrict y, const int SPLITS, const int M, const int PIXELS,
                                     const int O, const int PANELS)
{
    const int o = (int)get_global_id(0) * OWNED, m = (int)get_global_id(1);
    if (o >= O || m >= M) return;
    const int packed = GEGLU ? o / 16 * PANEL + o % 16 : o;
    float sums[OWNED], gates[OWNED];
    UNROLL for (int e = 0; e < OWNED; e++) sums[e] = gates[e] = 0.0f;
    for (int split = 0; split < SPLITS; split++) {
        __global const float* part = partial + ((size_t)split * M + m) * PANELS * PANEL + packed;
        float added[OWNED];
        load_floats(added, part);
        UNROLL for (int e = 0; e < OWNED; e++) sums[e] += added[e];
        if (GEGLU) {
            load_floats(added, part + 16);
            UNROLL for (int e = 0; e < OWNED; e++) gates[e] += added[e];
        }
    }
    finish(sums, gates, (size_t)m, m / PIXELS, o, O, bias, channelBias, residual, y);
}
