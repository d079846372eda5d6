// PyTorch's CPU random generator: mt19937 and the way PyTorch 2.13 turns its words into uniform numbers (ATen/CPUGeneratorImpl.h,
// ATen/core/TransformationHelper.h).

/// `torch.Generator("cpu")` after `manual_seed`.
package struct TorchGenerator: Sendable {
    private var words: MersenneTwister
    /// The second of the last pair of normals drawn one by one, which the next such draw returns.
    var cachedNormal: Double?

    /// A generator seeded as `manual_seed` does, which uses the lower 32 bits only.
    package init(seed: UInt64) {
        words = MersenneTwister(seed: UInt32(truncatingIfNeeded: seed))
    }

    /// The next 32 bits.
    package mutating func word() -> UInt32 {
        words.word()
    }

    /// A uniform float in [0, 1), with 24 random bits.
    mutating func uniformFloat() -> Float {
        Float(word() & 0xFF_FFFF) * 0x1p-24
    }

    /// A uniform double in [0, 1), with 53 random bits of two words, the upper word drawn first.
    mutating func uniformDouble() -> Double {
        let upper = UInt64(word())
        let lower = UInt64(word())
        return Double((upper << 32 | lower) & (1 << 53 - 1)) * 0x1p-53
    }
}
