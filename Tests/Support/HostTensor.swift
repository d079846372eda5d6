// Numbers for the tests: tensors in host memory, reproducible random values, and the rounding of each storage type.

package import TensorOps

/// A tensor in host memory, contiguous, innermost extent last.
package struct HostTensor: Sendable {
    /// Extents, outermost first.
    package let shape: [Int]
    /// As many values as the shape has elements.
    package var values: [Float]

    /// A tensor of given values (traps if their number does not fit the shape).
    package init(_ shape: [Int], _ values: [Float]) {
        precondition(values.count == shape.reduce(1, *), "\(values.count) values for \(shape)")
        self.shape = shape
        self.values = values
    }

    /// Normally distributed values with a mean and a standard deviation; the same for the same seed.
    package static func random(
        _ shape: [Int],
        seed: UInt64,
        mean: Float = 0,
        deviation: Float = 1
    ) -> HostTensor {
        var generator = SplitMix64(state: seed)
        let values = (0..<shape.reduce(1, *)).map { _ in mean + deviation * generator.nextApproximatelyNormal() }
        return HostTensor(shape, values)
    }

    /// The values as a storage type holds them.
    package func rounded(to type: ElementType) -> HostTensor {
        type == .float32 ? self : HostTensor(shape, values.map { roundToStorage($0, type) })
    }

    /// Number of elements.
    package var count: Int { values.count }

    /// The innermost extent.
    package var channels: Int { shape.last ?? 1 }
}

/// The nearest number a storage type can hold, ties to even; too large becomes infinite.
package func roundToStorage(_ value: Float, _ type: ElementType) -> Float {
    switch type {
    case .float32: return value
    case .float16: return Float(Float16(value))
    case .bfloat16:
        guard !value.isNaN else { return value }
        let bits = UInt64(value.bitPattern)
        return Float(bitPattern: UInt32(truncatingIfNeeded: (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff_0000))
    }
}

/// The bytes of values in a storage type, little-endian, as a checkpoint holds them.
package func storageBytes(_ values: [Float], _ type: ElementType) -> [UInt8] {
    switch type {
    case .float32: values.withUnsafeBytes { [UInt8]($0) }
    case .float16: values.map { Float16($0).bitPattern }.withUnsafeBytes { [UInt8]($0) }
    case .bfloat16:
        values.map { UInt16(truncatingIfNeeded: roundToStorage($0, .bfloat16).bitPattern >> 16) }
            .withUnsafeBytes { [UInt8]($0) }
    }
}

/// Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators".
package struct SplitMix64: RandomNumberGenerator, Sendable {
    private var state: UInt64

    /// A generator that gives the same numbers for the same state.
    package init(state: UInt64) {
        self.state = state
    }

    /// The next 64 bits.
    package mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var z = state
        z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
        z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
        return z ^ (z >> 31)
    }

    /// The sum of four uniform numbers, with mean 0 and variance 1: normal enough, and quick.
    package mutating func nextApproximatelyNormal() -> Float {
        let bits = next()
        var sum: Float = 0
        for part in 0..<4 { sum += Float(bits >> (16 * UInt64(part)) & 0xffff) }
        return (sum / 65536 - 2) * 1.732_050_8
    }
}

/// All of `0..<count` when they are few; otherwise the ends and a random choice, in order.
package func sample(_ count: Int, limit: Int, seed: UInt64 = 1) -> [Int] {
    guard count > limit else { return Array(0..<count) }
    var generator = SplitMix64(state: seed)
    var chosen: Set = [0, count - 1]
    while chosen.count < limit { chosen.insert(Int.random(in: 0..<count, using: &generator)) }
    return chosen.sorted()
}
