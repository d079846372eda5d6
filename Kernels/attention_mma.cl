// attention_mma.cl — attention.cl's function on tensor cores: blocks of 32 keys with online softmax in float, in the way of FlashAttention-2
// (Dao 2023); queries, keys, values and the probabilities they are weighted with are half.
//
// y[b, t, h, :] = sum_s softmax_s( SCALE * q[b, t, h, :] . k[b, s, h, :] ) v[b, s, h, :]
//
// Letters   B batch, T queries, S keys, HEADS heads, D = HEAD_SIZE; CAUSAL: key s is seen by queries t >= s only
// Layout    as in attention.cl, half; strides and offsets are multiples of 8, so that 8 elements are one 16-byte piece
// Scores    of a block are four products of 8 keys. Which key stands in which column is free, as long as values follow: column 2 quad + e
//           of product i is key 8 quad + 2 i + e, so that a work-item's scores become, in place, its part of the left operand of the
//           product with the values, and that product's right operand is 8 neighbouring keys.
// Macros    HEAD_SIZE
//           M_TILES 1|2: tiles of 16 queries that a warp owns (attention_mma)
// Called by Sources/TensorOps/TensorCores.swift

#ifndef HEAD_SIZE
#error "HEAD_SIZE must be defined"
#endif
#ifndef M_TILES
#define M_TILES 1
#endif

#define ITEMS 128
#define KEYS 32
#define LOG2_E 1.44269504088896341f
#define PIECES (HEAD_SIZE / 8)

#define ARGUMENTS                                                                                            \
    __global const half* restrict q, const int Q_OFFSET, const int Q_STRIDE, __global const half* restrict k,\
        const int K_OFFSET, const int K_STRIDE, __global const half* restrict v, const int V_OFFSET,         \
        const int V_STRIDE, __global half* restrict y, const int T, const int S, const int HEADS,            \
        const int D, const float SCALE, const int CAUSAL

// The key in column `column` of product i.
#define KEY(i, column) (8 * ((column) >> 1) + 2 * (i) + ((column) & 1))
// The two rows of a tile that a work-item has a part of.
#define IN_ROW(tile, lowerRow, a, b) ((lowerRow) ? (tile).b : (tile).a)

// One block of the online softmax for 16 queries: scores become probabilities, halves in the order of the left operand of two products;
// what was summed before has to be multiplied by `rescale`, of the upper and of the lower row. `limit` keys are seen by a row.
inline void softmax_block(float4* scores, const int* limit, int quad, float scale, float* maximum, float* sum,
                          float* rescale, uint4* probabilities)
{
    UNROLL for (int lowerRow = 0; lowerRow < 2; lowerRow++) {
        float block = -INFINITY;
        if (limit[lowerRow] < KEYS) {
            UNROLL for (int i = 0; i < 4; i++) {
                const int key = KEY(i, 2 * quad);
                if (lowerRow) {
                    scores[i].z = key < limit[1] ? scores[i].z : -INFINITY;
                    scores[i].w = key + 1 < limit[1] ? scores[i].w : -INFINITY;
                } else {
                    scores[i].x = key < limit[0] ? scores[i].x : -INFINITY;
                    scores[i].y = key + 1 < limit[0] ? scores[i].y : -INFINITY;
                }
            }
        }
        UNROLL for (int i = 0; i < 4; i++)
            block = fmax(block, fmax(IN_ROW(scores[i], lowerRow, x, z), IN_ROW(scores[i], lowerRow, y, w)));
        block = fmax(block, exchange_1(block));
        block = fmax(block, exchange_2(block));
        const float newMaximum = fmax(maximum[lowerRow], block * scale);
        // No key seen yet: the exponents must not be infinity less infinity.
        const float base = newMaximum == -INFINITY ? 0.0f : newMaximum;
        rescale[lowerRow] = exp2_approximate(maximum[lowerRow] - base);
        maximum[lowerRow] = newMaximum;
        float total = 0.0f;
        UNROLL for (int i = 0; i < 4; i++) {
            const float a = exp2_approximate(fma(IN_ROW(scores[i], lowerRow, x, z), scale, -base));
            const float b = exp2_approximate(fma(IN_ROW(scores[i], lowerRow, y, w), scale, -base));
            total += a + b;
            if (lowerRow) scores[i].zw = (float2)(a, b);
            else scores[i].xy = (float2)(a, b);
        }
        sum[lowerRow] = fma(sum[lowerRow], rescale[lowerRow], total);
    }
    UNROLL for (int i = 0; i < 2; i++)
        probabilities[i] =
            (uint4)(pack_halves(scores[2 * i].x, scores[2 * i].y), pack_halves(scores[2 * i].z, scores[2 * i].w),
                    pack_halves(scores[2 * i + 1].x, scores[2 * i + 1].y),
                    pack_halves(scores[2 * i + 1].z, scores[2 * i + 1].w));
}

