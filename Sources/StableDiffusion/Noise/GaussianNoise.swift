// Gaussian numbers bit for bit as `torch.randn` draws them on a CPU (PyTorch 2.13,
// ATen/native/cpu/DistributionTemplates.h).
//
// PyTorch has two paths. Below 16 numbers it draws pairs in double precision. From 16 on it fills the output with
// uniform floats and transforms blocks of 16 in place, with logarithm, sine and cosine from polynomials that are not
// the C library's. Those are the single-precision ones of Cephes (Moshier), compiled with fused multiply-adds on
// processors with AVX2 or AVX-512: which of the roundings are fused is part of the numbers and is reproduced here. On
// processors without AVX2 PyTorch's own numbers differ in the last bits.

internal import Glibc

extension TorchGenerator {
    /// `torch.randn(count)` as 32-bit floats.
    package mutating func normals(_ count: Int) -> [Float] {
        guard count >= 16 else { return (0..<max(count, 0)).map { _ in Float(normal()) } }
        var values = (0..<count).map { _ in uniformFloat() }
        values.withUnsafeMutableBufferPointer { buffer in
            for start in stride(from: 0, through: count - 16, by: 16) {
                transform(UnsafeMutableBufferPointer(rebasing: buffer[start..<(start + 16)]))
            }
            // A last, partial block is drawn anew together with as many numbers before it as make it whole.
            guard !count.isMultiple(of: 16) else { return }
            for index in (count - 16)..<count { buffer[index] = uniformFloat() }
            transform(UnsafeMutableBufferPointer(rebasing: buffer[(count - 16)...]))
        }
        return values
    }

    /// One normal number in double precision; they come in pairs (Box & Muller 1958).
    private mutating func normal() -> Double {
        if let cached = cachedNormal {
            cachedNormal = nil
            return cached
        }
        let angle = 2 * Double.pi * uniformDouble()
        let radius = (-2 * log1p(-uniformDouble())).squareRoot()
        cachedNormal = radius * sin(angle)
        return radius * cos(angle)
    }

    /// Turns 16 uniform floats into normal ones: element i and element i + 8 are a pair.
    private func transform(_ block: UnsafeMutableBufferPointer<Float>) {
        for index in 0..<8 {
            let radius = (-2 * naturalLogarithm(1 - block[index])).squareRoot()
            let (sine, cosine) = sineAndCosine(Float(2 * Double.pi) * block[index + 8])
            // PyTorch multiplies by a deviation of 1 and adds a mean of 0, which makes a negative zero positive.
            block[index] = radius * cosine + 0
            block[index + 8] = radius * sine + 0
        }
    }
}

/// Natural logarithm of a positive normal float.
private func naturalLogarithm(_ value: Float) -> Float {
    // value = mantissa * 2^exponent with the mantissa between the roots of 1/2 and 2.
    var mantissa = Float(bitPattern: value.bitPattern & 0x007F_FFFF | 0x3F00_0000)
    var exponent = Float(Int32(value.bitPattern >> 23) - 126)
    if mantissa < 0.707106781186547524 {
        exponent -= 1
        mantissa = (mantissa - 1) + mantissa
    } else {
        mantissa -= 1
    }
    let square = mantissa * mantissa
    var sum: Float = 7.0376836292e-2
    for coefficient in logarithmCoefficients { sum = coefficient.addingProduct(sum, mantissa) }
    sum = sum * mantissa
    // The logarithm of 2 in two parts, the larger one of few digits.
    sum = (exponent * -2.12194440e-4).addingProduct(sum, square)
    sum = sum.addingProduct(square, -0.5)
    return (mantissa + sum).addingProduct(exponent, 0.693359375)
}

private let logarithmCoefficients: [Float] = [
    -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1, 2.0000714765e-1,
    -2.4999993993e-1, 3.3333331174e-1,
]

/// Sine and cosine of an angle from 0 to 2π.
private func sineAndCosine(_ angle: Float) -> (sine: Float, cosine: Float) {
    // The octant, rounded up to even: the rest is within π/4 of a multiple of π/2.
    let octant = (Int32(angle * 1.27323954473516) + 1) & ~1
    let multiple = Float(octant)
    // π/4 in three parts, so that the subtraction loses nothing.
    let rest =
        angle
        .addingProduct(multiple, -0.78515625)
        .addingProduct(multiple, -2.4187564849853515625e-4)
        .addingProduct(multiple, -3.77489497744594108e-8)
    let square = rest * rest

    var even = Float(-1.388731625493765e-3).addingProduct(2.443315711809948e-5, square)
    even = Float(4.166664568298827e-2).addingProduct(even, square)
    even = even * square
    even = (-0.5 * square).addingProduct(even, square)
    even += 1

    var odd = Float(8.3321608736e-3).addingProduct(-1.9515295891e-4, square)
    odd = Float(-1.6666654611e-1).addingProduct(odd, square)
    odd = odd * square
    odd = rest.addingProduct(odd, rest)

    let swapped = octant & 2 != 0
    let sine = swapped ? even : odd
    let cosine = swapped ? odd : even
    return (octant & 4 == 0 ? sine : -sine, (octant - 2) & 4 == 0 ? -cosine : cosine)
}
