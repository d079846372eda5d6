// The element types a weight can be stored in, how they become 32-bit floats, and a check for infinities and NaN that
// is fast enough to run over every weight of a checkpoint.

/// How the elements of a stored tensor are encoded, all little-endian.
package enum WeightType: String, CaseIterable, Sendable {
    case float32 = "F32"
    case float16 = "F16"
    case bfloat16 = "BF16"
    case float64 = "F64"
    case int64 = "I64"

    /// Bytes of one element.
    package var size: Int {
        switch self {
        case .float16, .bfloat16: 2
        case .float32: 4
        case .float64, .int64: 8
        }
    }

    /// Whether elements of this type are read as weights.
    ///
    /// The others are tolerated in files but never asked for.
    package var isWeight: Bool {
        switch self {
        case .float32, .float16, .bfloat16: true
        case .float64, .int64: false
        }
    }

    /// Index of the first infinity or NaN; nil when all elements are finite.
    ///
    /// A float is not finite exactly if all bits of its exponent are set. Masking the exponent and adding one unit of
    /// it carries into the sign bit then and only then, and never out of the element, so that whole words of several
    /// elements are tested without a comparison.
    func firstNonFinite(in bytes: UnsafeRawBufferPointer) -> Int? {
        guard let base = bytes.baseAddress, self != .int64 else { return nil }
        let (exponents, units, signs) = masks
        let wordSize = MemoryLayout<UInt64>.size
        let words = bytes.count / wordSize
        // Small enough to search again for the index, large enough that the loop inside is all that matters.
        let block = 4096
        for start in stride(from: 0, to: words, by: block) {
            let end = min(start + block, words)
            var carries: UInt64 = 0
            for index in start..<end {
                let word = base.loadUnaligned(fromByteOffset: index &* wordSize, as: UInt64.self)
                carries |= (word & exponents) &+ units
            }
            if carries & signs != 0 { return firstNonFinite(in: bytes, from: start * wordSize / size) }
        }
        return firstNonFinite(in: bytes, from: words * wordSize / size)
    }

    /// The exponent bits, the lowest exponent bit and the sign bit of every element in a word.
    private var masks: (exponents: UInt64, units: UInt64, signs: UInt64) {
        switch self {
        case .float16: (0x7C00_7C00_7C00_7C00, 0x0400_0400_0400_0400, 0x8000_8000_8000_8000)
        case .bfloat16: (0x7F80_7F80_7F80_7F80, 0x0080_0080_0080_0080, 0x8000_8000_8000_8000)
        case .float32: (0x7F80_0000_7F80_0000, 0x0080_0000_0080_0000, 0x8000_0000_8000_0000)
        case .float64: (0x7FF0_0000_0000_0000, 0x0010_0000_0000_0000, 0x8000_0000_0000_0000)
        case .int64: (0, 0, 0)
        }
    }

    private func firstNonFinite(in bytes: UnsafeRawBufferPointer, from start: Int) -> Int? {
        let exponents = masks.exponents & (size == 8 ? .max : 1 << UInt64(size * 8) - 1)
        return (start..<(bytes.count / size)).first { index in
            var bits: UInt64 = 0
            for byte in 0..<size { bits |= UInt64(bytes[index * size + byte]) << UInt64(byte * 8) }
            return bits & exponents == exponents
        }
    }

    /// Finite elements as 32-bit floats; see `convert(_:into:)`.
    func floats(_ bytes: UnsafeRawBufferPointer) -> [Float] {
        let elements = bytes.count / size
        return [Float](unsafeUninitializedCapacity: elements) { buffer, count in
            convert(bytes, into: UnsafeMutableBufferPointer(rebasing: buffer[..<elements]))
            count = elements
        }
    }

    /// Writes finite elements as 32-bit floats.
    ///
    /// Only for types that are weights (traps).
    ///
    /// - Parameters:
    ///   - bytes: the stored elements, at any alignment.
    ///   - output: as many floats.
    func convert(_ bytes: UnsafeRawBufferPointer, into output: UnsafeMutableBufferPointer<Float>) {
        precondition(isWeight && bytes.count == output.count * size, "convert: \(bytes.count) bytes of \(self)")
        guard let base = bytes.baseAddress, let target = output.baseAddress else { return }
        let count = output.count
        switch self {
        case .float32:
            UnsafeMutableRawPointer(target).copyMemory(from: base, byteCount: bytes.count)
        case .bfloat16:
            for index in 0..<count {
                let bits = base.loadUnaligned(fromByteOffset: index &* 2, as: UInt16.self)
                target[index] = Float(bitPattern: UInt32(truncatingIfNeeded: bits) &<< 16)
            }
        case .float16:
            // Moves exponent and fraction into place and corrects the exponent's bias, 127 - 15, by a multiplication,
            // which is exact and also normalises subnormal halves.
            let bias = Float(bitPattern: 0x7780_0000)
            for index in 0..<count {
                let bits = UInt32(
                    truncatingIfNeeded: base.loadUnaligned(fromByteOffset: index &* 2, as: UInt16.self)
                )
                let magnitude = Float(bitPattern: (bits & 0x7FFF) &<< 13) * bias
                target[index] = Float(bitPattern: magnitude.bitPattern | (bits & 0x8000) &<< 16)
            }
        case .float64, .int64:
            break
        }
    }
}
