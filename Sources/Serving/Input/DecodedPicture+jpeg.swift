// JPEG files through libturbojpeg, whose interface reports errors without longjmp. The only file that imports CTurboJPEG.

internal import CTurboJPEG

extension DecodedPicture {
    /// Decodes a JPEG file, baseline or progressive, in grey, colour or CMYK, and turns it as its Exif orientation says.
    ///
    /// What is damaged is refused rather than shown as far as it goes.
    /// - Parameter channels: 3 for RGB, 1 for brightness.
    init(jpeg bytes: [UInt8], channels: Int) throws(PictureError) {
        guard let decompressor = tjInitDecompress() else { throw Self.jpegError(nil) }
        defer { tjDestroy(decompressor) }
        var (width, height, subsampling, colorSpace) = (CInt(0), CInt(0), CInt(0), CInt(0))
        let size = CUnsignedLong(bytes.count)
        let header = tjDecompressHeader3(decompressor, bytes, size, &width, &height, &subsampling, &colorSpace)
        guard header == 0 else { throw Self.jpegError(decompressor) }
        if let excess = Self.excess(width: Int(width), height: Int(height)) { throw Self.jpegError(saying: excess) }

        // The library converts neither kind of CMYK.
        let isCMYK = [TJCS_CMYK, TJCS_YCCK].map { CInt($0.rawValue) }.contains(colorSpace)
        let format = isCMYK ? TJPF_CMYK : channels == 1 ? TJPF_GRAY : TJPF_RGB
        var pixels = [UInt8](repeating: 0, count: Int(width) * Int(height) * (isCMYK ? 4 : channels))
        // A few bytes can claim any number of scans of all pixels.
        let flags = TJFLAG_STOPONWARNING | TJFLAG_LIMITSCANS
        let body = tjDecompress2(
            decompressor,
            bytes,
            size,
            &pixels,
            width,
            0,
            height,
            CInt(format.rawValue),
            flags
        )
        guard body == 0 else { throw Self.jpegError(decompressor) }
        if isCMYK { pixels = channels == 1 ? Self.brightness(cmyk: pixels) : Self.rgb(cmyk: pixels) }
        self = DecodedPicture(width: Int(width), height: Int(height), pixels: pixels, channels: channels)
            .turned(ExifOrientation(ofJPEG: bytes))
    }

    /// CMYK as JPEG files have it, 255 for no ink, as Photoshop began and Pillow reads all of them.
    private static func rgb(cmyk: [UInt8]) -> [UInt8] {
        (0..<cmyk.count / 4 * 3).map { index in
            let start = index / 3 * 4
            return UInt8((Int(cmyk[start + index % 3]) * Int(cmyk[start + 3]) + 127) / 255)
        }
    }

    /// The brightness of the same, weighted as in YCbCr.
    private static func brightness(cmyk: [UInt8]) -> [UInt8] {
        let rgb = rgb(cmyk: cmyk)
        return stride(from: 0, to: rgb.count, by: 3).map { start in
            let thousandths = zip([299, 587, 114], rgb[start..<start + 3]).reduce(500) { $0 + $1.0 * Int($1.1) }
            return UInt8(thousandths / 1000)
        }
    }

    private static func jpegError(_ decompressor: tjhandle?) -> PictureError {
        jpegError(saying: String(cString: tjGetErrorStr2(decompressor)))
    }

    private static func jpegError(saying reason: String) -> PictureError {
        PictureError(description: "the JPEG file cannot be read: \(reason)")
    }
}
