// From RGB rows to the bytes of a PNG file, through libpng's simplified interface: the full one reports errors by
// longjmp, which must not pass over Swift frames.

internal import CPNG

/// Why a picture could not be encoded.
public struct PNGError: Error, Equatable, CustomStringConvertible {
    /// What libpng said.
    public let description: String
}

/// Encodes 8-bit RGB pictures.
public enum PNGEncoder {
    /// Encodes a picture.
    ///
    /// - Parameters:
    ///   - pixels: `height` rows of `width` RGB triples, 8 bits a channel, without padding.
    ///   - width: pixels in a row.
    ///   - height: rows.
    ///   - text: keyword and value of a text chunk to carry, if any.
    /// - Returns: the file's bytes.
    /// - Throws: `PNGError`.
    public static func encode(
        pixels: [UInt8],
        width: Int,
        height: Int,
        text: (keyword: String, value: String)? = nil
    ) throws(PNGError) -> [UInt8] {
        guard width > 0, height > 0, width <= 1 << 20, height <= 1 << 20, pixels.count == width * height * 3 else {
            throw PNGError(description: "\(pixels.count) bytes are not a picture of \(width)x\(height) RGB pixels")
        }
        var image = png_image()
        image.version = png_uint_32(PNG_IMAGE_VERSION)
        image.width = png_uint_32(width)
        image.height = png_uint_32(height)
        image.format = png_uint_32(PNG_FORMAT_FLAG_COLOR)
        defer { png_image_free(&image) }

        // An upper bound of the encoded size saves a first pass that only measures: the filtered rows, zlib's own bound
        // for what it cannot compress (png.h, PNG_ZLIB_MAX_SIZE), which covers 12 bytes a chunk too, and the header.
        let filtered = height * (width * 3 + 1)
        let bound = filtered + (filtered >> 3) + (filtered >> 6) + 4096
        var size = png_alloc_size_t(bound)
        var written: Int32 = 0
        let bytes = [UInt8](unsafeUninitializedCapacity: bound) { buffer, count in
            written = png_image_write_to_memory(&image, buffer.baseAddress, &size, 0, pixels, 0, nil)
            count = written == 0 ? 0 : Int(size)
        }
        guard written != 0 else { throw PNGError(description: "libpng: \(message(of: image))") }
        guard let text else { return bytes }
        return PNGTextChunk(keyword: text.keyword, value: text.value).inserted(into: bytes)
    }
}
