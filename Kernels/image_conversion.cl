// image_conversion.cl — from the decoder's output to the bytes of a picture (diffusers image_processor.py: denormalize, numpy_to_pil).
// Called by Sources/TensorOps/ImageConversion.swift

// image_to_rgb8 — y = round((x / 2 + 0.5) * 255), clamped to 0 ... 255; halves round to even, as numpy does.
// Layout    x [pixels, 3] activation_t in [-1, 1]; y [pixels, 3] bytes. NaN becomes 0.
// Mapping   global (COUNT rounded up), COUNT = pixels * 3
// Variants  -DACTIVATION=0 | -DACTIVATION=1 | -DACTIVATION=2
__kernel void image_to_rgb8(__global const activation_t* restrict x, __global uchar* restrict y, const ulong COUNT)
{
    const size_t i = get_global_id(0);
    if (i >= COUNT) return;
    const float value = LOAD_ACTIVATION(x, i) * 0.5f + 0.5f;
    y[i] = convert_uchar_sat_rte(fmin(fmax(value, 0.0f), 1.0f) * 255.0f);
}
