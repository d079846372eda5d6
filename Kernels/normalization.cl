// normalization.cl — group normalisation (optionally followed by SiLU) and layer normalisation, statistics in float.
//
// y = (x - mean) * rsqrt(variance + EPSILON) * gamma[c] + beta[c]      (Wu & He 2018; Ba et al. 2016; torch.nn.GroupNorm, LayerNorm)
//
// Letters   N pictures, S = H*W pixels, C channels, GROUPS groups; a group is C/GROUPS neighbouring channels over all pixels
// Layout    x [N, S, C] activation_t (layer norm: [rows, C]); y the same in operand_t; gamma, beta [C] float
// Variance  is the mean of squared differences from the mean, never E[x^2] - mean^2, which cancels.
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

// The sum over the work-group, for all its work-items.
inline float work_group_sum(float value, __local float* scratch)
{
    const int item = (int)get_local_id(0);
    barrier(CLK_LOCAL_MEM_FENCE);  // an earlier sum is read
    scratch[item] = value;
    for (int half_width = WG / 2; half_width > 0; half_width /= 2) {
        barrier(CLK_LOCAL_MEM_FENCE);  // the upper half is written
        if (item < half_width) scratch[item] += scratch[item + half_width];
    }
    barrier(CLK_LOCAL_MEM_FENCE);  // the total is written
    return scratch[0];
}

// group_norm_gpu — one work-group a group; work-items stride over its S * C/GROUPS elements.
// Mapping   global (WG * GROUPS, N), local (WG, 1); WG a power of two
// Memory    local: WG floats; x is read three times, y written once
// Variants  -DWG=256 -DFUNCTION=1 -DACTIVATION=1 | -DWG=64 | -DWG=64 -DACTIVATION=2
__kernel __attribute__((reqd_work_group_size(WG, 1, 1))) void group_norm_gpu(GROUP_NORM_ARGUMENTS)
{
    __local float scratch[WG];
    const int group = (int)get_group_id(0), width = C / GROUPS;
    const size_t first = get_global_id(1) * S * C + (size_t)group * width;
    const size_t count = (size_t)S * width;
    float partial = 0.0f;
    for (size_t i = get_local_id(0); i < count; i += WG) partial += LOAD_ACTIVATION(x, first + i / width * C + i % width);
    const float mean = work_group_sum(partial, scratch) / count;
    partial = 0.0f;
    for (size_t i = get_local_id(0); i < count; i += WG) {
        const float d = LOAD_ACTIVATION(x, first + i / width * C + i % width) - mean;
        partial = fma(d, d, partial);
    }
    const float scale = 1.0f / sqrt(work_group_sum(partial, scratch) / count + EPSILON);
    for (size_t i = get_local_id(0); i < count; i += WG) {
        const size_t at = first + i / width * C + i % width;
        const int c = group * width + (int)(i % width);
        STORE_OPERAND(y, at, activate_scalar(FUNCTION, (LOAD_ACTIVATION(x, at) - mean) * scale * gamma[c] + beta[c]));
    }
}

// layer_norm_gpu — one work-group a row.
// Mapping   global (WG * rows), local (WG)
// Variants  -DWG=64 -DACTIVATION=1 | -DWG=64
__kernel __attribute__((reqd_work_group_size(WG, 1, 1))) void layer_norm_gpu(
    __global const activation_t* restrict x, __global const float* restrict gamma, __global const float* restrict beta,
    __global activation_t* restrict y, const int C, const float EPSILON)
{
    __local float scratch[WG];
    const size_t first = get_group_id(0) * C;
    float partial = 0.0f;
    for (int c = (int)get_local_id(0); c < C; c += WG) partial += LOAD_ACTIVATION(x, first + c);
    const float mean = work_group_sum(partial, scratch) / C;
    partial = 0.0f;
    for (int c = (int)get_local_id(0); c < C; c += WG) {
        const float d = LOAD_ACTIVATION(x, first + c) - mean;
        partial = fma(d, d, partial);
    }
    const float scale = 1.0f / sqrt(work_group_sum(partial, scratch) / C + EPSILON);
    for (int c = (int)get_local_id(0); c < C; c += WG)
        STORE_OPERAND(y, first + c, (LOAD_ACTIVATION(x, first + c) - mean) * scale * gamma[c] + beta[c]);
}

#endif
