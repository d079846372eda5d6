// Pictures that come in: PNG files of any kind through libpng's simplified interface, which reports errors without longjmp, and JPEG files
// (DecodedPicture+jpeg.swift).

internal import CPNG
internal import StableDiffusion

/// Why a picture that was sent cannot be used; the end of a sentence about it.
public struct PictureError: Error, Equatable, CustomStringConvertible {
    /// What is wrong, and what to do.
    public let description: String
}

/// A picture of any size, as it came.
public struct DecodedPicture: Sendable, Equatable {
    /// In pixels.
    public var width: Int
    /// In pixels.
    public var height: Int
    /// Rows of `channels` bytes a pixel.
    public var pixels: [UInt8]
    /// 3 for RGB, 1 for brightness.
    public var channels: Int

    /// More pixels than anybody sends; a file of few bytes may claim as many as it likes.
    public static let maximumPixels = 1 << 24
    /// Likewise of a side.
    static let maximumSide = 1 << 14

    /// Decodes a PNG or JPEG file as RGB: 16 bits a channel become 8, palettes, grey and CMYK become colours, what is transparent shows white,
    /// and photographs stand as they were seen.
    public static func rgb(_ bytes: [UInt8]) throws(PictureError) -> DecodedPicture {
        try DecodedPicture(bytes, channels: 3)
    }

    /// Decodes a PNG or JPEG file as brightness, what is transparent as black.
    public static func brightness(_ bytes: [UInt8]) throws(PictureError) -> DecodedPicture {
        try DecodedPicture(bytes, channels: 1)
    }

    /// What is too much about a size, if anything is.
    static func excess(width: Int, height: Int) -> String? {
        max(width, height) <= maximumSide && width * height <= maximumPixels
            ? nil : "it has \(width)x\(height) pixels; allowed are \(maximumPixels), and sides of \(maximumSide)"
    }

    /// The picture in another size.
    public func resized(width newWidth: Int, height newHeight: Int) -> DecodedPicture {
        let pixels = Lanczos.resized(pixels, channels: channels, from: (width, height), to: (newWidth, newHeight))
        return DecodedPicture(width: newWidth, height: newHeight, pixels: pixels, channels: channels)
    }
}

extension DecodedPicture {
    /// Decodes a file by what it begins with.
    private init(_ bytes: [UInt8], channels: Int) throws(PictureError) {
        if bytes.starts(with: [0x89, 0x50, 0x4E, 0x47, 0x0D, 0x0A, 0x1A, 0x0A]) {
            try self.init(png: bytes, channels: channels)
        } else if bytes.starts(with: [0xFF, 0xD8, 0xFF]) {
            try self.init(jpeg: bytes, channels: channels)
        } else {
            let kind = bytes.starts(with: Array("RIFF".utf8)) ? "a WebP file" : "neither a PNG nor a JPEG file"
            throw PictureError(description: "it is \(kind); PNG and JPEG are what is read")
        }
    }

    private init(png bytes: [UInt8], channels: Int) throws(PictureError) {
        var image = png_image()
        image.version = png_uint_32(PNG_IMAGE_VERSION)
        defer { png_image_free(&image) }
        var failure: String?
        var (width, height, pixels) = (0, 0, [UInt8]())
        // The bytes are read during both calls, so these stay inside their lifetime.
        bytes.withUnsafeBytes { source in
            guard png_image_begin_read_from_memory(&image, source.baseAddress, source.count) != 0 else {
                failure = message(of: image)
                return
            }
            (width, height) = (Int(image.width), Int(image.height))
            failure = Self.excess(width: width, height: height)
            guard failure == nil else { return }
            // Without a chunk that says otherwise, 16-bit files are as bright as 8-bit ones.
            image.flags |= png_uint_32(PNG_IMAGE_FLAG_16BIT_sRGB)
            image.format = channels == 1 ? 0 : png_uint_32(PNG_FORMAT_FLAG_COLOR)
            let background: UInt8 = channels == 1 ? 0 : 255
            var color = png_color(red: background, green: background, blue: background)
            pixels = [UInt8](repeating: 0, count: width * height * channels)
            if png_image_finish_read(&image, &color, &pixels, 0, nil) == 0 { failure = message(of: image) }
        }
        if let failure { throw PictureError(description: "the PNG file cannot be read: \(failure)") }
        self = DecodedPicture(width: width, height: height, pixels: pixels, channels: channels)
            .turned(ExifOrientation(ofPNG: bytes))
    }
}

/// What libpng said.
func message(of image: png_image) -> String {
    withUnsafeBytes(of: image.message) { bytes in
        String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
    }
}
