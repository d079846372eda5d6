// All noise of one picture, from its seed: first the initial latents, then what ancestral and SDE samplers add, in the order of the program
// whose numbers are reproduced.

internal import Glibc

/// The noise of one picture.
struct NoiseGenerator: Sendable {
    private enum Source {
        case torch(TorchGenerator)
        case cuda(CUDAGenerator)
        case tensorflow(TensorFlowGenerator)
        case numpy(NumPyGenerator)
    }

    private var source: Source

    /// The noise of a seed.
    init(_ source: NoiseSource, seed: Seed) {
        switch source {
        case .torch: self.source = .torch(TorchGenerator(seed: seed.bits))
        case .cuda: self.source = .cuda(CUDAGenerator(seed: seed.bits))
        case .tensorflow: self.source = .tensorflow(TensorFlowGenerator(seed: seed))
        case .numpy: self.source = .numpy(NumPyGenerator(seed: seed.bits))
        }
    }

    /// The next draw of noise in the shape of latents, as `[height, width, channels]`.
    ///
    /// Of the references only TensorFlow draws in that order; the others draw `[channels, height, width]`, and the values are the same in the
    /// order of this program's activations.
    ///
    /// - Parameters:
    ///   - height: in latents, an eighth of the picture's.
    ///   - width: in latents, an eighth of the picture's.
    mutating func latents(channels: Int, height: Int, width: Int) -> [Float] {
        let count = channels * height * width
        let planes: [Float]
        switch source {
        case .torch(var generator):
            planes = generator.normals(count)
            source = .torch(generator)
        case .cuda(var generator):
            planes = generator.normals(count)
            source = .cuda(generator)
        case .numpy(var generator):
            planes = generator.normals(count)
            source = .numpy(generator)
        case .tensorflow(var generator):
            defer { source = .tensorflow(generator) }
            return generator.normals(count)
        }
        let area = height * width
        return [Float](unsafeUninitializedCapacity: count) { output, initialized in
            for position in 0..<area {
                for channel in 0..<channels {
                    output.initializeElement(
                        at: position * channels + channel,
                        to: planes[channel * area + position]
                    )
                }
            }
            initialized = count
        }
    }
}

/// `numpy.random.RandomState`, as `randn` draws from it (numpy/random/src/legacy/legacy-distributions.c), rounded to float32.
struct NumPyGenerator: Sendable {
    private var words: MersenneTwister
    private var cachedNormal: Double?

    /// A generator of the seed's lower 32 bits; NumPy refuses longer ones.
    init(seed: UInt64) {
        words = MersenneTwister(seed: UInt32(truncatingIfNeeded: seed))
    }

    /// `randn(count).astype(float32)`.
    mutating func normals(_ count: Int) -> [Float] {
        (0..<count).map { _ in Float(normal()) }
    }

    /// One of a pair by the polar method (Marsaglia & Bray 1964).
    private mutating func normal() -> Double {
        if let cached = cachedNormal {
            cachedNormal = nil
            return cached
        }
        while true {
            let (x, y) = (2 * uniform() - 1, 2 * uniform() - 1)
            let square = x * x + y * y
            guard square < 1, square != 0 else { continue }
            let factor = (-2 * log(square) / square).squareRoot()
            cachedNormal = factor * x
            return factor * y
        }
    }

    /// A double in [0, 1) with 53 random bits of two words.
    private mutating func uniform() -> Double {
        let (upper, lower) = (words.word() >> 5, words.word() >> 6)
        return (Double(upper) * 0x1p26 + Double(lower)) * 0x1p-53
    }
}
