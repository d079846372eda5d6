// Pictures in another size.

internal import Foundation

/// Lanczos' window of three lobes, widened where a picture shrinks, as Pillow's `LANCZOS` resizes.
public enum Lanczos {
    /// More bytes a channel than a picture in between is to have.
    private static let largestBetween = 1 << 24

    /// A picture in another size.
    ///
    /// - Parameters:
    ///   - pixels: Rows of `channels` bytes a pixel.
    ///   - size: Its width and height.
    ///   - newSize: The width and height wanted.
    public static func resized(
        _ pixels: [UInt8],
        channels: Int,
        from size: (width: Int, height: Int),
        to newSize: (width: Int, height: Int)
    ) -> [UInt8] {
        precondition(pixels.count == size.width * size.height * channels, "pixels of another size")
        func rows(_ pixels: [UInt8], height: Int) -> [UInt8] {
            guard newSize.width != size.width else { return pixels }
            return resample(pixels, rows: height, length: size.width, to: newSize.width, channels)
        }
        func columns(_ pixels: [UInt8], width: Int) -> [UInt8] {
            guard newSize.height != size.height else { return pixels }
            // Columns are rows of a picture that lies on its side.
            let sideways = transposed(pixels, width: width, height: size.height, channels)
            let resized = resample(sideways, rows: width, length: size.height, to: newSize.height, channels)
            return transposed(resized, width: newSize.height, height: width, channels)
        }
        // Rows first, as Pillow, unless the picture in between would be large.
        return newSize.width * size.height <= largestBetween
            ? columns(rows(pixels, height: size.height), width: newSize.width)
            : rows(columns(pixels, width: size.width), height: newSize.height)
    }

    private static func resample(_ pixels: [UInt8], rows: Int, length: Int, to newLength: Int, _ channels: Int)
        -> [UInt8]
    {
        let scale = Double(length) / Double(newLength)
        let stretch = max(scale, 1)
        let support = 3 * stretch
        let taps = (0..<newLength).map { index -> (first: Int, weights: [Double]) in
            let center = (Double(index) + 0.5) * scale
            let first = max(0, Int(center - support + 0.5))
            let last = min(length, Int(center + support + 0.5))
            let weights = (first..<last).map { window((Double($0) - center + 0.5) / stretch) }
            let sum = weights.reduce(0, +)
            return (first, weights.map { $0 / sum })
        }
        var result = [UInt8](repeating: 0, count: rows * newLength * channels)
        for row in 0..<rows {
            for (index, tap) in taps.enumerated() {
                for channel in 0..<channels {
                    var sum = 0.0
                    for (offset, weight) in tap.weights.enumerated() {
                        sum += weight * Double(pixels[(row * length + tap.first + offset) * channels + channel])
                    }
                    result[(row * newLength + index) * channels + channel] = UInt8(min(max(sum.rounded(), 0), 255))
                }
            }
        }
        return result
    }

    private static func window(_ x: Double) -> Double {
        guard abs(x) < 3 else { return 0 }
        guard x != 0 else { return 1 }
        let t = x * .pi
        return 3 * sin(t) * sin(t / 3) / (t * t)
    }

    private static func transposed(_ pixels: [UInt8], width: Int, height: Int, _ channels: Int) -> [UInt8] {
        var result = [UInt8](repeating: 0, count: pixels.count)
        for y in 0..<height {
            for x in 0..<width {
                for channel in 0..<channels {
                    result[(x * height + y) * channels + channel] = pixels[(y * width + x) * channels + channel]
                }
            }
        }
        return result
    }
}
