// The checksum of zlib and of Python's zlib.crc32, for comparing more numbers than a fixture should hold, and for seeds
// made from names.

/// CRC-32 of bytes (ISO 3309).
package func crc32(_ bytes: some Sequence<UInt8>) -> UInt32 {
    var remainder: UInt32 = ~0
    for byte in bytes {
        remainder = table[Int((remainder ^ UInt32(byte)) & 0xFF)] ^ (remainder >> 8)
    }
    return ~remainder
}

private let table: [UInt32] = (0..<256).map { byte in
    (0..<8).reduce(UInt32(byte)) { value, _ in value & 1 == 0 ? value >> 1 : 0xEDB8_8320 ^ (value >> 1) }
}
