// convolution.cl — 2-D convolution as an implicit GEMM over NHWC activations; a linear layer is the 1x1 case on [B, T, C].
// The three variants compute the same function from the same packed weights.
//
// y[m, o] = f( sum_{tap, c} x[source(m, tap), c] * w[o, c, tap] + bias[o] + channelBias[n(m), o] ) + residual[m, o]
//
// Letters   m = (n, oy, ox) flattened, M = N*OH*OW; tap = ky*KERNEL + kx; P = PANEL, output channels in one weight panel
// Layout    x         [N, H, W, C]                       operand_t
//           w         [ceil(O/P)][KERNEL*KERNEL][C][P]   weight_t, zero beyond O (packing.cl)
//                     [ceil(O/P)][KERNEL*KERNEL][C/2][P][2] with PAIRED: two neighbouring channels of one lane together
//           bias      [ceil(O/P)*P]                      float, in the order of the panels
//           channelBias [N, O]                           activation_t (the time embedding of a resnet block), if HAS_CHANNEL_BIAS
//           residual  [M, O]                             activation_t, if HAS_RESIDUAL
//           zeros     at least C zeros                   operand_t: what a tap outside the picture reads
//           y         [N, OH, OW, O]                     output_t
// Upsampling  the picture the taps walk over has VH x VW pixels; pixel (v, u) is x pixel (v*H/VH, u*W/VW): nearest neighbour,
//           as torch.nn.functional.interpolate(mode="nearest", size=(VH, VW)). VH = H, VW = W without upsampling.
// GEGLU     a panel holds P/2 value channels, then their P/2 gates; O counts the values:
//           y[m, o] = value * gelu(gate)                 (Shazeer 2020; diffusers models/activations.py GEGLU)
// Macros    KERNEL 1|3, PANEL, FUNCTION 0..3 (common.clh), GEGLU 0|1, HAS_CHANNEL_BIAS 0|1, HAS_RESIDUAL 0|1, UPSAMPLE 0|1
//           PAIRED 0|1 (plain, cpu): pairs of bfloat16 channels are multiplied at once; OPERAND 2, WEIGHT 2, C even
//           ROWS (cpu): output pixels in one register tile
// Called by Sources/TensorOps/Convolution.swift

#if !defined(KERNEL) || !defined(PANEL)
#error "KERNEL and PANEL must be defined"
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

#ifndef PAIRED
#define PAIRED 0
#endif

#define ARGUMENTS                                                                                            \
    __global const operand_t* restrict x, __global const weight_t* restrict w,                            \
        __global const float* restrict bias, __global const activation_t* restrict channelBias,              \
        __global const activation_t* restrict residual, __global const operand_t* restrict zeros,            \
        __global output_t* restrict y, const int N, const int H, const int W, const int C,               \
        const int OH, const int OW, const int O, const int VH, const int VW, const int STRIDE, const int PAD

// The C channels that output pixel (n, oy, ox) reads at a tap; v, u are the tap's coordinates in the picture walked over.
#if UPSAMPLE
#define SOURCE_ROW(v) ((v) * H / VH)
#define SOURCE_COLUMN(u) ((u) * W / VW)
#else
#define SOURCE_ROW(v) (v)
#define SOURCE_COLUMN(u) (u)
#endif
#define INSIDE(v, u) ((uint)(v) < (uint)VH && (uint)(u) < (uint)VW)
#define WEIGHT_INDEX(panel, tap, c, lane)                                                                    \
    (((((size_t)(panel) * KERNEL * KERNEL + (tap)) * C + (PAIRED ? (c) & ~1 : (c))) * PANEL) +               \
     (PAIRED ? 2 * (lane) + ((c) & 1) : (lane)))
#define SOURCE(n, v, u) (x + (((size_t)(n) * H + SOURCE_ROW(v)) * W + SOURCE_COLUMN(u)) * C)

