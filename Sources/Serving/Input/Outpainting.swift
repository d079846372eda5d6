// Outpainting: a picture continued beyond its sides. It is put on a larger canvas and what is beyond it masked; from there on it is inpainting.

/// How far a picture is to be continued beyond each of its sides.
public struct Outpainting: Sendable, Equatable {
    /// In pixels of the picture as it came.
    public var left = 0
    /// Likewise.
    public var right = 0
    /// Likewise.
    public var top = 0
    /// Likewise.
    public var bottom = 0
    /// How much of the picture along those sides is drawn anew with what is beyond them, in its pixels: two latents of most models hide the seam.
    public var overlap = 16

    /// Of one side; the canvas has limits of its own.
    public static let maximumMargin = DecodedPicture.maximumSide

    /// No side yet.
    public init() {}

    /// The canvas, filled around the picture with the colours of its border, and the mask of what is drawn anew.
    ///
    /// - Parameters:
    ///   - picture: RGB.
    ///   - mask: Brightness, of the picture's size; what it takes is drawn anew as well.
    func extended(_ picture: DecodedPicture, mask: DecodedPicture?) throws(PictureError) -> (
        picture: DecodedPicture, mask: DecodedPicture
    ) {
        let margins = [left, right, top, bottom]
        guard (margins + [overlap]).allSatisfy({ 0...Self.maximumMargin ~= $0 }), margins.contains(where: { $0 > 0 })
        else {
            throw PictureError(
                description:
                    "left, right, top and bottom are 0 to \(Self.maximumMargin) pixels, at least one of them more than 0"
            )
        }
        let (width, height) = (picture.width + left + right, picture.height + top + bottom)
        if let excess = DecodedPicture.excess(width: width, height: height) {
            throw PictureError(description: "continued so far, \(excess)")
        }
        let columns = (left + (left > 0 ? overlap : 0), left + picture.width - (right > 0 ? overlap : 0))
        let rows = (top + (top > 0 ? overlap : 0), top + picture.height - (bottom > 0 ? overlap : 0))
        guard columns.0 < columns.1, rows.0 < rows.1 else {
            throw PictureError(
                description:
                    "an overlap of \(overlap) pixels leaves nothing of an image of \(picture.width)x\(picture.height)"
            )
        }

        var canvas = DecodedPicture(width: width, height: height, pixels: [], channels: picture.channels)
        canvas.pixels.reserveCapacity(width * height * picture.channels)
        var drawn = DecodedPicture(width: width, height: height, pixels: [], channels: 1)
        drawn.pixels.reserveCapacity(width * height)
        for y in 0..<height {
            let row = min(max(y - top, 0), picture.height - 1)
            for x in 0..<width {
                let pixel = row * picture.width + min(max(x - left, 0), picture.width - 1)
                canvas.pixels += picture.pixels[(pixel * picture.channels)..<((pixel + 1) * picture.channels)]
                let stays = columns.0 <= x && x < columns.1 && rows.0 <= y && y < rows.1
                drawn.pixels.append(stays ? mask?.pixels[pixel] ?? 0 : 255)
            }
        }
        return (canvas, drawn)
    }
}
