// normalization.cl — group normalisation (optionally followed by SiLU) and layer normalisation, statistics in float.
//
// y = (x - mean) * rsqrt(variance + EPSILON) * gamma[c] + beta[c]      (Wu & He 2018; Ba et al. 2016; torch.nn.GroupNorm, LayerNorm)
//
// Letters   N pictures, S = H*W pixels, C channels, GROUPS groups; a group is C/GROUPS neighbouring channels over all pixels
// Layout    x [N, S, C] activation_t (layer norm: [rows, C]); y the same in operand_t; gamma, beta [C] float
// Variance  is the mean of squared differences from the mean, or of values less one of them, never E[x^2] - mean^2, which cancels.
// Called by Sources/TensorOps/Normalization.swift

#ifndef FUNCTION
#define FUNCTION 0
#endif

#define GROUP_NORM_ARGUMENTS                                                                                 \
    __global const activation_t* restrict x, __global const float* restrict gamma,                           \
        __global const float* restrict beta, __global operand_t* restrict y, const int S, const int C,    \
        const int GROUPS, const float EPSILON

// group_norm_plain — one work-item a group: three passes.
// Mapping   global (GROUPS, N)
// Variants  -DFUNCTION=1 | -DACTIVATION=1 | -DACTIVATION=2 -DFUNCTION=1
__kernel void group_norm_plain(GROUP_NORM_ARGUMENTS)
{
    const int group = (int)get_global_id(0), width = C / GROUPS;
    const size_t first = get_global_id(1) * S * C + (size_t)group * width;
    float mean = 0.0f, variance = 0.0f;
    for (int pass = 0; pass < 2; pass++) {
        // One partial sum a pixel keeps the rounding error from growing with the number of pixels times channels.
        float total = 0.0f;
        for (int s = 0; s < S; s++) {
            float partial = 0.0f;
            for (int c = 0; c < width; c++) {
                const float value = LOAD_ACTIVATION(x, first + (size_t)s * C + c);
                partial += pass == 0 ? value : (value - mean) * (value - mean);
            }
            total += partial;
        }
        if (pass == 0) mean = total / ((float)S * width);
        else variance = total / ((float)S * width);
    }
    const float scale = 1.0f / sqrt(variance + EPSILON);
    for (int s = 0; s < S; s++)
        for (int c = 0; c < width; c++) {
            const size_t i = first + (size_t)s * C + c;
            const float value = (LOAD_ACTIVATION(x, i) - mean) * scale * gamma[group * width + c] + beta[group * width + c];
            STORE_OPERAND(y, i, activate_scalar(FUNCTION, value));
        }
}

// layer_norm_plain — one work-item a row.
// Mapping   global (rows)
// Variants  -DACTIVATION=0 | -DACTIVATION=1 | -DACTIVATION=2
__kernel void layer_norm_plain(__global const activation_t* restrict x, __global const float* restrict gamma,
                               __global const float* restrict beta, __global operand_t* restrict y, const int C,
                               const float EPSILON)
{
    const size_t first = get_global_id(0) * C;
    float mean = 0.0f, variance = 0.0f;
    for (int c = 0; c < C; c++) mean += LOAD_ACTIVATION(x, first + c);
    mean /= C;
    for (int c = 0; c < C; c++) {
        const float d = LOAD_ACTIVATION(x, first + c) - mean;
        variance = fma(d, d, variance);
    }
    const float scale = 1.0f / sqrt(variance / C + EPSILON);
    for (int c = 0; c < C; c++)
        STORE_OPERAND(y, first + c, (LOAD_ACTIVATION(x, first + c) - mean) * scale * gamma[c] + beta[c]);
}

#if defined(CHUNK) && ACTIVATION == 0

