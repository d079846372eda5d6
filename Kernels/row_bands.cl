// row_bands.cl — group normalisation of a picture that is kept as bands of rows, each in a buffer of its own: the statistics are gathered band
// by band and are those of the whole picture; the result is written into windows, a band with the rows above and below it.
//
// y = (x - mean) * rsqrt(variance + EPSILON) * gamma[c] + beta[c]      (Wu & He 2018; torch.nn.GroupNorm)
//
// Letters   S pixels of one band, C channels, GROUPS groups; a chunk is CHUNK neighbouring pixels of one band, or what is left of it
// Layout    x [.., C] activation_t, the band begins X0 elements into it; y [.., C] operand_t from element Y0 on; gamma, beta [C] float
//           statistics [chunks of all bands][3][C] float: per channel the chunk's mean, sum of squared differences from it, and pixels
//           affine [2][C] float: means, then scales
// Mapping   a work-item takes VEC neighbouring channels of a chunk: neighbours read neighbouring memory on a GPU, a vector on a processor
// Called by Sources/TensorOps/RowBands.swift

#ifndef FUNCTION
#define FUNCTION 0
#endif
#ifndef CHUNK
#define CHUNK 256
#endif

#define LOAD_ACTIVATION_VECTOR(i, p) JOIN(LOAD_VECTOR_, ACTIVATION)(i, p)

// band_statistics — mean and squared differences of each chunk of a band; the band's first chunk is chunk CHUNK0 of the picture.
// Mapping   global (ceil(C/VEC), chunks of the band)
// Variants  -DVEC=16 | -DVEC=4 -DACTIVATION=1 | -DVEC=4 -DACTIVATION=2
__kernel void band_statistics(__global const activation_t* restrict x, __global float* restrict statistics,
                              const ulong X0, const int S, const int C, const int CHUNK0)
{
    int c = (int)get_global_id(0) * VEC;
    const int chunk = (int)get_global_id(1), pixels = min(CHUNK, S - chunk * CHUNK);
    if (c >= C || pixels <= 0) return;
    __global const activation_t* first = x + X0 + (size_t)chunk * CHUNK * C;
    __global float* means = statistics + (size_t)(CHUNK0 + chunk) * 3 * C;
    if (c + VEC <= C) {
        floatv mean = 0.0f, square = 0.0f;
        for (int s = 0; s < pixels; s++) mean += LOAD_ACTIVATION_VECTOR(0, first + (size_t)s * C + c);
        mean /= (float)pixels;
        for (int s = 0; s < pixels; s++) {
            const floatv d = LOAD_ACTIVATION_VECTOR(0, first + (size_t)s * C + c) - mean;
            square = fma(d, d, square);
        }
        vstorev(mean, 0, means + c);
        vstorev(square, 0, means + C + c);
        vstorev((floatv)((float)pixels), 0, means + 2 * C + c);
        return;
    }
    for (; c < C; c++) {
        float mean = 0.0f, square = 0.0f;
        for (int s = 0; s < pixels; s++) mean += LOAD_ACTIVATION(first, (size_t)s * C + c);
        mean /= (float)pixels;
        for (int s = 0; s < pixels; s++) {
            const float d = LOAD_ACTIVATION(first, (size_t)s * C + c) - mean;
            square = fma(d, d, square);
        }
        means[c] = mean;
        means[C + c] = square;
        means[2 * C + c] = (float)pixels;
    }
}

// band_combine — the statistics of all chunks become a group's mean and scale, per channel.
// Sums of squared differences add up with the distance of the means (Chan, Golub & LeVeque 1983, equation 2.1).
// Mapping   global (GROUPS)
// Variants  -DVEC=4
__kernel void band_combine(__global const float* restrict statistics, __global const float* restrict gamma,
                           __global float* restrict affine, const int CHUNKS, const int C, const int GROUPS,
                           const float EPSILON)
{
    const int group = (int)get_global_id(0), width = C / GROUPS;
    if (group >= GROUPS) return;
    __global const float* first = statistics + group * width;
    float mean = 0.0f, count = 0.0f;
    for (int chunk = 0; chunk < CHUNKS; chunk++) {
        __global const float* part = first + (size_t)chunk * 3 * C;
        // One partial sum a chunk keeps the rounding error from growing with the number of channels.
        float partial = 0.0f;
        for (int c = 0; c < width; c++) partial += part[c];
        mean += partial * part[2 * C];
        count += part[2 * C];
    }
    mean /= count * width;
    float variance = 0.0f;
    for (int chunk = 0; chunk < CHUNKS; chunk++) {
        __global const float* part = first + (size_t)chunk * 3 * C;
        float partial = 0.0f;
        for (int c = 0; c < width; c++) {
            const float d = part[c] - mean;
            partial += part[C + c] + part[2 * C] * d * d;
        }
        variance += partial;
    }
    const float scale = 1.0f / sqrt(variance / (count * width) + EPSILON);
    for (int c = group * width; c < (group + 1) * width; c++) {
        affine[c] = mean;
        affine[C + c] = scale * gamma[c];
    }
}

// band_apply — y = f((x - mean) * scale + beta) for S pixels.
// Mapping   global (ceil(C/VEC), ceil(S/CHUNK))
// Variants  -DVEC=16 -DFUNCTION=1 | -DVEC=4 -DACTIVATION=1 -DFUNCTION=1 | -DVEC=16 -DOPERAND=2 | -DVEC=4 -DACTIVATION=2
__kernel void band_apply(__global const activation_t* restrict x, __global const float* restrict affine,
                         __global const float* restrict beta, __global operand_t* restrict y, const ulong X0,
                         const ulong Y0, const int S, const int C)
{
    const int c = (int)get_global_id(0) * VEC;
    if (c >= C) return;
    const int s0 = (int)get_global_id(1) * CHUNK, s1 = min(s0 + CHUNK, S);
    __global const activation_t* in = x + X0;
    __global operand_t* out = y + Y0;
    if (c + VEC <= C) {
        const floatv mean = vloadv(0, affine + c), scale = vloadv(0, affine + C + c), shift = vloadv(0, beta + c);
        for (int s = s0; s < s1; s++) {
            const size_t at = (size_t)s * C + c;
            const floatv value = fma(LOAD_ACTIVATION_VECTOR(0, in + at) - mean, scale, shift);
            STORE_OPERAND_VECTOR(activate_vector(FUNCTION, value), 0, out + at);
        }
        return;
    }
    for (int s = s0; s < s1; s++)
        for (int i = c; i < C; i++) {
            const size_t at = (size_t)s * C + i;
            const float value = fma(LOAD_ACTIVATION(in, at) - affine[i], affine[C + i], beta[i]);
            STORE_OPERAND(out, at, activate_scalar(FUNCTION, value));
        }
}
