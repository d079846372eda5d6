// Diffusion exponential integrator sampler (Zhang & Chen 2023), multistep of order 2 in log ρ, with the numbers of diffusers 0.42.1
// (schedulers/scheduling_deis_multistep.py).

internal import Glibc

extension SamplerSetup {
    /// The DEIS sampler; it ends at the lowest noise level of training, not at none.
    func deis() -> SamplerProgram {
        let visited = multistepSigmaSteps { sigmas, table in
            // Schedules repeat their last level, which makes the last step one that changes nothing, as in diffusers.
            schedule == .uniform ? table.sigmas[0] : sigmas[sigmas.count - 1]
        }
        let prediction = configuration.predictionType
        var builder = SamplerProgramBuilder(initNoiseSigma: visited.initNoiseSigma)
        var x = builder.firstSample
        var earlier: Combination?
        for (index, timestep) in visited.timesteps.enumerated() {
            let (sigma, next) = (visited.sigmas[index], visited.sigmas[index + 1])
            let (level, nextLevel) = (NoiseLevel(sigma: sigma), NoiseLevel(sigma: next))
            let output = builder.evaluate(x, at: timestep, level: level)
            let noise = prediction.noise(x, output, level)
            let isFirstOrder = index == visited.timesteps.count - 1 && configuration.lowerOrderFinal && steps < 15
            if let earlier, !isFirstOrder {
                let before = visited.sigmas[index - 1]
                let weight = logarithmicIntegral(from: sigma, to: next, one: sigma, zero: before)
                let earlierWeight = logarithmicIntegral(from: sigma, to: next, one: before, zero: sigma)
                x = builder.keep(
                    nextLevel.signal * (x / level.signal + weight * noise + earlierWeight * earlier)
                )
            } else {
                x = builder.keep(
                    nextLevel.signal / level.signal * x - nextLevel.noise * (sigma / next - 1) * noise
                )
            }
            builder.endStep()
            earlier = noise
        }
        return builder.program
    }
}

/// The integral over ρ of the line in log ρ that is 1 at one place and 0 at another.
private func logarithmicIntegral(from start: Double, to end: Double, one: Double, zero: Double) -> Double {
    func antiderivative(_ rho: Double) -> Double { rho * (log(rho) - log(zero) - 1) / (log(one) - log(zero)) }
    return antiderivative(end) - antiderivative(start)
}
