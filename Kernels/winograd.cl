// winograd.cl — 3x3 convolutions of stride 1 by Winograd's minimal filtering F(4x4, 3x3), in float32, for processors.
// An output tile of 4 x 4 pixels costs 36 multiplications a channel instead of 144 (Winograd 1980; Lavin & Gray 2016, equation 8):
//
//   Y = A^T [ (G g G^T) . (B^T d B) ] A        d: the tile's 6 x 6 input pixels, g: the 3 x 3 weights, summed over input channels
//
// The elementwise product over all channels is 36 matrix products, one for each place of the transformed tile ("frequency").
// Points are 0, 1, -1, 2, -2 and infinity. The picture is walked in strips of tiles, so that a strip's transforms stay in the cache.
//
// Letters   tile t = (n, ty, tx) flattened over N pictures of TH x TW tiles; a strip is STRIP tiles from FIRST on
// Layout    x, residual, y, channelBias, bias and upsampling as in convolution.cl; C and O are multiples of VEC
//           w [O/P][9][C][P] weight_t, or in pairs of channels, as convolution.cl has them
//           u [36][O/P][C][P] float: transformed weights; v [36][STRIP][C] float: transformed input
//           m [36][STRIP][O/P * P] float: the products
// Macros    PANEL, FUNCTION, HAS_CHANNEL_BIAS, HAS_RESIDUAL, UPSAMPLE, PAIRED as in convolution.cl; ROWS, VEC
// Called by Sources/TensorOps/Winograd.swift

#ifndef FUNCTION
#define FUNCTION 0
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

// winograd_weights — u = G g G^T for VEC lanes of a panel and one input channel.
// Mapping   global (P/VEC, C, O/P), local (1, 1, 1)
// Variants  -DPANEL=32 -DVEC=16 -DROWS=12 | -DPANEL=16 -DVEC=8 -DROWS=6 -DWEIGHT=1 | -DPANEL=32 -DVEC=16 -DROWS=12 -DWEIGHT=2 -DPAIRED=1
__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void winograd_weights(__global const weight_t* restrict w,
                                                                               __global float* restrict u)
{
    const size_t part = get_global_id(0), c = get_global_id(1), panel = get_global_id(2);
    const size_t C = get_global_size(1), panels = get_global_size(2);
    floatv g[9];
    for (int tap = 0; tap < 9; tap++) {
#if PAIRED
        __global const uint* pairs = (__global const uint*)w;
        const uintv pair = vloadv(part, pairs + ((panel * 9 + tap) * (C / 2) + c / 2) * PANEL);
        g[tap] = as_floatv(c % 2 ? pair & 0xffff0000u : pair << 16);
#else
        g[tap] = LOAD_WEIGHT_VECTOR(part, w + ((panel * 9 + tap) * C + c) * PANEL);
#endif
    }
    // Columns, then rows.
    floatv t[6][3];
#define TRANSFORM_WEIGHTS(g0, g1, g2, r0, r1, r2, r3, r4, r5)                                                \
    {                                                                                                        \
        const floatv even = (g0 + g2) * (-1.0f / 6), odd = g1 * (-1.0f / 6);                                 \
        const floatv even2 = g0 * (1.0f / 24) + g2 * (1.0f / 6), odd2 = g1 * (1.0f / 12);                    \
        r0 = g0 * 0.25f;                                                                                     \
        r1 = even + odd;                                                                                     \
        r2 = even - odd;                                                                                     \
        r3 = even2 + odd2;                                                                                   \
        r4 = even2 - odd2;                                                                                   \
        r5 = g2;                                                                                             \
    }
    for (int j = 0; j < 3; j++)
        TRANSFORM_WEIGHTS(g[j], g[3 + j], g[6 + j], t[0][j], t[1][j], t[2][j], t[3][j], t[4][j], t[5][j])
    for (int i = 0; i < 6; i++) {
        floatv r[6];
        TRANSFORM_WEIGHTS(t[i][0], t[i][1], t[i][2], r[0], r[1], r[2], r[3], r[4], r[5])
        for (int j = 0; j < 6; j++) vstorev(r[j], part, u + (((i * 6 + j) * panels + panel) * C + c) * PANEL);
    }
}