// group_norm_chunk_cpu — per channel, mean and sum of squared differences over CHUNK pixels: a chunk stays in the cache for both passes.
// statistics [N][chunks][2][C]: means, then squared differences
// Mapping   global (chunks, N), local (1, 1)
// Variants  -DVEC=16 -DCHUNK=64
__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void group_norm_chunk_cpu(
    __global const float* restrict x, __global float* restrict statistics, const int S, const int C)
{
    const int chunk = (int)get_global_id(0), chunks = (int)get_global_size(0);
    const size_t n = get_global_id(1);
    const int pixels = min(CHUNK, S - chunk * CHUNK);
    __global const float* first = x + (n * S + (size_t)chunk * CHUNK) * C;
    __global float* means = statistics + (n * chunks + chunk) * 2 * C;
    __global float* squares = means + C;
    int c = 0;
    for (; c + VEC <= C; c += VEC) {
        floatv mean = 0.0f, square = 0.0f;
        for (int s = 0; s < pixels; s++) mean += vloadv(0, first + (size_t)s * C + c);
        mean /= (float)pixels;
        for (int s = 0; s < pixels; s++) {
            const floatv d = vloadv(0, first + (size_t)s * C + c) - mean;
            square = fma(d, d, square);
        }
        vstorev(mean, 0, means + c);
        vstorev(square, 0, squares + c);
    }
    for (; c < C; c++) {
        float mean = 0.0f, square = 0.0f;
        for (int s = 0; s < pixels; s++) mean += first[(size_t)s * C + c];
        mean /= pixels;
        for (int s = 0; s < pixels; s++) {
            const float d = first[(size_t)s * C + c] - mean;
            square = fma(d, d, square);
        }
        means[c] = mean;
        squares[c] = square;
    }
}

// group_norm_combine_cpu — the chunks' statistics become the group's mean and scale, per channel: y = (x - mean) * scale + beta.
// Sums of squared differences add up with the distance of the means (Chan, Golub & LeVeque 1983, equation 2.1).
// affine [N][2][C]: means, then scales; no shift beta - mean * scale, which cancels where the mean is large beside the deviation
// Mapping   global (GROUPS, N), local (1, 1)
// Variants  -DVEC=16 -DCHUNK=64
__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void group_norm_combine_cpu(
    __global const float* restrict statistics, __global const float* restrict gamma, __global float* restrict affine,
    const int S, const int C, const int GROUPS, const float EPSILON)
{
    const int group = (int)get_global_id(0), width = C / GROUPS, chunks = (S + CHUNK - 1) / CHUNK;
    const size_t n = get_global_id(1);
    __global const float* first = statistics + n * chunks * 2 * C + group * width;
    float mean = 0.0f;
    for (int chunk = 0; chunk < chunks; chunk++) {
        float partial = 0.0f;
        for (int c = 0; c < width; c++) partial += first[(size_t)chunk * 2 * C + c];
        mean += partial * min(CHUNK, S - chunk * CHUNK);
    }
    mean /= (float)S * width;
    float variance = 0.0f;
    for (int chunk = 0; chunk < chunks; chunk++) {
        const float pixels = min(CHUNK, S - chunk * CHUNK);
        float partial = 0.0f;
        for (int c = 0; c < width; c++) {
            const float d = first[(size_t)chunk * 2 * C + c] - mean;
            partial += first[(size_t)chunk * 2 * C + C + c] + pixels * d * d;
        }
        variance += partial;
    }
    const float scale = 1.0f / sqrt(variance / ((float)S * width) + EPSILON);
    for (int c = group * width; c < (group + 1) * width; c++) {
        affine[n * 2 * C + c] = mean;
        affine[n * 2 * C + C + c] = scale * gamma[c];
    }
}

// group_norm_apply_cpu — y = f((x - mean) * scale + beta), CHUNK pixels a work-item.
// Mapping   global (chunks, N), local (1, 1)
// Variants  -DVEC=16 -DCHUNK=64 -DFUNCTION=1 | -DVEC=8 -DCHUNK=64 | -DVEC=16 -DCHUNK=64 -DFUNCTION=1 -DOPERAND=2
__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void group_norm_apply_cpu(
    __global const float* restrict x, __global const float* restrict affine, __global const float* restrict beta,
    __global operand_t* restrict y, const int S, const int C)
{
    const size_t n = get_global_id(1);
    const int s0 = (int)get_global_id(0) * CHUNK;
    __global const float* mean = affine + n * 2 * C;
    __global const float* scale = mean + C;
    for (int s = s0; s < min(s0 + CHUNK, S); s++) {
        const size_t row = (n * S + s) * C;
        int c = 0;
        for (; c + VEC <= C; c += VEC)
            STORE_OPERAND_VECTOR(activate_vector(FUNCTION, fma(vloadv(0, x + row + c) - vloadv(0, mean + c),
                                                               vloadv(0, scale + c), vloadv(0, beta + c))),
                                 0, y + row + c);
        for (; c < C; c++)
            STORE_OPERAND(y, row + c, activate_scalar(FUNCTION, fma(x[row + c] - mean[c], scale[c], beta[c])));
    }
}