// Elements `w` of two rows as pairs: the lower halves, the upper halves.
#define LOWER_PARTS(a, b) (((a) & 0xffffu) | ((b) << 16))
#define UPPER_PARTS(a, b) (((a) >> 16) | ((b) & 0xffff0000u))

#if HEAD_SIZE % 256 != 0

// attention_mma — a work-group of 4 warps computes 64 * M_TILES queries of one head, a warp 16 * M_TILES of them: its queries and results stay
// in registers. While a block of keys and values is multiplied out of one half of the local memory, the next is on its way to registers, where
// they suffice. Values are transposed on their way into local memory, because the right operand pairs neighbouring keys.
// Needs     HEAD_SIZE a multiple of 8 up to 160
// Mapping   global (128 * ceil(T/(64*M_TILES)), HEADS, B), local (128, 1, 1)
// Memory    local: HALVES * (512 * KEY_PITCH + 64 * HEAD_SIZE) bytes, and 128 * HEAD_SIZE of queries that are not in registers: 17 KiB for a
//           head of 40, 20 for 64, 22 for 80, 40 for 160
// Variants  -DHEAD_SIZE=40 -DM_TILES=2 | -DHEAD_SIZE=64 -DM_TILES=2 | -DHEAD_SIZE=80 -DM_TILES=2 | -DHEAD_SIZE=160 -DM_TILES=1
#define WHOLE_CHUNKS (HEAD_SIZE / 32)
#define TAIL (HEAD_SIZE % 32)  // elements of the last, shorter chunk: one product of depth 16, beyond TAIL zero
#if TAIL > 16
#error "HEAD_SIZE must be at most 16 above a multiple of 32"
#endif
// Pieces between rows of keys: 4 more than a multiple of 8, so that two neighbouring rows of 4 pieces each meet every bank once.
#define KEY_PITCH ((PIECES + (TAIL > 0 && TAIL <= 8 ? 1 : 0) + 3) / 8 * 8 + 4)
// Four work-items bring a row of keys, eight a pair of rows of values.
#define KEY_LOADS ((PIECES + 3) / 4)
#define VALUE_LOADS ((PIECES + 7) / 8)
// Whether the registers suffice to hold the queries and to fetch a block while the one before is multiplied. If not, the queries lie in local
// memory, as their work-items read them, and keys and values in one half of it.
#define IN_REGISTERS (HEAD_SIZE <= 80)
#define HALVES (IN_REGISTERS ? 2 : 1)
#if IN_REGISTERS
#define QUERY(i, c, product) query[i][c][product]
#else
#define QUERY(i, c, product) queries[(((warp * M_TILES + (i)) * WHOLE_CHUNKS + (c)) * 2 + (product)) * 32 + lane]
#endif
// The piece of 8 keys in row 8 * tile + row of the transposed values, permuted so that writing pairs of keys meets few banks twice.
#define VALUE_PIECE(tile, row, piece) ((tile) * 32 + (row) * 4 + ((piece) ^ ((tile) & 3)))

