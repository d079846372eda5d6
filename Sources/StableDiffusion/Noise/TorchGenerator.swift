// PyTorch's CPU random generator: mt19937 (Matsumoto & Nishimura 1998) and the way PyTorch 2.13 turns its words into
// uniform numbers (ATen/CPUGeneratorImpl.h, ATen/core/TransformationHelper.h).

/// `torch.Generator("cpu")` after `manual_seed`.
package struct TorchGenerator: Sendable {
    private static let stateSize = 624
    private static let shiftSize = 397

    private var state: [UInt32]
    private var next: Int
    /// The second of the last pair of normals drawn one by one, which the next such draw returns.
    var cachedNormal: Double?

    /// A generator seeded as `manual_seed` does, which uses the lower 32 bits only.
    package init(seed: UInt64) {
        state = [UInt32(truncatingIfNeeded: seed)]
        state.reserveCapacity(Self.stateSize)
        for index in 1..<UInt32(Self.stateSize) {
            let previous = state[state.count - 1]
            state.append(1_812_433_253 &* (previous ^ (previous >> 30)) &+ index)
        }
        next = Self.stateSize
    }

    /// The next 32 bits.
    package mutating func word() -> UInt32 {
        if next == Self.stateSize { twist() }
        var word = state[next]
        next += 1
        word ^= word >> 11
        word ^= (word << 7) & 0x9D2C_5680
        word ^= (word << 15) & 0xEFC6_0000
        word ^= word >> 18
        return word
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

    private mutating func twist() {
        state.withUnsafeMutableBufferPointer { state in
            for index in 0..<Self.stateSize {
                let following = index + 1 < Self.stateSize ? index + 1 : 0
                let mixed = (state[index] & 0x8000_0000) | (state[following] & 0x7FFF_FFFF)
                var source = index + Self.shiftSize
                if source >= Self.stateSize { source -= Self.stateSize }
                state[index] = state[source] ^ (mixed >> 1) ^ (mixed & 1 == 0 ? 0 : 0x9908_B0DF)
            }
        }
        next = 0
    }
}