// layer_norm_cpu — CHUNK rows a work-item, vectors along the row.
// Mapping   global (ceil(ROWS_TOTAL/CHUNK)), local (1)
// Variants  -DVEC=16 -DCHUNK=64
__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void layer_norm_cpu(
    __global const float* restrict x, __global const float* restrict gamma, __global const float* restrict beta,
    __global operand_t* restrict y, const int ROWS_TOTAL, const int C, const float EPSILON)
{
    const int first = (int)get_global_id(0) * CHUNK;
    for (int r = first; r < min(first + CHUNK, ROWS_TOTAL); r++) {
        __global const float* row = x + (size_t)r * C;
        __global operand_t* out = y + (size_t)r * C;
        const int whole = C / VEC * VEC;
        float lanes[VEC];
        floatv partial = 0.0f;
        float mean = 0.0f, variance = 0.0f;
        for (int c = 0; c < whole; c += VEC) partial += vloadv(0, row + c);
        vstorev(partial, 0, lanes);
        for (int i = 0; i < VEC; i++) mean += lanes[i];
        for (int c = whole; c < C; c++) mean += row[c];
        mean /= C;
        partial = 0.0f;
        for (int c = 0; c < whole; c += VEC) {
            const floatv d = vloadv(0, row + c) - mean;
            partial = fma(d, d, partial);
        }
        vstorev(partial, 0, lanes);
        for (int i = 0; i < VEC; i++) variance += lanes[i];
        for (int c = whole; c < C; c++) variance += (row[c] - mean) * (row[c] - mean);
        const float scale = 1.0f / sqrt(variance / C + EPSILON);
        for (int c = 0; c < whole; c += VEC)
            STORE_OPERAND_VECTOR(fma((vloadv(0, row + c) - mean) * scale, vloadv(0, gamma + c), vloadv(0, beta + c)), 0,
                                 out + c);
        for (int c = whole; c < C; c++) STORE_OPERAND(out, c, (row[c] - mean) * scale * gamma[c] + beta[c]);
    }
}

#endif

#if defined(WG)

// PIECE neighbouring channels are read and written at once, aligned to their size.
#if PIECE == 1
#define floatp float
#define LOAD_PIECE(p) LOAD_ACTIVATION(p, 0)
#define STORE_PIECE(v, p) STORE_OPERAND(p, 0, v)
#define LOAD_PARAMETERS(p) (*(p))
#define STORE_FLOATS(v, p) (*(p) = (v))
#define LOAD_PRIVATE(p) (*(p))
#define activate_piece activate_scalar
#elif PIECE == VEC
#define floatp floatv
#define LOAD_PIECE(p) LOAD_ACTIVATION_ALIGNED(p)
#define STORE_PIECE(v, p) STORE_OPERAND_ALIGNED(v, p)
#define LOAD_PARAMETERS(p) (*(__global const floatv*)(p))
#define STORE_FLOATS(v, p) vstorev(v, 0, p)
#define LOAD_PRIVATE(p) vloadv(0, p)
#define activate_piece activate_vector
#else
#error "PIECE must be 1 or VEC"
#endif

// The sum over `team` neighbouring work-items, a power of two, for all of them.
inline float team_sum(float value, int team, __local float* scratch)
{
    const int item = (int)get_local_id(0);
    barrier(CLK_LOCAL_MEM_FENCE);  // an earlier sum is read
    scratch[item] = value;
    for (int half_width = team / 2; half_width > 0; half_width /= 2) {
        barrier(CLK_LOCAL_MEM_FENCE);  // the upper half is written
        if ((item & (team - 1)) < half_width) scratch[item] += scratch[item + half_width];
    }
    barrier(CLK_LOCAL_MEM_FENCE);  // the total is written
    return scratch[item & ~(team - 1)];
}

