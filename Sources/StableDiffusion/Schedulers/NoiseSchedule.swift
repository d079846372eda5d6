// How much of the picture is left at each timestep of training, computed with the very roundings of diffusers 0.42.1 on
// a CPU: 32-bit floats, fused multiply-adds where PyTorch's kernels have them, products accumulated in double.

internal import Glibc

/// The cumulative products of a noise schedule.
struct NoiseSchedule: Sendable, Equatable {
    /// ᾱ_t, the share of the picture's variance at each timestep of training; from near 1 down to near 0.
    let alphasCumprod: [Float]

    /// Computes the schedule a configuration describes.
    init(_ configuration: SchedulerConfiguration) {
        var betas = Self.betas(configuration)
        if configuration.rescaleBetasZeroSNR { betas = Self.rescaledToZeroTerminalSNR(betas) }
        alphasCumprod = Self.cumulativeProduct(betas.map { 1 - $0 })
    }

    private static func betas(_ configuration: SchedulerConfiguration) -> [Float] {
        if let trained = configuration.trainedBetas { return trained.map { Float($0) } }
        let count = configuration.numTrainTimesteps
        switch configuration.betaSchedule {
        case .linear:
            return linspace(configuration.betaStart, configuration.betaEnd, count: count)
        case .scaledLinear:
            return linspace(configuration.betaStart.squareRoot(), configuration.betaEnd.squareRoot(), count: count)
                .map { $0 * $0 }
        case .squaredCosineCapV2:
            // Nichol & Dhariwal 2021, with 0.999 as the largest beta.
            func alphaBar(_ t: Double) -> Double {
                let cosine = cos((t + 0.008) / 1.008 * .pi / 2)
                return cosine * cosine
            }
            return (0..<count).map { step in
                let start = alphaBar(Double(step) / Double(count))
                let end = alphaBar(Double(step + 1) / Double(count))
                return Float(min(1 - end / start, 0.999))
            }
        }
    }

    /// `torch.linspace` in float32: from both ends towards the middle, one rounding an element.
    private static func linspace(_ start: Double, _ end: Double, count: Int) -> [Float] {
        let start = Float(start)
        let end = Float(end)
        guard count > 1 else { return [start] }
        let step = (end - start) / Float(count - 1)
        return (0..<count).map { index in
            index < count / 2
                ? start.addingProduct(step, Float(index))
                : end.addingProduct(-step, Float(count - index - 1))
        }
    }

    /// `torch.cumprod` in float32, which accumulates in double.
    private static func cumulativeProduct(_ values: [Float]) -> [Float] {
        var product = 1.0
        return values.map { value in
            product *= Double(value)
            return Float(product)
        }
    }

    /// Lin et al.
    ///
    /// 2023, algorithm 1: shifts and scales √ᾱ so that it ends in zero and starts where it did.
    private static func rescaledToZeroTerminalSNR(_ betas: [Float]) -> [Float] {
        var roots = cumulativeProduct(betas.map { 1 - $0 }).map { $0.squareRoot() }
        guard let first = roots.first, let last = roots.last else { return betas }
        let scale = first / (first - last)
        roots = roots.map { ($0 - last) * scale }
        let alphaBars = roots.map { $0 * $0 }
        return alphaBars.indices.map { index in
            1 - (index == 0 ? alphaBars[0] : alphaBars[index] / alphaBars[index - 1])
        }
    }
}
