"""A reader of PNG files, strict about everything the daemon promises: 8-bit RGB, no interlacing, right checksums."""

import struct
import zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"


class PNG:
    """A decoded picture: width, height, pixels (rows of RGB triples) and the text chunks as a dictionary."""

    def __init__(self, data):
        if not data.startswith(SIGNATURE):
            raise ValueError(f"no PNG signature: {data[:16]!r}")
        header, compressed, self.text, offset, ended = None, b"", {}, len(SIGNATURE), False
        while offset < len(data):
            if ended:
                raise ValueError("bytes after the IEND chunk")
            length, kind = struct.unpack_from(">I4s", data, offset)
            body = data[offset + 8 : offset + 8 + length]
            (checksum,) = struct.unpack_from(">I", data, offset + 8 + length)
            if zlib.crc32(kind + body) != checksum:
                raise ValueError(f"wrong checksum of chunk {kind!r}")
            offset += 12 + length
            if kind == b"IHDR":
                header = struct.unpack(">IIBBBBB", body)
            elif kind == b"IDAT":
                compressed += body
            elif kind == b"IEND":
                ended = True
            elif kind == b"tEXt":
                keyword, _, value = body.partition(b"\0")
                self.text[keyword.decode("latin-1")] = value.decode("latin-1")
            elif kind == b"iTXt":
                keyword, _, rest = body.partition(b"\0")
                is_compressed = rest[0]
                value = rest[2:].split(b"\0", 2)[2]
                value = zlib.decompress(value) if is_compressed else value
                self.text[keyword.decode("latin-1")] = value.decode("utf-8")
        if not ended:
            raise ValueError("no IEND chunk: the file is cut off")
        if header is None or header[2:] != (8, 2, 0, 0, 0):
            raise ValueError(f"not an 8-bit RGB picture without interlacing: {header}")
        self.width, self.height = header[:2]
        self.pixels = unfiltered(zlib.decompress(compressed), self.width, self.height)


def unfiltered(data, width, height):
    """Undoes PNG's line filters (PNG specification, section 9) for 3 bytes a pixel."""
    stride = 3 * width
    if len(data) != height * (stride + 1):
        raise ValueError(f"{len(data)} bytes of picture data instead of {height * (stride + 1)}")
    previous, rows = bytearray(stride), []
    for y in range(height):
        kind = data[y * (stride + 1)]
        row = bytearray(data[y * (stride + 1) + 1 : (y + 1) * (stride + 1)])
        for i in range(stride):
            left = row[i - 3] if i >= 3 else 0
            above = previous[i]
            diagonal = previous[i - 3] if i >= 3 else 0
            if kind == 1:
                row[i] = (row[i] + left) & 255
            elif kind == 2:
                row[i] = (row[i] + above) & 255
            elif kind == 3:
                row[i] = (row[i] + (left + above) // 2) & 255
            elif kind == 4:
                estimate = left + above - diagonal
                predictor = min((left, above, diagonal), key=lambda value: abs(estimate - value))
                row[i] = (row[i] + predictor) & 255
            elif kind != 0:
                raise ValueError(f"unknown line filter {kind}")
        rows.append(row)
        previous = row
    return bytes(b"".join(rows))
