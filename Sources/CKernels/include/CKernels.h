// The files of Kernels/, embedded when this target is compiled.
#ifndef CKERNELS_H
#define CKERNELS_H

#include <stddef.h>

/// One embedded kernel file: its name in Kernels/ and its text, terminated by a zero byte.
struct diffused_kernel_file {
    const char *name;
    const char *source;
};

/// Number of embedded files.
size_t diffused_kernel_file_count(void);

/// The embedded file at `index`, which must be less than the count.
struct diffused_kernel_file diffused_kernel_file_at(size_t index);

#endif
