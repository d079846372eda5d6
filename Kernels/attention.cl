// attention.cl — scaled dot-product attention with online softmax; scores are never written to global memory.
//
// y[b, t, h, :] = sum_s softmax_s( SCALE * q[b, t, h, :] . k[b, s, h, :] ) v[b, s, h, :]      (Vaswani et al. 2017, equation 1)
// The running maximum and sum follow Milakov & Gimelshein 2018; blocks of keys as in FlashAttention (Dao et al. 2022).
//
// Letters   B batch, T queries, S keys, HEADS heads, D head size; CAUSAL: key s is seen by queries t >= s only
// Layout    q, k, v are column ranges of token tensors, so that one linear layer makes all three:
//           q[b, t, h, d] is at q[(b*T + t) * Q_STRIDE + Q_OFFSET + h*D + d], and likewise k, v with S
//           y         [B, T, HEADS * D]
//           all of them operand_t
// Macros    PAIRED 0|1 (cpu): pairs of bfloat16 are multiplied at once; OPERAND 2, D even
// Called by Sources/TensorOps/Attention.swift

#ifndef PAIRED
#define PAIRED 0
#endif

#define HEAD_ARGUMENTS const int T, const int S, const int HEADS, const int D, const float SCALE, const int CAUSAL

// attention_plain — one work-item an output element: three passes over the keys; the form the fast variants are tested against.
// Mapping   global (D, HEADS, B*T)
// Variants  -DACTIVATION=0 | -DACTIVATION=1 | -DACTIVATION=2
__kernel void attention_plain(__global const operand_t* restrict q, const int Q_OFFSET, const int Q_STRIDE,
                              __global const operand_t* restrict k, const int K_OFFSET, const int K_STRIDE,
                              __global const operand_t* restrict v, const int V_OFFSET, const int V_STRIDE,
                              __global operand_t* restrict y, HEAD_ARGUMENTS)
{
    const int d = (int)get_global_id(0), h = (int)get_global_id(1);
    const size_t row = get_global_id(2);
    const size_t b = row / T;
    const int t = (int)(row % T), keys = CAUSAL ? min(S, t + 1) : S;
    __global const operand_t* query = q + row * Q_STRIDE + Q_OFFSET + h * D;
    float maximum = -INFINITY, sum = 0.0f, result = 0.0f;
    for (int pass = 0; pass < 2; pass++)
        for (int s = 0; s < keys; s++) {
            __global const operand_t* key = k + (b * S + s) * K_STRIDE + K_OFFSET + h * D;
            float score = 0.0f;
            for (int i = 0; i < D; i++) score = fma(LOAD_OPERAND(query, i), LOAD_OPERAND(key, i), score);
            score *= SCALE;
            if (pass == 0) maximum = fmax(maximum, score);
            else {
                const float p = exp(score - maximum);
                sum += p;
                result = fma(p, LOAD_OPERAND(v, (b * S + s) * V_STRIDE + V_OFFSET + h * D + d), result);
            }
        }
    STORE_OPERAND(y, (row * HEADS + h) * D + d, result / sum);
}

#if defined(ROWS) && ACTIVATION == 0

// With PAIRED the products are those of dot_bfloat16: two neighbouring dimensions of queries and keys, two neighbouring keys of
// probabilities and values. D is even then.
#if PAIRED
typedef uint packed_t;
typedef uintv packedv;
typedef ushort probability_t;
#define WIDE 2
#define ELEMENT(q, d) (((__global const uint*)(q))[d])
#define MULTIPLY_ADD(t, w, sum) dot_bfloat16(sum, t, w)
#else
typedef float packed_t;
typedef floatv packedv;
typedef float probability_t;
#define WIDE 1
#define ELEMENT(q, d) LOAD_OPERAND(q, d)
#define MULTIPLY_ADD(t, w, sum) fma(t, w, sum)
#endif
// Keys in one panel.
#define SPAN (2 * VEC)

// Where key s of a panel stands in its two vectors. Pairs take an even key from the first vector and the odd one from the second.
#define KEY_LANE(s) (PAIRED ? (s) % 2 * VEC + (s) % SPAN / 2 : (s) % SPAN)
#define LANE_KEY(lane) (PAIRED ? (lane) % VEC * 2 + (lane) / VEC % 2 : (lane) % SPAN)

