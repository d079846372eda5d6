// zlib's CRC-32.
#include <zlib.h>