// convolution_plain — one work-item an output element; the form the fast variants are tested against.
// Mapping   global (O, M)
// Variants  -DKERNEL=3 -DPANEL=8 -DUPSAMPLE=1 -DHAS_RESIDUAL=1 | -DKERNEL=1 -DPANEL=8 -DGEGLU=1 -DACTIVATION=1 -DWEIGHT=1 | -DKERNEL=1 -DPANEL=8 -DFUNCTION=1 -DHAS_CHANNEL_BIAS=1 -DACTIVATION=2 -DWEIGHT=2 | -DKERNEL=3 -DPANEL=8 -DOPERAND=2 -DWEIGHT=2 -DPAIRED=1 -DGEGLU=1
__kernel void convolution_plain(ARGUMENTS)
{
    const int o = (int)get_global_id(0);
    const size_t m = get_global_id(1);
    if (o >= O || m >= (size_t)N * OH * OW) return;
    const int ox = (int)(m % OW), oy = (int)(m / OW % OH), n = (int)(m / OW / OH);
    const int channelsPerPanel = GEGLU ? PANEL / 2 : PANEL;
    const int panel = o / channelsPerPanel, lane = o % channelsPerPanel, packed = panel * PANEL + lane;
    float sum = 0.0f, gate = 0.0f;
    for (int tap = 0; tap < KERNEL * KERNEL; tap++) {
        const int v = oy * STRIDE - PAD + tap / KERNEL, u = ox * STRIDE - PAD + tap % KERNEL;
        if (!INSIDE(v, u)) continue;
        __global const operand_t* source = SOURCE(n, v, u);
        for (int c = 0; c < C; c++) {
            const size_t at = WEIGHT_INDEX(panel, tap, c, lane);
            sum = fma(LOAD_OPERAND(source, c), LOAD_WEIGHT(w, at), sum);
            if (GEGLU) gate = fma(LOAD_OPERAND(source, c), LOAD_WEIGHT(w, at + PANEL / 2 * (1 + PAIRED)), gate);
        }
    }
    sum += bias[packed];
    if (HAS_CHANNEL_BIAS) sum += LOAD_ACTIVATION(channelBias, (size_t)n * O + o);
    if (GEGLU) sum *= activate_scalar(FUNCTION_GELU, gate + bias[packed + PANEL / 2]);
    sum = activate_scalar(FUNCTION, sum);
    if (HAS_RESIDUAL) sum += LOAD_ACTIVATION(residual, m * O + o);
    STORE_OUTPUT(y, m * O + o, sum);
}

#if defined(ROWS)

// convolution_cpu — a register tile is ROWS pixels x 2 vectors of output channels; no local memory, no barrier.
// The weights of a panel stream once through the cache for ROWS pixels; pixels are read as broadcast scalars, one pointer each, so
// that borders, strides and upsampling cost nothing in the inner loop (the "indirect convolution" of Dukhan 2019).
// Needs     ACTIVATION 0, OPERAND and OUTPUT 0 or 2, PANEL = 2 * VEC
// Mapping   global (ceil(packed O/P), ceil(ceil(M/ROWS)/BLOCK)), local (1, 1): a work-item makes BLOCK register tiles of one panel, one after
//           another, and panels run fastest, so that both the panel and the block's pixels are read from the cache
// Gain      ROWS=12, VEC=16: 390-480 GFLOP/s on PoCL 3.1, 2 cores of a Zen 5, at the UNet's shapes (2026-11-23)
// Variants  -DKERNEL=3 -DPANEL=32 -DVEC=16 -DROWS=12 -DUPSAMPLE=1 -DHAS_RESIDUAL=1 | -DKERNEL=3 -DPANEL=32 -DVEC=16 -DROWS=12 -DOPERAND=2 -DWEIGHT=2 -DPAIRED=1 -DOUTPUT=2 | -DKERNEL=1 -DPANEL=32 -DVEC=16 -DROWS=12 -DOPERAND=2 -DWEIGHT=2 | -DKERNEL=1 -DPANEL=16 -DVEC=8 -DROWS=6 -DGEGLU=1 -DWEIGHT=1 | -DKERNEL=1 -DPANEL=8 -DVEC=4 -DROWS=4 -DFUNCTION=2 -DHAS_CHANNEL_BIAS=1 -DWEIGHT=2

// Stores the first `count` elements of a vector.
inline void store_partial(floatv value, __global output_t* p, int count)
{
    float lanes[VEC];
    vstorev(value, 0, lanes);
    for (int i = 0; i < count; i++) STORE_OUTPUT(p, i, lanes[i]);
}

inline floatv load_partial(__global const float* p, int count)
{
    float lanes[VEC];
    for (int i = 0; i < VEC; i++) lanes[i] = i < count ? p[i] : 0.0f;
    return vloadv(0, lanes);
}

// One vector of one pixel: bias is already added. `o` is its first output channel.
inline void finish(floatv value, size_t m, int n, int o, int O, __global const float* channelBias,
                   __global const float* residual, __global output_t* y)
{
    const int count = O - o;
    if (count <= 0) return;
    const size_t at = m * O + o;
    if (HAS_CHANNEL_BIAS)
        value += count >= VEC ? vloadv(0, channelBias + (size_t)n * O + o)
                              : load_partial(channelBias + (size_t)n * O + o, count);
    value = activate_vector(FUNCTION, value);
    if (HAS_RESIDUAL) value += count >= VEC ? vloadv(0, residual + at) : load_partial(residual + at, count);
    if (count >= VEC) STORE_OUTPUT_VECTOR(value, 0, y + at);
    else store_partial(value, y + at, count);
}

