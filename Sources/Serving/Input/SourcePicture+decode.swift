// From files that were sent to what a picture is made from: decoded, of one size, a mask that fits.

public import StableDiffusion

extension SourcePicture {
    /// What is wrong with one of the files.
    public struct DecodingError: Error, Equatable {
        /// `image` or `mask`.
        public let field: String
        /// The end of a sentence about it.
        public let reason: String
    }

    /// The strength where none is given: AUTOMATIC1111's.
    public static let usualStrength = 0.75

    /// The size of a picture made from a picture when the request names none: its own, cut to a multiple, within limits.
    public static func size(of picture: DecodedPicture, multiple: Int, limits: (width: Int, height: Int)) -> (Int, Int)
    {
        func side(_ pixels: Int, _ limit: Int) -> Int { min(max(pixels / multiple, 1), limit / multiple) * multiple }
        return (side(picture.width, limits.width), side(picture.height, limits.height))
    }

    /// A picture and a mask, resized to the size of the picture to be made.
    ///
    /// - Parameter mask: PNG or JPEG file of the picture's size; white is drawn anew.
    public init(
        _ picture: DecodedPicture,
        mask: [UInt8]?,
        strength: Double,
        width: Int,
        height: Int
    ) throws(DecodingError) {
        var maskPixels: [UInt8]?
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
            maskPixels = decoded.resized(width: width, height: height).pixels
        }
        self.init(
            pixels: picture.resized(width: width, height: height).pixels,
            mask: maskPixels,
            strength: strength
        )
    }
}
