// From files that were sent to what a picture is made from: decoded, of one size, a mask that fits.

public import StableDiffusion

extension SourcePicture {
    /// What is wrong with one of the files.
    public struct DecodingError: Error, Equatable {
        /// `image`, `mask` or `outpaint`.
        public let field: String
        /// The end of a sentence about it.
        public let reason: String
    }

    /// The strength where none is given: AUTOMATIC1111's.
    ///
    /// Where there is nothing yet to keep, as beyond the sides of a picture, it is 1.
    public static let usualStrength = 0.75

    /// The size of a picture made from a picture when the request names none: its own, cut to a multiple; reduced in proportion to what is
    /// allowed.
    ///
    /// - Parameter outpainting: How far it is continued; nil for not at all.
    public static func size(
        of picture: DecodedPicture,
        _ outpainting: Outpainting?,
        multiple: Int,
        limits: (width: Int, height: Int)
    ) -> (width: Int, height: Int) {
        let margins = outpainting ?? Outpainting()
        let width = picture.width + margins.left + margins.right
        let height = picture.height + margins.top + margins.bottom
        let reduction = min(1, Double(limits.width) / Double(width), Double(limits.height) / Double(height))
        func side(_ pixels: Int, _ limit: Int) -> Int {
            // Rounded first, as a product that should be the limit may be a little less.
            let pixels = Int((Double(pixels) * reduction * 16).rounded()) / 16
            return min(max(pixels / multiple, 1), limit / multiple) * multiple
        }
        return (side(width, limits.width), side(height, limits.height))
    }

    /// A picture and a mask, continued, and resized to the size of the picture to be made.
    ///
    /// - Parameters:
    ///   - mask: PNG or JPEG file of the picture's size; white is drawn anew.
    ///   - outpainting: How far the picture is continued; nil for not at all.
    ///   - strength: Above 0 to 1; nil is `usualStrength`, or 1 with `outpainting`.
    ///   - multiple: What the model takes `width` and `height` in multiples of.
    public init(
        _ picture: DecodedPicture,
        mask: [UInt8]?,
        outpainting: Outpainting? = nil,
        strength: Double?,
        width: Int,
        height: Int,
        multiple: Int
    ) throws(DecodingError) {
        var (canvas, drawn) = (picture, DecodedPicture?.none)
        if let mask {
            let decoded: DecodedPicture
            do {
                decoded = try DecodedPicture.brightness(mask)
            } catch {
                throw DecodingError(field: "mask", reason: error.description)
            }
            guard (decoded.width, decoded.height) == (picture.width, picture.height) else {
                throw DecodingError(
                    field: "mask",
                    reason:
                        "it has \(decoded.width)x\(decoded.height) pixels, the image \(picture.width)x\(picture.height)"
                )
            }
            drawn = decoded
        }
        do {
            canvas = try outpainting?.extended(canvas) ?? canvas
            drawn = try drawn.map { mask throws(PictureError) in try outpainting?.extended(mask) ?? mask }
            var mask = drawn?.resized(width: width, height: height).pixels
            mask =
                try outpainting?.drawn(around: picture, mask: mask, width: width, height: height, multiple: multiple)
                ?? mask
            self.init(
                pixels: canvas.resized(width: width, height: height).pixels,
                mask: mask,
                strength: strength ?? (outpainting == nil ? Self.usualStrength : 1)
            )
        } catch {
            throw DecodingError(field: "outpaint", reason: error.description)
        }
    }
}