// winograd_input — v = B^T d B for all channels of one tile.
// Mapping   global (tiles of the strip), local (1)
// Variants  -DPANEL=32 -DVEC=16 -DROWS=12 -DUPSAMPLE=1 | -DPANEL=16 -DVEC=8 -DROWS=6 | -DPANEL=32 -DVEC=16 -DROWS=12 -DOPERAND=2
__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void winograd_input(
    __global const operand_t* restrict x, __global const operand_t* restrict zeros, __global float* restrict v,
    const int H, const int W, const int C, const int VH, const int VW, const int FIRST, const int STRIP)
{
    const int at = (int)get_global_id(0), tile = FIRST + at;
    const int TW = (VW + 3) / 4, TH = (VH + 3) / 4;
    const int left = tile % TW * 4 - 1, top = tile / TW % TH * 4 - 1, n = tile / TW / TH;
    __global const operand_t* pixels[36];
    for (int i = 0; i < 36; i++) {
        const int py = top + i / 6, px = left + i % 6;
        const int isInside = (uint)py < (uint)VH && (uint)px < (uint)VW;
#if UPSAMPLE
        pixels[i] = isInside ? x + (((size_t)n * H + py * H / VH) * W + px * W / VW) * C : zeros;
#else
        pixels[i] = isInside ? x + (((size_t)n * H + py) * W + px) * C : zeros;
#endif
    }
    __global float* out = v + (size_t)at * C;
    const size_t next = (size_t)STRIP * C;
    for (int c = 0; c < C; c += VEC) {
        floatv t[6][6];
#define TRANSFORM_INPUT(d0, d1, d2, d3, d4, d5, r0, r1, r2, r3, r4, r5)                                      \
    {                                                                                                        \
        const floatv a = fma(d2, (floatv)(-4.0f), d4), b = fma(d1, (floatv)(-4.0f), d3);                     \
        const floatv e = d4 - d2, f = 2.0f * (d3 - d1);                                                      \
        r0 = fma(d0, (floatv)(4.0f), fma(d2, (floatv)(-5.0f), d4));                                          \
        r1 = a + b;                                                                                          \
        r2 = a - b;                                                                                          \
        r3 = e + f;                                                                                          \
        r4 = e - f;                                                                                          \
        r5 = fma(d1, (floatv)(4.0f), fma(d3, (floatv)(-5.0f), d5));                                          \
    }
        for (int j = 0; j < 6; j++) {
            const floatv d0 = LOAD_OPERAND_VECTOR(0, pixels[j] + c), d1 = LOAD_OPERAND_VECTOR(0, pixels[6 + j] + c),
                         d2 = LOAD_OPERAND_VECTOR(0, pixels[12 + j] + c),
                         d3 = LOAD_OPERAND_VECTOR(0, pixels[18 + j] + c),
                         d4 = LOAD_OPERAND_VECTOR(0, pixels[24 + j] + c),
                         d5 = LOAD_OPERAND_VECTOR(0, pixels[30 + j] + c);
            TRANSFORM_INPUT(d0, d1, d2, d3, d4, d5, t[0][j], t[1][j], t[2][j], t[3][j], t[4][j], t[5][j])
        }
        for (int i = 0; i < 6; i++) {
            floatv r[6];
            TRANSFORM_INPUT(t[i][0], t[i][1], t[i][2], t[i][3], t[i][4], t[i][5], r[0], r[1], r[2], r[3], r[4], r[5])
            for (int j = 0; j < 6; j++) vstorev(r[j], 0, out + (i * 6 + j) * next + c);
        }
    }
}