// What a work-group of group normalisation has: SLAB neighbouring groups, or what is left of them, of one picture. Its work-items read
// `side` pieces of a pixel and `rows` pixels side by side, and add up for the groups in teams.
typedef struct {
    size_t first;              // the element where the slab begins in the picture's first pixel
    int group, groups, width;  // its first group, how many there are, their channels
    int pieces, side, rows;
    int row, piece;            // where this work-item begins to read
    int team;                  // work-items of a team, a power of two
    int own, member;           // the group this work-item adds up for, if there is one, and its number in the team
} Slab;

inline Slab get_slab(int S, int C, int GROUPS, int SLAB)
{
    const int item = (int)get_local_id(0);
    Slab slab;
    slab.group = (int)get_group_id(0) * SLAB;
    slab.groups = min(SLAB, GROUPS - slab.group);
    slab.width = C / GROUPS;
    slab.first = get_group_id(2) * S * C + slab.group * slab.width;
    slab.pieces = slab.groups * slab.width / PIECE;
    slab.side = min(slab.pieces, WG);
    slab.rows = WG / slab.side;
    slab.row = item / slab.side;
    slab.piece = item % slab.side;
    slab.team = WG;
    while (slab.team * slab.groups > WG) slab.team /= 2;
    slab.own = item / slab.team;
    slab.member = item % slab.team;
    return slab;
}

// Mean and sum of squared differences of the work-item's own group from pixel `begin` on to `end`, read once: a work-item sums a piece's
// differences from its first pixel, which a mean far from zero does not make imprecise; sums of several add up with the distance of
// their means (Chan, Golub & LeVeque 1983, equation 2.1).
inline float2 slab_statistics(__global const activation_t* x, Slab slab, int C, int begin, int end, __local float* means,
                              __local float* squares, __local float* counts, __local float* scratch)
{
    const int item = (int)get_local_id(0), first = begin + slab.row;
    floatp mean = 0.0f, square = 0.0f;
    float count = 0.0f;
    if (slab.row < slab.rows && first < end) {
        __global const activation_t* from = x + slab.first + slab.piece * PIECE;
        const floatp shift = LOAD_PIECE(from + (size_t)first * C);
        floatp sum = 0.0f;
        for (int p = slab.piece; p < slab.pieces; p += WG, from += WG * PIECE) {
            for (int s = first; s < end; s += slab.rows) {
                const floatp d = LOAD_PIECE(from + (size_t)s * C) - shift;
                sum += d;
                square = fma(d, d, square);
            }
            count += (float)((end - first + slab.rows - 1) / slab.rows);
        }
        mean = shift + sum / count;
        square = fmax(square - sum * sum / count, 0.0f);
    }
    STORE_FLOATS(mean, means + item * PIECE);
    STORE_FLOATS(square, squares + item * PIECE);
    counts[item] = count;
    barrier(CLK_LOCAL_MEM_FENCE);  // every work-item's statistics are written

    // A group's share of these: `across` channels of each row.
    const int across = slab.groups == 1 ? slab.side * PIECE : slab.width;
    const int entries = slab.own < slab.groups ? slab.rows * across : 0;
    float total = 0.0f, weight = 0.0f;
    for (int i = slab.member; i < entries; i += slab.team) {
        const int channel = slab.own * across + i % across, owner = i / across * slab.side + channel / PIECE;
        total = fma(counts[owner], means[owner * PIECE + channel % PIECE], total);
        weight += counts[owner];
    }
    weight = team_sum(weight, slab.team, scratch);
    const float groupMean = team_sum(total, slab.team, scratch) / weight;
    total = 0.0f;
    for (int i = slab.member; i < entries; i += slab.team) {
        const int channel = slab.own * across + i % across, owner = i / across * slab.side + channel / PIECE;
        const float d = means[owner * PIECE + channel % PIECE] - groupMean;
        total += fma(counts[owner] * d, d, squares[owner * PIECE + channel % PIECE]);
    }
    return (float2)(groupMean, team_sum(total, slab.team, scratch));
}

