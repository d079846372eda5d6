// zlib: CRC-32, and the unpacking of small zip entries.
#include <zlib.h>