// winograd_multiply — m = v u for one panel at one frequency, ROWS tiles of the strip after ROWS tiles: the register tile of convolution_cpu.
// Mapping   global (O/P, 36), local (1, 1)
// Variants  -DPANEL=32 -DVEC=16 -DROWS=12 | -DPANEL=16 -DVEC=8 -DROWS=6
__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void winograd_multiply(
    __global const float* restrict v, __global const float* restrict u, __global float* restrict m, const int C,
    const int STRIP)
{
    const size_t panel = get_global_id(0), panels = get_global_size(0), frequency = get_global_id(1);
    __global const float* rows = v + frequency * STRIP * C;
    for (int first = 0; first < STRIP; first += ROWS) {
        __global const float* weights = u + (frequency * panels + panel) * C * PANEL;
        // Rows beyond the strip repeat its last and are not stored.
#define DECLARE(i)                                                                                           \
    floatv sum##i##a = 0.0f, sum##i##b = 0.0f;                                                               \
    __global const float* v##i = rows + (size_t)min(first + i, STRIP - 1) * C;
        FOR_ROWS(DECLARE)
#define ACCUMULATE(i)                                                                                        \
    {                                                                                                        \
        const floatv t = (floatv)(v##i[channel]);                                                            \
        sum##i##a = fma(t, a, sum##i##a);                                                                    \
        sum##i##b = fma(t, b, sum##i##b);                                                                    \
    }
#define MULTIPLY(turn, c)                                                                                    \
    {                                                                                                        \
        const int channel = c;                                                                               \
        const floatv a = vloadv(2 * turn, weights), b = vloadv(2 * turn + 1, weights);                       \
        FOR_ROWS(ACCUMULATE)                                                                                 \
    }
        for (int c = 0; c < C; c += 2) {
            MULTIPLY(0, c)
            MULTIPLY(1, c + 1)
            weights += 2 * PANEL;
        }
        __global float* out = m + ((frequency * STRIP + first) * panels + panel) * PANEL;
#define STORE(i)                                                                                             \
    if (first + i < STRIP) {                                                                                 \
        vstorev(sum##i##a, 0, out + i * panels * PANEL);                                                     \
        vstorev(sum##i##b, 1, out + i * panels * PANEL);                                                     \
    }
        FOR_ROWS(STORE)
    }
}

// winograd_output — y = f(A^T m A + bias + channelBias) + residual for all channels of one tile.
// Mapping   global (tiles of the strip), local (1)
// Variants  -DPANEL=32 -DVEC=16 -DROWS=12 -DHAS_RESIDUAL=1 | -DPANEL=16 -DVEC=8 -DROWS=6 -DHAS_CHANNEL_BIAS=1 -DFUNCTION=1 | -DPANEL=32 -DVEC=16 -DROWS=12 -DOUTPUT=2
__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void winograd_output(
    __global const float* restrict m, __global const float* restrict bias, __global const float* restrict channelBias,
    __global const float* restrict residual, __global output_t* restrict y, const int OH, const int OW, const int O,
    const int PITCH, const int FIRST, const int STRIP)
{
    const int at = (int)get_global_id(0), tile = FIRST + at;
    const int TW = (OW + 3) / 4, TH = (OH + 3) / 4;
    const int left = tile % TW * 4, top = tile / TW % TH * 4, n = tile / TW / TH;
    const int columns = min(4, OW - left), lines = min(4, OH - top);
    __global const float* in = m + (size_t)at * PITCH;
    const size_t next = (size_t)STRIP * PITCH;
    for (int o = 0; o < O; o += VEC) {
        floatv t[4][6];
#define TRANSFORM_OUTPUT(m0, m1, m2, m3, m4, m5, r0, r1, r2, r3)                                             \
    {                                                                                                        \
        const floatv a = m1 + m2, b = m1 - m2, e = m3 + m4, f = m3 - m4;                                     \
        r0 = m0 + a + e;                                                                                     \
        r1 = fma(f, (floatv)(2.0f), b);                                                                      \
        r2 = fma(e, (floatv)(4.0f), a);                                                                      \
        r3 = fma(f, (floatv)(8.0f), b) + m5;                                                                 \
    }
        for (int j = 0; j < 6; j++) {
            const floatv m0 = vloadv(0, in + j * next + o), m1 = vloadv(0, in + (6 + j) * next + o),
                         m2 = vloadv(0, in + (12 + j) * next + o), m3 = vloadv(0, in + (18 + j) * next + o),
                         m4 = vloadv(0, in + (24 + j) * next + o), m5 = vloadv(0, in + (30 + j) * next + o);
            TRANSFORM_OUTPUT(m0, m1, m2, m3, m4, m5, t[0][j], t[1][j], t[2][j], t[3][j])
        }
        floatv shift = vloadv(0, bias + o);
        if (HAS_CHANNEL_BIAS) shift += vloadv(0, channelBias + (size_t)n * O + o);
        for (int i = 0; i < lines; i++) {
            floatv r[4];
            TRANSFORM_OUTPUT(t[i][0], t[i][1], t[i][2], t[i][3], t[i][4], t[i][5], r[0], r[1], r[2], r[3])
            for (int j = 0; j < columns; j++) {
                const size_t pixel = (((size_t)n * OH + top + i) * OW + left + j) * O + o;
                floatv value = activate_vector(FUNCTION, r[j] + shift);
                if (HAS_RESIDUAL) value += vloadv(0, residual + pixel);
                STORE_OUTPUT_VECTOR(value, 0, y + pixel);
            }
        }
    }
}