// y = f((x - mean) * scale + beta) from pixel `begin` on to `end`; `mean` and `variance` are the work-item's own group's.
inline void slab_apply(__global const activation_t* x, Slab slab, int C, int begin, int end, float mean, float variance,
                       float epsilon, __global const float* gamma, __global const float* beta, __global operand_t* y,
                       __local float* means, __local float* scales)
{
    if (slab.own < slab.groups && slab.member == 0) {
        means[slab.own] = mean;
        scales[slab.own] = 1.0f / sqrt(variance + epsilon);
    }
    barrier(CLK_LOCAL_MEM_FENCE);  // every group's mean and scale are written
    if (slab.row >= slab.rows) return;
    for (int p = slab.piece; p < slab.pieces; p += WG) {
        const int channel = slab.group * slab.width + p * PIECE;
        float pieceMeans[PIECE], pieceScales[PIECE];
        for (int e = 0; e < PIECE; e++) {
            pieceMeans[e] = means[(p * PIECE + e) / slab.width];
            pieceScales[e] = scales[(p * PIECE + e) / slab.width];
        }
        const floatp pieceMean = LOAD_PRIVATE(pieceMeans), shift = LOAD_PARAMETERS(beta + channel);
        const floatp scale = LOAD_PRIVATE(pieceScales) * LOAD_PARAMETERS(gamma + channel);
        for (int s = begin + slab.row; s < end; s += slab.rows) {
            const size_t at = slab.first + p * PIECE + (size_t)s * C;
            STORE_PIECE(activate_piece(FUNCTION, fma(LOAD_PIECE(x + at) - pieceMean, scale, shift)), y + at);
        }
    }
}

// group_norm_gpu — a work-group has all pixels of SLAB groups: for small pictures.
// Letters   SLAB such that the groups are whole pieces, at most WG to a pixel, or one group
// Mapping   global (WG * ceil(GROUPS/SLAB), 1, N), local (WG, 1, 1); WG a power of two, at least SLAB
// Memory    local: WG * (2 * PIECE + 2) floats; x is read twice, y written once
// Variants  -DWG=256 -DPIECE=8 -DVEC=8 -DACTIVATION=1 -DFUNCTION=1 | -DWG=64 -DPIECE=4 -DVEC=4 | -DWG=64 -DPIECE=8 -DVEC=8 -DACTIVATION=2 | -DWG=64 -DPIECE=1
__kernel __attribute__((reqd_work_group_size(WG, 1, 1))) void group_norm_gpu(GROUP_NORM_ARGUMENTS, const int SLAB)
{
    __local float means[WG * PIECE], squares[WG * PIECE], counts[WG], scratch[WG];
    const Slab slab = get_slab(S, C, GROUPS, SLAB);
    const float2 statistics = slab_statistics(x, slab, C, 0, S, means, squares, counts, scratch);
    slab_apply(x, slab, C, 0, S, statistics.x, statistics.y / ((float)S * slab.width), EPSILON, gamma, beta, y, means,
               squares);
}

// group_norm_chunk_gpu — the statistics of PIXELS pixels of each group, for group_norm_apply_gpu.
// statistics [N][GROUPS][chunks][2]: mean, squared differences
// Letters, memory as of group_norm_gpu
// Mapping   global (WG * ceil(GROUPS/SLAB), chunks, N), local (WG, 1, 1)
__kernel __attribute__((reqd_work_group_size(WG, 1, 1))) void group_norm_chunk_gpu(
    __global const activation_t* restrict x, __global float* restrict statistics, const int S, const int C,
    const int GROUPS, const int SLAB, const int PIXELS)
{
    __local float means[WG * PIECE], squares[WG * PIECE], counts[WG], scratch[WG];
    const Slab slab = get_slab(S, C, GROUPS, SLAB);
    const int chunk = (int)get_group_id(1);
    const float2 result = slab_statistics(x, slab, C, chunk * PIXELS, min((chunk + 1) * PIXELS, S), means, squares,
                                          counts, scratch);
    if (slab.own < slab.groups && slab.member == 0)
        ((__global float2*)
             statistics)[(get_group_id(2) * GROUPS + slab.group + slab.own) * get_num_groups(1) + chunk] = result;
}

