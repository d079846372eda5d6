// Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), a generator without a state: word i of a key is a
// function of i. PyTorch on NVIDIA GPUs and TensorFlow draw from it, each with its own layout of the counter and its own way to normals.

internal import Glibc

/// Four words from a counter of four words and a key of two.
struct Philox: Sendable {
    private let key: (UInt32, UInt32)

    /// The generator of a key, whose lower word comes first.
    init(key: UInt64) {
        self.key = (UInt32(truncatingIfNeeded: key), UInt32(truncatingIfNeeded: key >> 32))
    }

    /// The block of a counter of 128 bits.
    ///
    /// - Parameters:
    ///   - low: the counter's lower 64 bits.
    ///   - high: its upper 64 bits.
    func block(low: UInt64, high: UInt64) -> (UInt32, UInt32, UInt32, UInt32) {
        var (c0, c1) = (UInt32(truncatingIfNeeded: low), UInt32(truncatingIfNeeded: low >> 32))
        var (c2, c3) = (UInt32(truncatingIfNeeded: high), UInt32(truncatingIfNeeded: high >> 32))
        var (k0, k1) = key
        for _ in 0..<10 {
            let product0 = 0xD251_1F53 as UInt64 * UInt64(c0)
            let product1 = 0xCD9E_8D57 as UInt64 * UInt64(c2)
            (c0, c1, c2, c3) = (
                UInt32(truncatingIfNeeded: product1 >> 32) ^ c1 ^ k0, UInt32(truncatingIfNeeded: product1),
                UInt32(truncatingIfNeeded: product0 >> 32) ^ c3 ^ k1, UInt32(truncatingIfNeeded: product0)
            )
            k0 &+= 0x9E37_79B9
            k1 &+= 0xBB67_AE85
        }
        return (c0, c1, c2, c3)
    }
}

/// `torch.Generator("cuda")` after `manual_seed`, as `torch.randn` of float32 draws from it (ATen/native/cuda/DistributionTemplates.h and
/// cuRAND's curand_normal.h).
struct CUDAGenerator: Sendable {
    private let philox: Philox
    private var calls: UInt64 = 0

    /// A generator of a seed of 64 bits.
    init(seed: UInt64) {
        philox = Philox(key: seed)
    }

    /// `torch.randn(count)`.
    ///
    /// Each of a GPU's threads draws four numbers; as long as there are enough threads, which depends on the GPU and begins to fail above
    /// some 150 000 numbers, every thread has one number to write, the first. This is what the web UI's source "NV" computes as well.
    mutating func normals(_ count: Int) -> [Float] {
        defer { calls += 1 }
        let unit: Float = 0x1p-32
        let angleUnit: Float = 0x1p-32 * 6.283_185_5
        return (0..<count).map { thread in
            let words = philox.block(low: calls, high: UInt64(thread))
            let uniform = (unit / 2).addingProduct(Float(words.0), unit)
            let angle = (angleUnit / 2).addingProduct(Float(words.1), angleUnit)
            return (-2 * log(uniform)).squareRoot() * sin(angle)
        }
    }
}

/// `tf.random.normal` of float32 with an operation seed and no global one, counted from the start of the process
/// (tensorflow/core/lib/random/random_distributions.h, core/kernels/random_op.cc).
struct TensorFlowGenerator: Sendable {
    /// TensorFlow's graph seed where none is set.
    private let philox = Philox(key: 87_654_321)
    private let operationSeed: UInt64
    private var counter: UInt64 = 0

    /// The operation's seed, taken modulo 2³¹ - 1 as TensorFlow's Python does.
    init(seed: Seed) {
        operationSeed = seed.modulo(1 << 31 - 1)
    }

    /// The next call's numbers.
    mutating func normals(_ count: Int) -> [Float] {
        // A call sets aside 256 blocks for every number.
        defer { counter += UInt64(count) * 256 }
        var numbers: [Float] = []
        numbers.reserveCapacity(count + 3)
        for group in 0..<UInt64((count + 3) / 4) {
            let words = philox.block(low: counter + group, high: operationSeed)
            for (first, second) in [(words.0, words.1), (words.2, words.3)] {
                let angle = 2 * Float.pi * uniform(second)
                let radius = (-2 * log(max(uniform(first), 1e-7))).squareRoot()
                numbers += [radius * sin(angle), radius * cos(angle)]
            }
        }
        return Array(numbers.prefix(count))
    }

    /// A float in [0, 1) from the lower 23 bits.
    private func uniform(_ word: UInt32) -> Float {
        Float(bitPattern: 127 << 23 | word & 0x7F_FFFF) - 1
    }
}
