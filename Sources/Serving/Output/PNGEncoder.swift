// From RGB rows to the bytes of a PNG file, through libpng's simplified interface: the full one reports errors by
// longjmp, which must not pass over Swift frames. The only file that imports CPNG.

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

    /// Decodes a picture, for tests.
    ///
    /// - Throws: `PNGError`.
    static func decode(_ bytes: [UInt8]) throws(PNGError) -> (pixels: [UInt8], width: Int, height: Int) {
        var image = png_image()
        image.version = png_uint_32(PNG_IMAGE_VERSION)
        defer { png_image_free(&image) }
        let begun = bytes.withUnsafeBytes { png_image_begin_read_from_memory(&image, $0.baseAddress, $0.count) }
        guard begun != 0 else { throw PNGError(description: "libpng: \(message(of: image))") }
        image.format = png_uint_32(PNG_FORMAT_FLAG_COLOR)
        let width = Int(image.width)
        let height = Int(image.height)
        var pixels = [UInt8](repeating: 0, count: width * height * 3)
        // The bytes are read during this call too, so it stays inside their lifetime.
        let finished = bytes.withUnsafeBytes { source in
            var again = png_image()
            again.version = png_uint_32(PNG_IMAGE_VERSION)
            defer { png_image_free(&again) }
            guard png_image_begin_read_from_memory(&again, source.baseAddress, source.count) != 0 else {
                return Int32(0)
            }
            again.format = png_uint_32(PNG_FORMAT_FLAG_COLOR)
            return png_image_finish_read(&again, nil, &pixels, 0, nil)
        }
        guard finished != 0 else { throw PNGError(description: "libpng: the picture cannot be read to its end") }
        return (pixels, width, height)
    }

    private static func message(of image: png_image) -> String {
        withUnsafeBytes(of: image.message) { bytes in
            String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
        }
    }
}