__kernel WARP_KERNEL __attribute__((reqd_work_group_size(ITEMS, 1, 1))) void attention_mma(ARGUMENTS)
{
    __local uint4 keys[HALVES][KEYS * KEY_PITCH];
    __local uint4 values[HALVES][HEAD_SIZE * 4];
#if IN_REGISTERS
    uint4 query[M_TILES][WHOLE_CHUNKS][2];
#else
    __local uint4 queries[4 * M_TILES * WHOLE_CHUNKS * 2 * 32];
#endif
    const int item = (int)get_local_id(0), lane = item & 31, warp = item >> 5, quad = lane & 3, group = lane >> 2;
    const int h = (int)get_group_id(1), firstGroupQuery = (int)get_group_id(0) * 64 * M_TILES;
    const int firstQuery = firstGroupQuery + warp * 16 * M_TILES;
    const size_t b = get_group_id(2);
    __global const uint4* keySource = (__global const uint4*)(k + b * S * K_STRIDE + K_OFFSET + h * HEAD_SIZE);
    __global const uint4* valueSource = (__global const uint4*)(v + b * S * V_STRIDE + V_OFFSET + h * HEAD_SIZE);

    // Queries as left operands; rows beyond the last query repeat it and are not stored.
    uint4 queryTail[M_TILES];
    UNROLL for (int i = 0; i < M_TILES; i++) {
        const int t = firstQuery + 16 * i + group;
        __global const half* upperRow = q + (b * T + min(t, T - 1)) * Q_STRIDE + Q_OFFSET + h * HEAD_SIZE;
        __global const half* lowerRow = q + (b * T + min(t + 8, T - 1)) * Q_STRIDE + Q_OFFSET + h * HEAD_SIZE;
        UNROLL for (int c = 0; c < WHOLE_CHUNKS; c++) {
            const uint4 upper = ((__global const uint4*)upperRow)[4 * c + quad];
            const uint4 lower = ((__global const uint4*)lowerRow)[4 * c + quad];
            QUERY(i, c, 0) = (uint4)(upper.x, lower.x, upper.y, lower.y);
            QUERY(i, c, 1) = (uint4)(upper.z, lower.z, upper.w, lower.w);
        }
        queryTail[i] = (uint4)(0u);
        if (4 * quad < TAIL) {
            const uint2 upper = ((__global const uint2*)upperRow)[8 * WHOLE_CHUNKS + quad];
            const uint2 lower = ((__global const uint2*)lowerRow)[8 * WHOLE_CHUNKS + quad];
            queryTail[i] = (uint4)(upper.x, lower.x, upper.y, lower.y);
        }
    }
#if TAIL > 0 && TAIL <= 8
    // Keys beyond the head meet zeros, but must be numbers.
    if (item < HALVES * KEYS) keys[item / KEYS][item % KEYS * KEY_PITCH + PIECES] = (uint4)(0u);
#endif

    float4 result[M_TILES][PIECES];
    float maximum[M_TILES][2], sum[M_TILES][2];
    UNROLL for (int i = 0; i < M_TILES; i++) {
        UNROLL for (int j = 0; j < PIECES; j++) result[i][j] = (float4)(0.0f);
        UNROLL for (int r = 0; r < 2; r++) {
            maximum[i][r] = -INFINITY;
            sum[i][r] = 0.0f;
        }
    }

    uint4 nextKeys[KEY_LOADS], nextValues[VALUE_LOADS][2];
#define FETCH(s0)                                                                                            \
    {                                                                                                        \
        const int s = (s0) + item / 4, first = (s0) + item / 8 * 2;                                          \
        UNROLL for (int i = 0; i < KEY_LOADS; i++)                                                           \
            nextKeys[i] = item % 4 + 4 * i < PIECES && s < S                                                 \
                              ? keySource[(size_t)s * (K_STRIDE / 8) + item % 4 + 4 * i]                     \
                              : (uint4)(0u);                                                                 \
        UNROLL for (int i = 0; i < VALUE_LOADS; i++)                                                         \
            UNROLL for (int e = 0; e < 2; e++)                                                               \
                nextValues[i][e] = item % 8 + 8 * i < PIECES && first + e < S                                \
                                       ? valueSource[(size_t)(first + e) * (V_STRIDE / 8) + item % 8 + 8 * i]\
                                       : (uint4)(0u);                                                        \
    }
// The pair of keys in rows d and d + 1 of the transposed values, which are 16 pairs long.
#define KEEP_PAIR(d, component)                                                                              \
    to[16 * (d)] = LOWER_PARTS(nextValues[i][0].component, nextValues[i][1].component);                      \
    to[16 * (d) + 16] = UPPER_PARTS(nextValues[i][0].component, nextValues[i][1].component);
#define KEEP(half_)                                                                                          \
    {                                                                                                        \
        UNROLL for (int i = 0; i < KEY_LOADS; i++)                                                           \
            if (item % 4 + 4 * i < PIECES)                                                                   \
                keys[half_][item / 4 * KEY_PITCH + item % 4 + 4 * i] = nextKeys[i];                          \
        const int pair = item / 8;                                                                           \
        __local uint* pairs = (__local uint*)&values[half_][VALUE_PIECE(item % 8, 0, pair / 4)] + pair % 4;  \
        UNROLL for (int i = 0; i < VALUE_LOADS; i++) {                                                       \
            __local uint* to = pairs + 8 * 128 * i;                                                          \
            if (item % 8 + 8 * i < PIECES) {                                                                 \
                KEEP_PAIR(0, x)                                                                              \
                KEEP_PAIR(2, y)                                                                              \
                KEEP_PAIR(4, z)                                                                              \
                KEEP_PAIR(6, w)                                                                              \
            }                                                                                                \
        }                                                                                                    \
    }

    const float scale = SCALE * LOG2_E;
    const int seen = CAUSAL ? min(S, firstGroupQuery + 64 * M_TILES) : S;
    int current = 0;
    FETCH(0)
    KEEP(0)
    barrier(CLK_LOCAL_MEM_FENCE);  // the first block is written

    for (int s0 = 0; s0 < seen; s0 += KEYS) {
        const bool hasNext = s0 + KEYS < seen;
        if (IN_REGISTERS && hasNext) FETCH(s0 + KEYS)

        float4 scores[M_TILES][4];
        UNROLL for (int j = 0; j < 4; j++) {
            UNROLL for (int i = 0; i < M_TILES; i++) scores[i][j] = (float4)(0.0f);
            __local const uint4* key = keys[current] + KEY(j, group) * KEY_PITCH;
            UNROLL for (int c = 0; c < WHOLE_CHUNKS; c++) {
                const uint4 piece = key[4 * c + quad];
                UNROLL for (int i = 0; i < M_TILES; i++) scores[i][j] = mma_m16n8k16(scores[i][j], QUERY(i, c, 0), piece.xy);
                UNROLL for (int i = 0; i < M_TILES; i++) scores[i][j] = mma_m16n8k16(scores[i][j], QUERY(i, c, 1), piece.zw);
            }
            if (TAIL) {
                const uint2 piece = ((__local const uint2*)key)[8 * WHOLE_CHUNKS + quad];
                UNROLL for (int i = 0; i < M_TILES; i++) scores[i][j] = mma_m16n8k16(scores[i][j], queryTail[i], piece);
            }
        }

        uint4 probabilities[M_TILES][2];
        UNROLL for (int i = 0; i < M_TILES; i++) {
            int limit[2];
            UNROLL for (int r = 0; r < 2; r++)
                limit[r] = (CAUSAL ? min(S, firstQuery + 16 * i + 8 * r + group + 1) : S) - s0;
            float rescale[2];
            softmax_block(scores[i], limit, quad, scale, maximum[i], sum[i], rescale, probabilities[i]);
            UNROLL for (int j = 0; j < PIECES; j++)
                result[i][j] *= (float4)(rescale[0], rescale[0], rescale[1], rescale[1]);
        }

        UNROLL for (int j = 0; j < PIECES; j++) {
            const uint4 value = values[current][VALUE_PIECE(j, group, quad)];
            UNROLL for (int i = 0; i < M_TILES; i++) result[i][j] = mma_m16n8k16(result[i][j], probabilities[i][0], value.xy);
            UNROLL for (int i = 0; i < M_TILES; i++) result[i][j] = mma_m16n8k16(result[i][j], probabilities[i][1], value.zw);
        }

        current ^= HALVES - 1;
        if (!IN_REGISTERS) {
            barrier(CLK_LOCAL_MEM_FENCE);  // this block is read
            if (hasNext) FETCH(s0 + KEYS)
        }
        if (hasNext) KEEP(current)
        barrier(CLK_LOCAL_MEM_FENCE);  // this block is read, the next written
    }

    UNROLL for (int i = 0; i < M_TILES; i++)
        UNROLL for (int r = 0; r < 2; r++) {
            float total = sum[i][r];
            total += exchange_1(total);
            total += exchange_2(total);
            const float reciprocal = 1.0f / total;
            const int t = firstQuery + 16 * i + 8 * r + group;
            if (t < T) {
                __global uint* row = (__global uint*)(y + ((b * T + t) * HEADS + h) * HEAD_SIZE);
                UNROLL for (int j = 0; j < PIECES; j++)
                    row[4 * j + quad] = pack_halves(IN_ROW(result[i][j], r, x, z) * reciprocal,
                                                    IN_ROW(result[i][j], r, y, w) * reciprocal);
            }
        }
}

