// Which timesteps and noise levels a number of steps visits: the spacings and schedules of diffusers 0.42.1, with its
// roundings to 32 bits where they decide about a timestep.

internal import Glibc

extension TimestepSpacing {
    /// The timesteps of `count` steps from noise to picture, the last of training first.
    ///
    /// - Parameters:
    ///   - count: number of steps, at least 1.
    ///   - trained: number of timesteps of training.
    ///   - offset: added to those of leading spacing.
    ///   - isRounded: whether linspace spacing is rounded to whole timesteps.
    func timesteps(_ count: Int, of trained: Int, offset: Int, isRounded: Bool) -> [Double] {
        switch self {
        case .leading:
            // As many steps as timesteps, plus the offset, would begin one beyond the last timestep there is.
            let ratio = trained / count
            return (0..<count).reversed().map { Double(min($0 * ratio + offset, trained - 1)) }
        case .trailing:
            // The difference of the first two elements, as numpy's arange takes it.
            let delta = (Double(trained) - Double(trained) / Double(count)) - Double(trained)
            return (0..<count).map { index in
                (Double(trained) + Double(index) * delta).rounded(.toNearestOrEven) - 1
            }
        case .linspace:
            let step = count > 1 ? Double(trained - 1) / Double(count - 1) : 0
            return (0..<count).reversed().map { index in
                // numpy sets the last element instead of computing it.
                let timestep = index == count - 1 && count > 1 ? Double(trained - 1) : Double(index) * step
                return isRounded ? timestep.rounded(.toNearestOrEven) : Double(Float(timestep))
            }
        }
    }

    /// The timesteps of the multistep solvers, which space one step more and leave the last timestep out.
    func multistepTimesteps(_ count: Int, of trained: Int, offset: Int) -> [Double] {
        switch self {
        case .trailing: timesteps(count, of: trained, offset: offset, isRounded: true)
        case .leading, .linspace:
            Array(timesteps(count + 1, of: trained, offset: offset, isRounded: true).dropLast())
        }
    }
}

/// The noise level of every timestep of training as σ, the deviation of the noise beside an unscaled picture.
struct SigmaTable {
    /// σ by timestep, growing.
    let sigmas: [Double]
    private let logarithms: [Double]

    /// σ = √((1 - ᾱ) / ᾱ), in float32 as diffusers computes it.
    ///
    /// - Parameter alphasCumprod: a schedule whose values are all above 0.
    init(alphasCumprod: [Float]) {
        sigmas = alphasCumprod.map { Double(((1 - $0) / $0).squareRoot()) }
        logarithms = sigmas.map { Double(Float(log($0))) }
    }

    /// σ at a timestep between two of training.
    func sigma(at timestep: Double) -> Double {
        let last = sigmas.count - 1
        guard timestep < Double(last) else { return sigmas[last] }
        guard timestep > 0 else { return sigmas[0] }
        let low = Int(timestep)
        return (sigmas[low + 1] - sigmas[low]) * (timestep - Double(low)) + sigmas[low]
    }

    /// The timestep of a σ, by interpolation between the logarithms.
    func timestep(of sigma: Double) -> Double {
        guard logarithms.count > 1 else { return 0 }
        let logarithm = log(max(sigma, 1e-10))
        // The last timestep of no more noise; they grow.
        let above = logarithms.partitioningIndex { $0 > logarithm }
        let low = min(max(above - 1, 0), logarithms.count - 2)
        let weight = (logarithms[low] - logarithm) / (logarithms[low] - logarithms[low + 1])
        let clipped = min(max(weight, 0), 1)
        return (1 - clipped) * Double(low) + clipped * Double(low + 1)
    }
}

extension SigmaSchedule {
    /// `count` noise levels from the highest to the lowest.
    ///
    /// - Parameter uniform: what the spacing of timesteps gives; returned as it is by `uniform`.
    func sigmas(_ count: Int, from highest: Double, to lowest: Double, uniform: [Double]) -> [Double] {
        switch self {
        case .uniform: uniform
        case .karras:
            // Karras et al. 2022, equation 5, with ρ = 7.
            linspace(0, 1, count).map { ramp in
                let (high, low) = (pow(highest, 1 / 7.0), pow(lowest, 1 / 7.0))
                return pow(high + ramp * (low - high), 7)
            }
        case .exponential: linspace(log(highest), log(lowest), count).map { exp($0) }
        case .beta:
            // Lee et al. 2024 ("Beta Sampling is All You Need"), with α = β = 0.6.
            linspace(0, 1, count).map { lowest + betaQuantile(1 - $0, shape: 0.6) * (highest - lowest) }
        }
    }
}

/// numpy's linspace.
private func linspace(_ start: Double, _ end: Double, _ count: Int) -> [Double] {
    guard count > 1 else { return [start] }
    let step = (end - start) / Double(count - 1)
    return (0..<count).map { $0 == count - 1 ? end : start + Double($0) * step }
}

/// The quantile of the beta distribution with both parameters `shape`.
func betaQuantile(_ probability: Double, shape: Double) -> Double {
    guard probability > 0, probability < 1 else { return probability <= 0 ? 0 : 1 }
    // The distribution is symmetric, and its function is computed best in the lower half.
    guard probability <= 0.5 else { return 1 - betaQuantile(1 - probability, shape: shape) }
    let logBeta = 2 * lgamma(shape) - lgamma(2 * shape)
    var (low, high) = (0.0, 0.5)
    while true {
        let middle = (low + high) / 2
        guard middle > low, middle < high else { return middle }
        if betaDistribution(middle, shape: shape, logBeta: logBeta) < probability {
            low = middle
        } else {
            high = middle
        }
    }
}

/// The regularised incomplete beta function I_x(a, a) for x up to 1/2, by its continued fraction (Numerical Recipes 6.4).
private func betaDistribution(_ x: Double, shape a: Double, logBeta: Double) -> Double {
    let front = exp(a * log(x) + a * log1p(-x) - logBeta) / a
    // Lentz's method; numerators d_2m and d_2m+1 alternate.
    var c = 1.0
    var d = 1 / (1 - 2 * a * x / (a + 1))
    var fraction = d
    for m in 1...200 {
        let m = Double(m)
        var change = 1.0
        for numerator in [
            m * (a - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (2 * a + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ] {
            d = 1 / (1 + numerator * d)
            c = 1 + numerator / c
            change = c * d
            fraction *= change
        }
        if abs(change - 1) < 1e-15 { break }
    }
    return front * fraction
}

extension Array {
    /// The index of the first element that a condition holds for, when it holds for all that follow.
    fileprivate func partitioningIndex(where holds: (Element) -> Bool) -> Int {
        var (low, high) = (0, count)
        while low < high {
            let middle = (low + high) / 2
            if holds(self[middle]) { high = middle } else { low = middle + 1 }
        }
        return low
    }
}