// What one step of the inner loop reads of a pixel and multiplies: a channel, or a pair of them.
#if PAIRED
typedef uint element_t;
#define ELEMENTS (C / 2)
#define BROADCAST(x) ((uintv)(x))
#define LOAD_WEIGHTS(i, p) vloadv((i), (__global const uint*)(p))
#define MULTIPLY_ADD(t, w, sum) dot_bfloat16(sum, t, w)
#define STEP (2 * PANEL)
typedef uintv elementv;
#else
typedef operand_t element_t;
#define ELEMENTS C
#define BROADCAST(x) ((floatv)(x))
#define LOAD_WEIGHTS(i, p) LOAD_WEIGHT_VECTOR(i, p)
#define MULTIPLY_ADD(t, w, sum) fma(t, w, sum)
#define STEP PANEL
typedef floatv elementv;
#endif

__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void convolution_cpu(ARGUMENTS, const int BLOCK)
{
    const int M = N * OH * OW, tiles = (M + ROWS - 1) / ROWS;
    const int panel = (int)get_global_id(0), firstTile = (int)get_global_id(1) * BLOCK;
    const floatv biasA = vloadv(0, bias + (size_t)panel * PANEL), biasB = vloadv(1, bias + (size_t)panel * PANEL);

    for (int tile = firstTile; tile < min(firstTile + BLOCK, tiles); tile++) {
        __global const weight_t* weights = w + (size_t)panel * KERNEL * KERNEL * C * PANEL;

        // Rows beyond the last pixel repeat it and are not stored.
#define DECLARE(i)                                                                                           \
    floatv sum##i##a = 0.0f, sum##i##b = 0.0f;                                                               \
    const int m##i = min(tile * ROWS + i, M - 1);                                                            \
    const int u##i = m##i % OW * STRIDE - PAD, v##i = m##i / OW % OH * STRIDE - PAD, n##i = m##i / OW / OH;
        FOR_ROWS(DECLARE)

#if PAIRED
#define ELEMENT(i) x##i[element]
#else
#define ELEMENT(i) LOAD_OPERAND(x##i, element)
#endif
#define ACCUMULATE(i)                                                                                        \
    {                                                                                                        \
        const elementv t = BROADCAST(ELEMENT(i));                                                            \
        sum##i##a = MULTIPLY_ADD(t, a, sum##i##a);                                                           \
        sum##i##b = MULTIPLY_ADD(t, b, sum##i##b);                                                           \
    }
#define MULTIPLY(turn, c)                                                                                    \
    {                                                                                                        \
        const int element = c;                                                                               \
        const elementv a = LOAD_WEIGHTS(2 * turn, weights), b = LOAD_WEIGHTS(2 * turn + 1, weights);         \
        FOR_ROWS(ACCUMULATE)                                                                                 \
    }
        for (int ky = 0; ky < KERNEL; ky++)
            for (int kx = 0; kx < KERNEL; kx++) {
#define POINT(i)                                                                                             \
    __global const element_t* x##i = (__global const element_t*)(                                            \
        INSIDE(v##i + ky, u##i + kx) ? SOURCE(n##i, v##i + ky, u##i + kx) : zeros);
                FOR_ROWS(POINT)
                // Two elements a turn: unrolled here because compilers differ in what they make of a pragma.
                int c = 0;
                for (; c + 2 <= ELEMENTS; c += 2) {
                    MULTIPLY(0, c)
                    MULTIPLY(1, c + 1)
                    weights += 2 * STEP;
                }
                if (c < ELEMENTS) {
                    MULTIPLY(0, c)
                    weights += STEP;
                }
            }

#if GEGLU
#define STORE(i)                                                                                             \
    if (tile * ROWS + i < M)                                                                                 \
        finish((sum##i##a + biasA) * activate_vector(FUNCTION_GELU, sum##i##b + biasB), (size_t)m##i, n##i,  \
               panel * VEC, O, channelBias, residual, y);
#else
#define STORE(i)                                                                                             \
    if (tile * ROWS + i < M) {                                                                               \
        finish(sum##i##a + biasA, (size_t)m##i, n##i, panel * PANEL, O, channelBias, residual, y);           \
        finish(sum##i##b + biasB, (size_t)m##i, n##i, panel * PANEL + VEC, O, channelBias, residual, y);     \
    }
#endif
        FOR_ROWS(STORE)
    }
}

#endif

#if PANEL == 64

// convolution_gpu — a work-group of 16 x 16 work-items computes 64 pixels x 64 channels from tiles in local memory, 4 x 4 a work-item.
// Channels of a work-item are 16 apart, so that neighbours store neighbouring channels and a GEGLU value meets its gate.
// Mapping   global (16 * ceil(packed O/64) * ceil(M/64), 16), local (16, 16)
// Memory    local: 2 * 16 * 65 floats
// Variants  -DKERNEL=3 -DPANEL=64 -DUPSAMPLE=1 -DHAS_RESIDUAL=1 -DACTIVATION=1 -DWEIGHT=1 | -DKERNEL=1 -DPANEL=64 -DGEGLU=1 | -DKERNEL=1 -DPANEL=64 -DFUNCTION=1 -DHAS_CHANNEL_BIAS=1 -DACTIVATION=2 -DWEIGHT=2
#define DEPTH 16

__kernel __attribute__((reqd_work_group_size(16, 16, 1))) void convolution_gpu(ARGUMENTS)
{
    __local float pixels[DEPTH][65];
    __local float weights[DEPTH][65];
    const int lx = (int)get_local_id(0), ly = (int)get_local_id(1), item = ly * 16 + lx;
    const int panels = (O + PANEL / (GEGLU ? 2 : 1) - 1) / (PANEL / (GEGLU ? 2 : 1));
    const int panel = (int)(get_group_id(0) % panels);
    const size_t M = (size_t)N * OH * OW, firstRow = get_group_id(0) / panels * 64;
    __global const weight_t* panelWeights = w + (size_t)panel * KERNEL * KERNEL * C * PANEL;

    // For the loads: this work-item brings 4 neighbouring channels of one pixel, and 4 neighbouring weights of one channel.
    const int loadRow = item / 4, loadDepth = item % 4 * 4;
    const size_t loadM = min(firstRow + loadRow, M - 1);
    const int u0 = (int)(loadM % OW) * STRIDE - PAD, v0 = (int)(loadM / OW % OH) * STRIDE - PAD;
    const int n0 = (int)(loadM / OW / OH);
    const int weightDepth = item / 16, weightColumn = item % 16 * 4;

    float sum[4][4] = {{0.0f}};
    for (int tap = 0; tap < KERNEL * KERNEL; tap++) {
        const int v = v0 + tap / KERNEL, u = u0 + tap % KERNEL;
        __global const operand_t* source = INSIDE(v, u) ? SOURCE(n0, v, u) : zeros;
        for (int c0 = 0; c0 < C; c0 += DEPTH) {
            for (int i = 0; i < 4; i++) {
                const int c = c0 + loadDepth + i;
                pixels[loadDepth + i][loadRow] = c < C ? LOAD_OPERAND(source, c) : 0.0f;
                weights[weightDepth][weightColumn + i] =
                    c0 + weightDepth < C
                        ? LOAD_WEIGHT(panelWeights, ((size_t)tap * C + c0 + weightDepth) * PANEL + weightColumn + i)
                        : 0.0f;
            }
            barrier(CLK_LOCAL_MEM_FENCE);  // the tiles are written
            for (int k = 0; k < DEPTH; k++)
                for (int i = 0; i < 4; i++)
                    for (int j = 0; j < 4; j++)
                        sum[i][j] = fma(pixels[k][ly * 4 + i], weights[k][lx + 16 * j], sum[i][j]);
            barrier(CLK_LOCAL_MEM_FENCE);  // the tiles are read
        }
    }

    for (int i = 0; i < 4; i++) {
        const size_t m = firstRow + ly * 4 + i;
        if (m >= M) break;
        const int n = (int)(m / OW / OH);
        for (int j = 0; j < (GEGLU ? 2 : 4); j++) {
            const int lane = lx + 16 * j;
            const int o = panel * (GEGLU ? PANEL / 2 : PANEL) + lane;
            if (o >= O) break;
            float value = sum[i][j] + bias[panel * PANEL + lane];
            if (GEGLU) value *= activate_scalar(FUNCTION_GELU, sum[i][(j + 2) & 3] + bias[panel * PANEL + lane + 32]);
            if (HAS_CHANNEL_BIAS) value += LOAD_ACTIVATION(channelBias, (size_t)n * O + o);
            value = activate_scalar(FUNCTION, value);
            if (HAS_RESIDUAL) value += LOAD_ACTIVATION(residual, m * O + o);
            STORE_OUTPUT(y, m * O + o, value);
        }
    }
}

#endif
