// Compares what a device computed with double-precision references, and says where and by how much they differ.

package import TensorOps
package import Testing

/// How far an operator's result may be from its reference.
package struct Tolerance: Sendable {
    /// Bound on the sum of squared errors over the sum of squared references.
    package let nmse: Double
    /// Bound on every single error, in units of the root mean square of the reference: one wrong element among millions hides from `nmse`.
    package let peak: Double
    /// How the result is stored.
    ///
    /// Its rounding to nearest is the format's, not the operator's, and does not count as error.
    package var storage: ElementType

    /// Bounds on the normalised mean squared error and on the largest error over the root mean square.
    package init(nmse: Double, peak: Double, storage: ElementType = .float32) {
        self.nmse = nmse
        self.peak = peak
        self.storage = storage
    }
}

/// How two lists of numbers differ.
///
/// An element that is not finite counts as equal only to the same infinity, or NaN to NaN.
package struct Comparison: Sendable, CustomStringConvertible {
    /// Sum of squared errors over the sum of squared references; 0 if both are 0.
    package let nmse: Double
    /// The largest absolute error.
    package let maxAbs: Double
    /// The largest absolute error over the root mean square of the reference; 0 if both are 0.
    package let peak: Double
    /// Where the largest absolute error is.
    package let worst: Int

    /// The numbers on one line.
    package var description: String { "NMSE \(nmse), max abs \(maxAbs) (\(peak) rms) at \(worst)" }
}

/// Compares element by element, beyond the rounding of a storage type; the counts must agree (traps).
package func compare(_ actual: [Float], _ expected: [Double], storage: ElementType = .float32) -> Comparison {
    precondition(actual.count == expected.count, "\(actual.count) numbers against \(expected.count)")
    var squaredError = 0.0
    var maxAbs = 0.0
    var worst = 0
    for index in actual.indices {
        let error = absoluteError(actual[index], expected[index], storage)
        squaredError += error * error
        if error > maxAbs { (maxAbs, worst) = (error, index) }
    }
    let squaredReference = sumOfSquares(expected)
    let rms = (squaredReference / Double(max(actual.count, 1))).squareRoot()
    return Comparison(
        nmse: squaredError == 0 ? 0 : squaredError / squaredReference,
        maxAbs: maxAbs,
        peak: maxAbs == 0 ? 0 : maxAbs / rms,
        worst: worst
    )
}

private func sumOfSquares(_ values: [Double]) -> Double {
    values.reduce(0) { $0 + ($1.isFinite ? $1 * $1 : 0) }
}

/// The error beyond half a unit in the last place of the storage type; float32's is part of the operator's own.
private func absoluteError(_ actual: Float, _ expected: Double, _ storage: ElementType) -> Double {
    let difference = abs(Double(actual) - expected)
    guard difference.isFinite else {
        return Double(actual) == expected || (actual.isNaN && expected.isNaN) ? 0 : .infinity
    }
    let rounding =
        switch storage {
        case .float32: 0.0
        case .float16: max(abs(expected) * 0x1p-11, 0x1p-25)
        case .bfloat16: abs(expected) * 0x1p-8
        }
    return max(0, difference - rounding)
}

/// Expects a device's result to agree with its reference, and otherwise tells the first element that does not, with both values.
package func expectClose(
    _ actual: [Float],
    _ expected: [Double],
    _ tolerance: Tolerance,
    _ context: @autoclosure () -> String = "",
    sourceLocation: SourceLocation = #_sourceLocation
) {
    guard actual.count == expected.count else {
        Issue.record(
            "\(context()): \(actual.count) elements where the reference has \(expected.count)",
            sourceLocation: sourceLocation
        )
        return
    }
    let comparison = compare(actual, expected, storage: tolerance.storage)
    if comparison.nmse <= tolerance.nmse && comparison.peak <= tolerance.peak { return }
    let limit = tolerance.peak * (sumOfSquares(expected) / Double(max(expected.count, 1))).squareRoot()
    let bad = actual.indices.filter { absoluteError(actual[$0], expected[$0], tolerance.storage) > limit }
    let example = bad.first ?? comparison.worst
    Issue.record(
        """
        \(context()): \(comparison); allowed NMSE \(tolerance.nmse), \(tolerance.peak) rms. \(bad.count) of \(actual.count) elements \
        are beyond that; element \(example) is \(actual[example]) instead of \(expected[example])
        """,
        sourceLocation: sourceLocation
    )
}
