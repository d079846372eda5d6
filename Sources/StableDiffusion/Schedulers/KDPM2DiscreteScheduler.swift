// DPM-Solver-2 as Karras et al. 2022 (algorithm 2) inspired it, without and with ancestral noise, with the numbers of diffusers 0.42.1
// (schedulers/scheduling_k_dpm_2_discrete.py, scheduling_k_dpm_2_ancestral_discrete.py).

internal import Glibc

extension SamplerSetup {
    /// The midpoint method in log σ.
    func dpm2() -> SamplerProgram {
        midpoint { sigma, next in (next, 0) }
    }

    /// The midpoint method with fresh noise at every step.
    func dpm2Ancestral() -> SamplerProgram {
        midpoint { sigma, next in ancestralStep(from: sigma, to: next) }
    }

    /// Steps by the slope at the geometric mean of both ends; the last one, whose end has no logarithm, by the slope at its start.
    ///
    /// - Parameter split: Where a step goes without noise, and the deviation of the noise after it.
    private func midpoint(_ split: (_ sigma: Double, _ next: Double) -> (down: Double, up: Double)) -> SamplerProgram {
        let visited = sigmaSteps(roundsKarras: true)
        let prediction = configuration.predictionType
        var builder = SamplerProgramBuilder(initNoiseSigma: visited.initNoiseSigma)
        var x = builder.firstSample
        for (index, timestep) in visited.timesteps.enumerated() {
            let sigma = visited.sigmas[index]
            let (down, up) = split(sigma, visited.sigmas[index + 1])
            let output = builder.evaluate(x, at: timestep, sigma: sigma)
            let derivative = (x - prediction.picture(x, output, sigma: sigma)) / sigma
            let middle = (sigma * down).squareRoot()
            let half = builder.keep(x + (middle - sigma) * derivative)
            if middle > 0 {
                let middleOutput = builder.evaluate(
                    half,
                    at: visited.table.timestep(of: middle),
                    sigma: middle
                )
                let middleDerivative = (half - prediction.picture(half, middleOutput, sigma: middle)) / middle
                x = builder.keep(x + (down - sigma) * middleDerivative + up * builder.noise())
            } else {
                x = half
            }
            builder.endStep()
        }
        return builder.program
    }
}