// attention_pack — keys and values in the order attention_cpu streams them.
// packedKeys   [B, HEADS, SP/SPAN][D/WIDE][SPAN]   keys transposed in panels; SP = S rounded up to SPAN
// packedValues [B, HEADS, SP/WIDE][DP]             DP = D rounded up to VEC
// Elements are float, or pairs of bfloat16. Zero beyond S and D.
// Mapping   global (SP, HEADS, B)
// Variants  -DVEC=16 -DROWS=12 -DKEYS=64 | -DVEC=16 -DROWS=12 -DKEYS=64 -DOPERAND=2 -DPAIRED=1 | -DVEC=16 -DROWS=12 -DKEYS=64 -DOPERAND=2
#if PAIRED
#define PACK(p, i) (p)[i]
#else
#define PACK(p, i) LOAD_OPERAND(p, i)
#endif
__kernel void attention_pack(__global const operand_t* restrict k, const int K_OFFSET, const int K_STRIDE,
                             __global const operand_t* restrict v, const int V_OFFSET, const int V_STRIDE,
                             __global packed_t* restrict packedKeys, __global packed_t* restrict packedValues,
                             const int S, const int HEADS, const int D)
{
    const int s = (int)get_global_id(0), h = (int)get_global_id(1);
    const size_t b = get_global_id(2), SP = get_global_size(0);
    const int DP = (D + VEC - 1) / VEC * VEC;
    const size_t head = b * HEADS + h;
    // WIDE probability-sized parts make a packed element, and dimension d or key s says which.
    __global probability_t* keys = (__global probability_t*)(packedKeys + head * SP * D / WIDE +
                                                             (size_t)(s / SPAN) * D / WIDE * SPAN) + KEY_LANE(s) * WIDE;
    __global probability_t* values =
        (__global probability_t*)(packedValues + (head * SP / WIDE + s / WIDE) * DP) + s % WIDE;
    const size_t at = b * S + min(s, S - 1);
    __global const operand_t* key = k + at * K_STRIDE + K_OFFSET + h * D;
    __global const operand_t* value = v + at * V_STRIDE + V_OFFSET + h * D;
    for (int d = 0; d < D; d++) {
        keys[(size_t)(d / WIDE) * SPAN * WIDE + d % WIDE] = s < S ? PACK(key, d) : 0;
        values[d * WIDE] = s < S ? PACK(value, d) : 0;
    }
    for (int d = D; d < DP; d++) values[d * WIDE] = 0;
}

// attention_cpu — a work-item owns TILES tiles of ROWS queries of one head: a block of keys and values is brought into the cache once
// for all of them. Scores and values use the register tile of convolution_cpu.
// Needs     ACTIVATION 0; D <= MAX_D; KEYS a multiple of SPAN
// Mapping   global (ceil(T/(TILES*ROWS)), HEADS, B), local (1, 1, 1): a head's queries run together, so that its keys stay in the cache
// Memory    private: ROWS * (KEYS + TILES * MAX_D) floats
// Variants  -DVEC=16 -DROWS=12 -DKEYS=64 -DMAX_D=512 -DTILES=4 | -DVEC=8 -DROWS=6 -DKEYS=64 -DMAX_D=512 -DTILES=4 | -DVEC=16 -DROWS=12 -DKEYS=64 -DMAX_D=512 -DTILES=4 -DOPERAND=2 -DPAIRED=1 | -DVEC=16 -DROWS=12 -DKEYS=64 -DMAX_D=512 -DTILES=4 -DOPERAND=2
#if defined(MAX_D)

// Halving is a few shuffles; a loop over the lanes goes through memory.
inline float maximum_of(floatv v)
{
#if VEC == 16
    const float8 v8 = fmax(v.lo, v.hi);
#elif VEC == 8
    const float8 v8 = v;
#endif
#if VEC >= 8
    const float4 v4 = fmax(v8.lo, v8.hi);
#else
    const float4 v4 = v;
#endif
    const float2 v2 = fmax(v4.lo, v4.hi);
    return fmax(v2.x, v2.y);
}

// 2^x for x <= 0, relative error below 3e-7; results below 2^-126 become that. A minimax polynomial of degree 5 on [-1/2, 1/2]
// and the exponent bits.
inline floatv exp2_vector(floatv x)
{
    // A comparison is one instruction, fmax three. Adding 1.5 * 2^23 rounds to a whole number and leaves it in the low bits.
    const floatv t = x > (floatv)(-126.0f) ? x : (floatv)(-126.0f);
    const floatv shifted = t + 12582912.0f;
    const floatv f = t - (shifted - 12582912.0f);
    floatv p = (floatv)(1.3276472e-3f);
    p = fma(p, f, (floatv)(9.6755415e-3f));
    p = fma(p, f, (floatv)(5.55071328e-2f));
    p = fma(p, f, (floatv)(2.40221197e-1f));
    p = fma(p, f, (floatv)(6.93146967e-1f));
    p = fma(p, f, (floatv)(1.00000007f));
    return as_floatv(as_intv(p) + (as_intv(shifted) << 23));
}

