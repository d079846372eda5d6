// mt19937 (Matsumoto & Nishimura 1998), which PyTorch draws from on a CPU and NumPy's RandomState does.

/// The generator's words.
struct MersenneTwister: Sendable {
    private static let stateSize = 624
    private static let shiftSize = 397

    private var state: [UInt32]
    private var next: Int

    /// A generator seeded with 32 bits by the authors' `init_genrand` of 2002.
    init(seed: UInt32) {
        state = [seed]
        state.reserveCapacity(Self.stateSize)
        for index in 1..<UInt32(Self.stateSize) {
            let previous = state[state.count - 1]
            state.append(1_812_433_253 &* (previous ^ (previous >> 30)) &+ index)
        }
        next = Self.stateSize
    }

    /// The next 32 bits.
    mutating func word() -> UInt32 {
        if next == Self.stateSize { twist() }
        var word = state[next]
        next += 1
        word ^= word >> 11
        word ^= (word << 7) & 0x9D2C_5680
        word ^= (word << 15) & 0xEFC6_0000
        word ^= word >> 18
        return word
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
