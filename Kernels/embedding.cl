// embedding.cl — token and position embeddings of the text encoder (Radford et al. 2021; transformers CLIPTextEmbeddings).
// Called by Sources/TensorOps/Embedding.swift

// token_embedding — y[row] = table[ids[row]] + positions[row % T].
// Layout    ids [rows]; table [vocabulary, C] weight_t; positions [T, C] float; y [rows, C] activation_t
// Mapping   global (C rounded up, rows)
// Variants  -DACTIVATION=0 -DWEIGHT=1 | -DACTIVATION=1 -DWEIGHT=1 | -DACTIVATION=2 -DWEIGHT=2
__kernel void token_embedding(__global const int* restrict ids, __global const weight_t* restrict table,
                              __global const float* restrict positions, __global activation_t* restrict y, const int T,
                              const int C)
{
    const size_t c = get_global_id(0), row = get_global_id(1);
    if (c >= (size_t)C) return;
    STORE_ACTIVATION(y, row * C + c, LOAD_WEIGHT(table, (size_t)ids[row] * C + c) + positions[row % T * C + c]);
}