inline float sum_of(floatv v)
{
    float lanes[VEC];
    vstorev(v, 0, lanes);
    float s = lanes[0];
    for (int i = 1; i < VEC; i++) s += lanes[i];
    return s;
}

__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void attention_cpu(
    __global const operand_t* restrict q, const int Q_OFFSET, const int Q_STRIDE,
    __global const packed_t* restrict packedKeys, __global const packed_t* restrict packedValues,
    __global operand_t* restrict y, HEAD_ARGUMENTS)
{
    const int group = (int)get_global_id(0) * TILES * ROWS, h = (int)get_global_id(1);
    const size_t b = get_global_id(2), head = b * HEADS + h;
    const int SP = (S + SPAN - 1) / SPAN * SPAN, DP = (D + VEC - 1) / VEC * VEC;
    __global const packed_t* keys = packedKeys + head * SP * D / WIDE;
    __global const packed_t* values = packedValues + head * SP / WIDE * DP;

    // Scores stay unscaled; maxima and exponents are those of 2^(SCALE log2(e) score).
    const float scale = SCALE * 1.44269504088896341f;
    // Elements of both lie as they are read: lane by lane, a row of probabilities begins where its scores did.
    float scores[ROWS * KEYS];
    float results[TILES * ROWS * MAX_D];
    float maximum[TILES * ROWS];
    floatv sum[TILES * ROWS];
    const int tiles = min(TILES, (T - group + ROWS - 1) / ROWS);
    for (int i = 0; i < tiles * ROWS; i++) {
        maximum[i] = -INFINITY;
        sum[i] = 0.0f;
        for (int d = 0; d < DP; d += VEC) vstorev((floatv)(0.0f), 0, results + i * MAX_D + d);
    }

    const int seen = CAUSAL ? min(S, group + tiles * ROWS) : S;
    for (int s0 = 0; s0 < seen; s0 += KEYS)
        for (int tile = 0; tile < tiles; tile++) {
            const int firstQuery = group + tile * ROWS, block = min(KEYS, SP - s0);
            float* result = results + tile * ROWS * MAX_D;

            // scores = q k^T for this block of keys; queries beyond the last repeat it and are not stored
#define POINT(i)                                                                                             \
    __global const operand_t* q##i = q + (b * T + min(firstQuery + i, T - 1)) * Q_STRIDE + Q_OFFSET + h * D;
            FOR_ROWS(POINT)
            for (int j = 0; j < block; j += SPAN) {
                __global const packed_t* panel = keys + (size_t)((s0 + j) / SPAN) * (D / WIDE) * SPAN;
#define DECLARE(i) floatv a##i = 0.0f, b##i = 0.0f;
                FOR_ROWS(DECLARE)
                for (int d = 0; d < D / WIDE; d++) {
                    const packedv ka = vloadv(0, panel), kb = vloadv(1, panel);
                    panel += SPAN;
#define ACCUMULATE(i)                                                                                        \
    {                                                                                                        \
        const packedv t = (packedv)(ELEMENT(q##i, d));                                                       \
        a##i = MULTIPLY_ADD(t, ka, a##i);                                                                    \
        b##i = MULTIPLY_ADD(t, kb, b##i);                                                                    \
    }
                    FOR_ROWS(ACCUMULATE)
                }
#define KEEP(i)                                                                                              \
    vstorev(a##i, 0, scores + i * KEYS + j);                                                                 \
    vstorev(b##i, 0, scores + i * KEYS + j + VEC);
                FOR_ROWS(KEEP)
            }

            // The online softmax: scores become probabilities relative to the new maximum, earlier results are rescaled to it.
            for (int i = 0; i < ROWS; i++) {
                float* row = scores + i * KEYS;
                float* previous = maximum + tile * ROWS + i;
                floatv total = sum[tile * ROWS + i];
                const int limit = CAUSAL ? min(S, firstQuery + i + 1) : S;
                if (limit < s0 + block)
                    for (int j = 0; j < block; j++)
                        if (s0 + j / SPAN * SPAN + LANE_KEY(j) >= limit) row[j] = -INFINITY;
                floatv m = vloadv(0, row);
                for (int j = VEC; j < block; j += VEC) {
                    const floatv next = vloadv(0, row + j);
                    m = next > m ? next : m;
                }
                const float newMaximum = fmax(*previous, maximum_of(m) * scale);
                if (newMaximum == -INFINITY) {
                    for (int j = 0; j < block; j++) row[j] = 0.0f;
                    continue;
                }
                if (newMaximum > *previous) {
                    const float rescale = *previous == -INFINITY ? 0.0f : exp2(*previous - newMaximum);
                    total *= rescale;
                    for (int d = 0; d < DP; d += VEC)
                        vstorev(vloadv(0, result + i * MAX_D + d) * rescale, 0, result + i * MAX_D + d);
                    *previous = newMaximum;
                }
                for (int j = 0; j < block; j += SPAN) {
                    const floatv pa = exp2_vector(fma(vloadv(0, row + j), (floatv)(scale), (floatv)(-newMaximum)));
                    const floatv pb = exp2_vector(fma(vloadv(1, row + j), (floatv)(scale), (floatv)(-newMaximum)));
                    total += pa + pb;
#if PAIRED
                    // Rounded to bfloat16, halves up: the sign is known.
                    const uintv low = (as_uintv(pa) + 0x8000u) >> 16, high = (as_uintv(pb) + 0x8000u) & 0xffff0000u;
                    vstorev(low | high, 0, (uint*)row + j / WIDE);
#else
                    vstorev(pa, 0, row + j);
                    vstorev(pb, 1, row + j);
#endif
                }
                sum[tile * ROWS + i] = total;
            }

            // result += p v, two vectors of the head at a time, then the odd one
#define PROBABILITY(i, j) (((packed_t*)(scores + i * KEYS))[j])
            int d = 0;
            for (; d + 2 * VEC <= DP; d += 2 * VEC) {
                __global const packed_t* value = values + (size_t)(s0 / WIDE) * DP + d;
#define RELOAD(i) floatv a##i = vloadv(0, result + i * MAX_D + d), b##i = vloadv(1, result + i * MAX_D + d);
                FOR_ROWS(RELOAD)
                for (int j = 0; j < block / WIDE; j++) {
                    const packedv va = vloadv(0, value), vb = vloadv(1, value);
                    value += DP;
#define ACCUMULATE_VALUES(i)                                                                                 \
    {                                                                                                        \
        const packedv t = (packedv)(PROBABILITY(i, j));                                                      \
        a##i = MULTIPLY_ADD(t, va, a##i);                                                                    \
        b##i = MULTIPLY_ADD(t, vb, b##i);                                                                    \
    }
                    FOR_ROWS(ACCUMULATE_VALUES)
                }
#define KEEP_VALUES(i)                                                                                       \
    vstorev(a##i, 0, result + i * MAX_D + d);                                                                \
    vstorev(b##i, 1, result + i * MAX_D + d);
                FOR_ROWS(KEEP_VALUES)
            }
            if (d < DP) {
                __global const packed_t* value = values + (size_t)(s0 / WIDE) * DP + d;
#define RELOAD_LAST(i) floatv a##i = vloadv(0, result + i * MAX_D + d);
                FOR_ROWS(RELOAD_LAST)
                for (int j = 0; j < block / WIDE; j++) {
                    const packedv va = vloadv(0, value);
                    value += DP;
#define ACCUMULATE_LAST(i) a##i = MULTIPLY_ADD((packedv)(PROBABILITY(i, j)), va, a##i);
                    FOR_ROWS(ACCUMULATE_LAST)
                }
#define KEEP_LAST(i) vstorev(a##i, 0, result + i * MAX_D + d);
                FOR_ROWS(KEEP_LAST)
            }
        }

    for (int i = 0; i < tiles * ROWS && group + i < T; i++) {
        __global operand_t* row = y + ((b * T + group + i) * HEADS + h) * D;
        const float reciprocal = 1.0f / sum_of(sum[i]);
        int d = 0;
        for (; d + VEC <= D; d += VEC)
            STORE_OPERAND_VECTOR(vloadv(0, results + i * MAX_D + d) * reciprocal, 0, row + d);
        for (; d < D; d++) STORE_OPERAND(row, d, results[i * MAX_D + d] * reciprocal);
    }
}

#endif
#endif

#if defined(HEAD_SIZE) && defined(KEYS) && defined(QUERIES)

// attention_gpu — a work-group owns QUERIES queries of one head; 8 work-items share a query and split its keys, then its values.
// Needs     D = HEAD_SIZE; KEYS a multiple of 8
// Mapping   global (8, QUERIES * ceil(T/QUERIES), B*HEADS), local (8, QUERIES, 1)
// Memory    local: (QUERIES + 2 * KEYS) * (HEAD_SIZE + 1) + QUERIES * KEYS floats: 40 KiB for a head of 512, the autoencoder's, with 4 and 8
// Variants  -DHEAD_SIZE=40 -DQUERIES=16 -DKEYS=32 -DACTIVATION=1 | -DHEAD_SIZE=512 -DQUERIES=4 -DKEYS=8 | -DHEAD_SIZE=7 -DQUERIES=16 -DKEYS=32 -DACTIVATION=2
#define LANES 8
#define OWNED ((HEAD_SIZE + LANES - 1) / LANES)
#define PITCH (HEAD_SIZE + 1)

__kernel __attribute__((reqd_work_group_size(8, QUERIES, 1))) void attention_gpu(
    __global const operand_t* restrict q, const int Q_OFFSET, const int Q_STRIDE,
    __global const operand_t* restrict k, const int K_OFFSET, const int K_STRIDE,
    __global const operand_t* restrict v, const int V_OFFSET, const int V_STRIDE,
    __global operand_t* restrict y, HEAD_ARGUMENTS)
{
    __local float queries[QUERIES * PITCH];
    __local float keys[KEYS * PITCH];
    __local float values[KEYS * PITCH];
    __local float scores[QUERIES * KEYS];

    const int lane = (int)get_local_id(0), r = (int)get_local_id(1), item = r * LANES + lane;
    const int firstQuery = (int)get_group_id(1) * QUERIES, t = firstQuery + r;
    const size_t b = get_global_id(2) / HEADS;
    const int h = (int)(get_global_id(2) % HEADS);

    for (int i = item; i < QUERIES * HEAD_SIZE; i += QUERIES * LANES) {
        const int row = i / HEAD_SIZE, d = i % HEAD_SIZE;
        const int from = min(firstQuery + row, T - 1);
        queries[row * PITCH + d] = LOAD_OPERAND(q, (b * T + from) * Q_STRIDE + Q_OFFSET + h * HEAD_SIZE + d) * SCALE;
    }

    float result[OWNED];
    for (int i = 0; i < OWNED; i++) result[i] = 0.0f;
    float maximum = -INFINITY, sum = 0.0f;
    const int seen = CAUSAL ? min(S, firstQuery + QUERIES) : S;
    for (int s0 = 0; s0 < seen; s0 += KEYS) {
        for (int i = item; i < KEYS * HEAD_SIZE; i += QUERIES * LANES) {
            const int row = i / HEAD_SIZE, d = i % HEAD_SIZE, s = s0 + row;
            const size_t at = b * S + min(s, S - 1);
            keys[row * PITCH + d] = LOAD_OPERAND(k, at * K_STRIDE + K_OFFSET + h * HEAD_SIZE + d);
            values[row * PITCH + d] = s < S ? LOAD_OPERAND(v, at * V_STRIDE + V_OFFSET + h * HEAD_SIZE + d) : 0.0f;
        }
        barrier(CLK_LOCAL_MEM_FENCE);  // queries, keys and values are written

        for (int j = lane; j < KEYS; j += LANES) {
            const int s = s0 + j;
            float score = 0.0f;
            for (int d = 0; d < HEAD_SIZE; d++) score = fma(queries[r * PITCH + d], keys[j * PITCH + d], score);
            scores[r * KEYS + j] = s < S && (!CAUSAL || s <= t) ? score : -INFINITY;
        }
        barrier(CLK_LOCAL_MEM_FENCE);  // scores are written

        float newMaximum = maximum;
        for (int j = 0; j < KEYS; j++) newMaximum = fmax(newMaximum, scores[r * KEYS + j]);
        // A block wholly in the future of this query leaves everything as it was.
        if (newMaximum > -INFINITY) {
            const float rescale = maximum == -INFINITY ? 0.0f : exp(maximum - newMaximum);
            maximum = newMaximum;
            sum *= rescale;
            for (int i = 0; i < OWNED; i++) result[i] *= rescale;
            for (int j = 0; j < KEYS; j++) {
                const float p = exp(scores[r * KEYS + j] - newMaximum);
                sum += p;
                for (int i = 0; i < OWNED; i++) {
                    const int d = lane + i * LANES;
                    if (d < HEAD_SIZE) result[i] = fma(p, values[j * PITCH + d], result[i]);
                }
            }
        }
        barrier(CLK_LOCAL_MEM_FENCE);  // keys, values and scores are read
    }

    if (t >= T) return;
    for (int i = 0; i < OWNED; i++) {
        const int d = lane + i * LANES;
        if (d < HEAD_SIZE) STORE_OPERAND(y, ((b * T + t) * HEADS + h) * HEAD_SIZE + d, result[i] / sum);
    }
}

#endif
