// How far each operator may be from its double-precision reference. One table, so that a loosened bound is seen.

package import TensorOps

/// Operators whose results are compared.
///
/// The bounds are about four times the worst that was measured over all tests, on PoCL 3.1 and on Intel's runtime, which agree. What is
/// measured is the rounding of 32-bit sums: it grows with their length, 11520 terms in the longest convolution and 4096 keys in the
/// longest attention.
package enum OperatorTolerance: String, Sendable {
    /// Worst: 2.4e-12, 9.9e-6 (3x3 over 1280 channels).
    case convolution
    /// Worst: 2.9e-11, 6.6e-5; F(4x4, 3x3) adds what cancels later, which costs it a digit and a half (Lavin & Gray 2016).
    case winograd
    /// Worst: 2.0e-12, 1.4e-5 (4096 keys, one head of 512).
    case attention
    /// Worst: 1.7e-10, 1.8e-4; a score near 10 000 has a unit in the last place of 1e-3, which is a relative error of its probability.
    case attentionWithHugeScores
    /// Worst: 4.3e-7, 6.0e-3; probabilities are rounded to bfloat16, 2^-9 of each.
    case attentionOfPairs
    /// Worst: 4.6e-9, 6.4e-4 (emulated, 95 keys, heads of 512); probabilities are rounded to half, at most 2^-12 of each.
    case attentionOnTensorCores
    /// Worst: 3.3e-14, 2.2e-6 (262 144 elements a group).
    case groupNorm
    /// Worst: 5.5e-14, 2.6e-6 (1024 channels).
    case layerNorm
    /// Worst: 9.2e-8, 1.2e-3, of the plain form; a mean of 1000 has a unit in the last place of 6e-5 beside a deviation of 1.
    case normOfDistantMean
    /// Worst: 8.1e-14, 5.0e-7 (guidance of 7.5, where predictions cancel).
    case elementwise

    /// The bound for results in a storage type.
    ///
    /// Inputs and weights are rounded to theirs before the reference sees them, and rounding the result to half or bfloat16 does not
    /// count, so one bound holds for all.
    package func bound(_ storage: ElementType) -> Tolerance {
        switch self {
        case .convolution: Tolerance(nmse: 1e-11, peak: 4e-5, storage: storage)
        case .winograd: Tolerance(nmse: 1e-10, peak: 1e-4, storage: storage)
        case .attentionOfPairs: Tolerance(nmse: 2e-6, peak: 1e-2, storage: storage)
        case .attentionOnTensorCores: Tolerance(nmse: 1.8e-8, peak: 2.5e-3, storage: storage)
        case .attention: Tolerance(nmse: 8e-12, peak: 6e-5, storage: storage)
        case .attentionWithHugeScores: Tolerance(nmse: 7e-10, peak: 7e-4, storage: storage)
        case .groupNorm: Tolerance(nmse: 1.4e-13, peak: 9e-6, storage: storage)
        case .layerNorm: Tolerance(nmse: 2.2e-13, peak: 1e-5, storage: storage)
        case .normOfDistantMean: Tolerance(nmse: 4e-7, peak: 5e-3, storage: storage)
        case .elementwise: Tolerance(nmse: 3.2e-13, peak: 2e-6, storage: storage)
        }
    }
}
