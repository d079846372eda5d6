// Embeds Kernels/* with #embed (C23), so that the binary needs no files beside it. A new kernel file is added in both places below.
#include "CKernels.h"

#pragma clang diagnostic ignored "-Wc23-extensions"

static const char attention[] = {
#embed "../../Kernels/attention.cl" suffix(, 0)
};
static const char attention_mma[] = {
#embed "../../Kernels/attention_mma.cl" suffix(, 0)
};
static const char common[] = {
#embed "../../Kernels/common.clh" suffix(, 0)
};
static const char convolution[] = {
#embed "../../Kernels/convolution.cl" suffix(, 0)
};
static const char convolution_mma[] = {
#embed "../../Kernels/convolution_mma.cl" suffix(, 0)
};
static const char elementwise[] = {
#embed "../../Kernels/elementwise.cl" suffix(, 0)
};
static const char embedding[] = {
#embed "../../Kernels/embedding.cl" suffix(, 0)
};
static const char image_conversion[] = {
#embed "../../Kernels/image_conversion.cl" suffix(, 0)
};
static const char mma[] = {
#embed "../../Kernels/mma.clh" suffix(, 0)
};
static const char normalization[] = {
#embed "../../Kernels/normalization.cl" suffix(, 0)
};
static const char packing[] = {
#embed "../../Kernels/packing.cl" suffix(, 0)
};
static const char peak[] = {
#embed "../../Kernels/peak.cl" suffix(, 0)
};
static const char row_bands[] = {
#embed "../../Kernels/row_bands.cl" suffix(, 0)
};
static const char winograd[] = {
#embed "../../Kernels/winograd.cl" suffix(, 0)
};

static const struct diffused_kernel_file files[] = {
    {"attention.cl", attention},
    {"attention_mma.cl", attention_mma},
    {"common.clh", common},
    {"convolution.cl", convolution},
    {"convolution_mma.cl", convolution_mma},
    {"elementwise.cl", elementwise},
    {"embedding.cl", embedding},
    {"image_conversion.cl", image_conversion},
    {"mma.clh", mma},
    {"normalization.cl", normalization},
    {"packing.cl", packing},
    {"peak.cl", peak},
    {"row_bands.cl", row_bands},
    {"winograd.cl", winograd},
};

size_t diffused_kernel_file_count(void) { return sizeof files / sizeof files[0]; }

struct diffused_kernel_file diffused_kernel_file_at(size_t index) { return files[index]; }