#else

// attention_mma_wide — for the autoencoder's one head of 512: a work-group computes 16 queries, each of its 4 warps a quarter of the head. A
// warp's share of the scores is exchanged through local memory; keys and values, of which a warp reads its own quarter only, go from
// global memory to registers. Value pairs are made of four keys' pieces; product j of 8 takes element j of each piece.
// Needs     HEAD_SIZE a multiple of 256
// Mapping   global (128 * ceil(T/16), HEADS, B), local (128, 1, 1)
// Memory    local: 16 KiB
// Variants  -DHEAD_SIZE=512
#define QUARTER (HEAD_SIZE / 4)
#define CHUNKS (QUARTER / 32)
#define RANGES (QUARTER / 64)

__kernel WARP_KERNEL __attribute__((reqd_work_group_size(ITEMS, 1, 1))) void attention_mma_wide(ARGUMENTS)
{
    __local float4 shares[2][4][4 * 32];
    const int item = (int)get_local_id(0), lane = item & 31, warp = item >> 5, quad = lane & 3, group = lane >> 2;
    const int h = (int)get_group_id(1), firstQuery = (int)get_group_id(0) * 16;
    const size_t b = get_group_id(2);
    const int offset = h * HEAD_SIZE + warp * QUARTER;
    __global const uint4* keySource = (__global const uint4*)(k + b * S * K_STRIDE + K_OFFSET + offset);
    __global const uint4* valueSource = (__global const uint4*)(v + b * S * V_STRIDE + V_OFFSET + offset);

    uint4 query[CHUNKS][2];
    const int t0 = firstQuery + group;
    __global const uint4* upperRow = (__global const uint4*)(q + (b * T + min(t0, T - 1)) * Q_STRIDE + Q_OFFSET + offset);
    __global const uint4* lowerRow = (__global const uint4*)(q + (b * T + min(t0 + 8, T - 1)) * Q_STRIDE + Q_OFFSET + offset);
    UNROLL for (int c = 0; c < CHUNKS; c++) {
        const uint4 upper = upperRow[4 * c + quad], lower = lowerRow[4 * c + quad];
        query[c][0] = (uint4)(upper.x, lower.x, upper.y, lower.y);
        query[c][1] = (uint4)(upper.z, lower.z, upper.w, lower.w);
    }
    float4 result[RANGES * 8];
    UNROLL for (int j = 0; j < RANGES * 8; j++) result[j] = (float4)(0.0f);
    float maximum[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};

    const float scale = SCALE * LOG2_E;
    const int seen = CAUSAL ? min(S, firstQuery + 16) : S;
    int current = 0;
    for (int s0 = 0; s0 < seen; s0 += KEYS) {
        // Keys beyond the last repeat it; their probability is zero.
        float4 scores[4];
        UNROLL for (int j = 0; j < 4; j++) {
            scores[j] = (float4)(0.0f);
            __global const uint4* key = keySource + (size_t)min(s0 + KEY(j, group), S - 1) * (K_STRIDE / 8);
            UNROLL for (int c = 0; c < CHUNKS; c++) {
                const uint4 piece = key[4 * c + quad];
                scores[j] = mma_m16n8k16(scores[j], query[c][0], piece.xy);
                scores[j] = mma_m16n8k16(scores[j], query[c][1], piece.zw);
            }
            shares[current][warp][j * 32 + lane] = scores[j];
        }
        // The other half is read until the next of these barriers, so one a block is enough.
        barrier(CLK_LOCAL_MEM_FENCE);  // all shares of the scores are written
        UNROLL for (int j = 0; j < 4; j++) {
            scores[j] = shares[current][0][j * 32 + lane];
            UNROLL for (int other = 1; other < 4; other++) scores[j] += shares[current][other][j * 32 + lane];
        }
        current ^= 1;

        int limit[2];
        UNROLL for (int r = 0; r < 2; r++) limit[r] = (CAUSAL ? min(S, firstQuery + 8 * r + group + 1) : S) - s0;
        float rescale[2];
        uint4 probabilities[2];
        softmax_block(scores, limit, quad, scale, maximum, sum, rescale, probabilities);
        UNROLL for (int j = 0; j < RANGES * 8; j++)
            result[j] *= (float4)(rescale[0], rescale[0], rescale[1], rescale[1]);

        UNROLL for (int range = 0; range < RANGES; range++)
            UNROLL for (int i = 0; i < 2; i++) {
                uint4 piece[4];
                UNROLL for (int e = 0; e < 4; e++)
                    piece[e] = valueSource[(size_t)min(s0 + 8 * quad + 4 * i + e, S - 1) * (V_STRIDE / 8) + 8 * range + group];
#define MULTIPLY(j, PARTS, component)                                                                        \
    result[8 * range + j] = mma_m16n8k16(result[8 * range + j], probabilities[i],                            \
                                         (uint2)(PARTS(piece[0].component, piece[1].component),              \
                                                 PARTS(piece[2].component, piece[3].component)));
                MULTIPLY(0, LOWER_PARTS, x)
                MULTIPLY(1, UPPER_PARTS, x)
                MULTIPLY(2, LOWER_PARTS, y)
                MULTIPLY(3, UPPER_PARTS, y)
                MULTIPLY(4, LOWER_PARTS, z)
                MULTIPLY(5, UPPER_PARTS, z)
                MULTIPLY(6, LOWER_PARTS, w)
                MULTIPLY(7, UPPER_PARTS, w)
            }
    }

    UNROLL for (int r = 0; r < 2; r++) {
        float total = sum[r];
        total += exchange_1(total);
        total += exchange_2(total);
        const float reciprocal = 1.0f / total;
        const int t = firstQuery + 8 * r + group;
        if (t < T) {
            __global uint4* row = (__global uint4*)(y + ((b * T + t) * HEADS) * HEAD_SIZE + offset);
            // Column n of product j is element 8 n + j of a range, and this work-item has columns 2 quad and 2 quad + 1.
            UNROLL for (int range = 0; range < RANGES; range++) {
                float left[8], right[8];
                UNROLL for (int j = 0; j < 8; j++) {
                    left[j] = IN_ROW(result[8 * range + j], r, x, z) * reciprocal;
                    right[j] = IN_ROW(result[8 * range + j], r, y, w) * reciprocal;
                }
                row[8 * range + 2 * quad] = (uint4)(pack_halves(left[0], left[1]), pack_halves(left[2], left[3]),
                                                    pack_halves(left[4], left[5]), pack_halves(left[6], left[7]));
                row[8 * range + 2 * quad + 1] = (uint4)(pack_halves(right[0], right[1]), pack_halves(right[2], right[3]),
                                                        pack_halves(right[4], right[5]), pack_halves(right[6], right[7]));
            }
        }
    }
}

#endif