// group_norm_apply_gpu — adds up the chunks' statistics, each work-group for itself, and normalises PIXELS pixels.
// Mapping   as of group_norm_chunk_gpu
// Memory    local: 3 * WG floats
__kernel __attribute__((reqd_work_group_size(WG, 1, 1))) void group_norm_apply_gpu(
    GROUP_NORM_ARGUMENTS, const int SLAB, __global const float* restrict statistics, const int PIXELS)
{
    __local float means[WG], scales[WG], scratch[WG];
    const Slab slab = get_slab(S, C, GROUPS, SLAB);
    const int chunk = (int)get_group_id(1), chunks = (int)get_num_groups(1);
    __global const float2* parts =
        (__global const float2*)statistics + (get_group_id(2) * GROUPS + slab.group + slab.own) * chunks;
    const int entries = slab.own < slab.groups ? chunks : 0;
    float total = 0.0f;
    for (int i = slab.member; i < entries; i += slab.team) total += parts[i].x * min(PIXELS, S - i * PIXELS);
    const float mean = team_sum(total, slab.team, scratch) / S;
    total = 0.0f;
    for (int i = slab.member; i < entries; i += slab.team) {
        const float d = parts[i].x - mean;
        total += fma((float)min(PIXELS, S - i * PIXELS) * slab.width * d, d, parts[i].y);
    }
    const float variance = team_sum(total, slab.team, scratch) / ((float)S * slab.width);
    slab_apply(x, slab, C, chunk * PIXELS, min((chunk + 1) * PIXELS, S), mean, variance, EPSILON, gamma, beta, y, means,
               scales);
}

// layer_norm_gpu — a team of TEAM work-items a row.
// Mapping   global (WG * ceil(ROWS_TOTAL/(WG/TEAM))), local (WG); TEAM a power of two up to WG
// Variants  -DWG=256 -DTEAM=32 -DPIECE=8 -DVEC=8 -DACTIVATION=1 | -DWG=64 -DTEAM=32 -DPIECE=4 -DVEC=4 | -DWG=64 -DTEAM=32 -DPIECE=1 -DACTIVATION=2
#if defined(TEAM)
inline float piece_sum(floatp piece)
{
    float elements[PIECE], total = 0.0f;
    STORE_FLOATS(piece, elements);
    for (int e = 0; e < PIECE; e++) total += elements[e];
    return total;
}

__kernel __attribute__((reqd_work_group_size(WG, 1, 1))) void layer_norm_gpu(
    __global const activation_t* restrict x, __global const float* restrict gamma, __global const float* restrict beta,
    __global operand_t* restrict y, const int ROWS_TOTAL, const int C, const float EPSILON)
{
    __local float scratch[WG];
    const int member = (int)get_local_id(0) % TEAM, row = (int)get_global_id(0) / TEAM;
    // Teams beyond the last row repeat it and store nothing.
    const size_t first = (size_t)min(row, ROWS_TOTAL - 1) * C;
    floatp partial = 0.0f;
    for (int c = member * PIECE; c < C; c += TEAM * PIECE) partial += LOAD_PIECE(x + first + c);
    const float mean = team_sum(piece_sum(partial), TEAM, scratch) / C;
    partial = 0.0f;
    for (int c = member * PIECE; c < C; c += TEAM * PIECE) {
        const floatp d = LOAD_PIECE(x + first + c) - mean;
        partial = fma(d, d, partial);
    }
    const float scale = 1.0f / sqrt(team_sum(piece_sum(partial), TEAM, scratch) / C + EPSILON);
    if (row >= ROWS_TOTAL) return;
    for (int c = member * PIECE; c < C; c += TEAM * PIECE)
        STORE_PIECE(fma((LOAD_PIECE(x + first + c) - mean) * scale, LOAD_PARAMETERS(gamma + c), LOAD_PARAMETERS(beta + c)),
                    y + first + c);
}
#endif

#endif
