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
    /// How much of the picture along those sides is drawn anew with what is beyond them, in pixels of the picture that is made: two latents of
    /// most models hide the seam.
    public var overlap = 16

    /// Of one side; the canvas has limits of its own.
    public static let maximumMargin = DecodedPicture.maximumSide

    /// No side yet.
    public init() {}

    /// Throws what is wrong with the margins.
    private func check() throws(PictureError) {
        let margins = [left, right, top, bottom]
        guard (margins + [overlap]).allSatisfy({ 0...Self.maximumMargin ~= $0 }), margins.contains(where: { $0 > 0 })
        else {
            throw PictureError(
                description:
                    "left, right, top and bottom are 0 to \(Self.maximumMargin) pixels, at least one of them more than 0"
            )
        }
    }

    /// The canvas, filled around the picture with its border.
    func extended(_ picture: DecodedPicture) throws(PictureError) -> DecodedPicture {
        try check()
        let (width, height) = (picture.width + left + right, picture.height + top + bottom)
        if let excess = DecodedPicture.excess(width: width, height: height) {
            throw PictureError(description: "continued so far, \(excess)")
        }
        var canvas = DecodedPicture(width: width, height: height, pixels: [], channels: picture.channels)
        canvas.pixels.reserveCapacity(width * height * picture.channels)
        for y in 0..<height {
            let row = min(max(y - top, 0), picture.height - 1)
            for x in 0..<width {
                let pixel = row * picture.width + min(max(x - left, 0), picture.width - 1)
                canvas.pixels += picture.pixels[(pixel * picture.channels)..<((pixel + 1) * picture.channels)]
            }
        }
        return canvas
    }

    /// What is drawn anew once the canvas has been resized: 255 beyond the picture and within the overlap, elsewhere the mask.
    ///
    /// - Parameters:
    ///   - picture: As it came.
    ///   - mask: A byte a pixel of the resized canvas; nil for nothing.
    ///   - width: Of the resized canvas, in pixels; a multiple of `multiple`, as is the height.
    ///   - multiple: At least the pixels of a latent, which is drawn anew as a whole or not at all.
    func drawn(
        around picture: DecodedPicture,
        mask: [UInt8]?,
        width: Int,
        height: Int,
        multiple: Int
    ) throws(PictureError) -> [UInt8] {
        try check()
        let columns = stays(picture.width, (left, right), resizedTo: width, multiple)
        let rows = stays(picture.height, (top, bottom), resizedTo: height, multiple)
        guard !columns.isEmpty, !rows.isEmpty else {
            throw PictureError(
                description:
                    """
                    an overlap of \(overlap) pixels leaves nothing of an image of \(picture.width)x\(picture.height) in a picture \
                    of \(width)x\(height)
                    """
            )
        }
        var drawn = [UInt8](repeating: 255, count: width * height)
        for y in rows {
            for x in columns { drawn[y * width + x] = mask?[y * width + x] ?? 0 }
        }
        return drawn
    }

    /// The pixels along one dimension of the resized canvas that stay; empty if none does.
    private func stays(
        _ side: Int,
        _ margins: (before: Int, after: Int),
        resizedTo size: Int,
        _ multiple: Int
    ) -> Range<Int> {
        let canvas = margins.before + side + margins.after
        let first =
            margins.before == 0 ? 0 : (margins.before * size + canvas - 1) / canvas + overlap
        let end =
            margins.after == 0 ? size : (margins.before + side) * size / canvas - overlap
        // Whole latents only, lest part of one shows the filling.
        let (from, to) = ((first + multiple - 1) / multiple * multiple, end / multiple * multiple)
        return from < to ? from..<to : 0..<0
    }
}
