// A text chunk of a PNG file: tEXt when the text fits Latin-1, else iTXt (UTF-8), as other programs write and read the
// `parameters` of a picture. Reference: PNG specification (third edition), 11.3.3 and 5.5.

/// A keyword with its text.
struct PNGTextChunk: Equatable {
    /// 1 to 79 Latin-1 characters.
    let keyword: String
    /// Any text.
    ///
    /// PNG has no NUL and one line end: NUL becomes U+FFFD, CR LF and CR become LF.
    let value: String

    /// Bytes of the signature and of the IHDR chunk, which always comes first.
    private static let endOfHeader = 8 + 12 + 13

    /// A PNG file with this chunk right after its header.
    func inserted(into file: [UInt8]) -> [UInt8] {
        precondition(file.count >= Self.endOfHeader, "no PNG file: \(file.count) bytes")
        return file[..<Self.endOfHeader] + encoded() + file[Self.endOfHeader...]
    }

    /// The whole chunk: length, type, data, checksum.
    func encoded() -> [UInt8] {
        let text = normalized
        let type: String
        var data = Array(keyword.utf8) + [0]
        if let latin1 = Self.latin1(text) {
            type = "tEXt"
            data += latin1
        } else {
            type = "iTXt"
            // Not compressed, compression method 0, no language, no translated keyword.
            data += [0, 0, 0, 0]
            data += Array(text.utf8)
        }
        let body = Array(type.utf8) + data
        return Self.bigEndian(UInt32(data.count)) + body + Self.bigEndian(crc32(body))
    }

    private var normalized: String {
        var result = String.UnicodeScalarView()
        var previous: Unicode.Scalar?
        for scalar in value.unicodeScalars {
            switch scalar {
            case "\0": result.append("\u{FFFD}")
            case "\r": result.append("\n")
            case "\n" where previous == "\r": break
            default: result.append(scalar)
            }
            previous = scalar
        }
        return String(result)
    }

    /// Latin-1 bytes, when every character is printable there or a line feed.
    private static func latin1(_ text: String) -> [UInt8]? {
        var bytes: [UInt8] = []
        for scalar in text.unicodeScalars {
            switch scalar.value {
            case 0x0A, 0x20...0x7E, 0xA0...0xFF: bytes.append(UInt8(scalar.value))
            default: return nil
            }
        }
        return bytes
    }

    private static func bigEndian(_ value: UInt32) -> [UInt8] {
        [UInt8(value >> 24), UInt8(value >> 16 & 0xFF), UInt8(value >> 8 & 0xFF), UInt8(value & 0xFF)]
    }
}

/// The checksum of PNG chunks: CRC-32 with the reflected polynomial 0xEDB88320.
///
/// Text chunks are short: bit by bit will do.
func crc32(_ bytes: [UInt8]) -> UInt32 {
    var crc = UInt32.max
    for byte in bytes {
        crc ^= UInt32(byte)
        for _ in 0..<8 {
            crc = crc & 1 == 1 ? crc >> 1 ^ 0xEDB8_8320 : crc >> 1
        }
    }
    return ~crc
}
