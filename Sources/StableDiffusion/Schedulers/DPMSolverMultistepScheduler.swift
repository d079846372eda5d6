// DPM-Solver++ of order 2 (Lu et al. 2022), multistep, without and with noise (SDE-DPM-Solver++), with the numbers of diffusers 0.42.1
// (schedulers/scheduling_dpmsolver_multistep.py, solver_type midpoint).

internal import Glibc

extension SamplerSetup {
    /// DPM++ 2M, and DPM++ 2M SDE of which it is the case without noise, `eta` = 0.
    ///
    /// With λ = log(α/σ) and h its growth in a step: equation 4.7 of the paper, where `eta` scales the noise as k-diffusion does; 1 is
    /// diffusers' `sde-dpmsolver++`.
    func dpmSolverMultistep() -> SamplerProgram {
        let visited = multistepSigmaSteps { _, table in configuration.finalSigmasType == .sigmaMin ? table.sigmas[0] : 0
        }
        let prediction = configuration.predictionType
        var builder = SamplerProgramBuilder(initNoiseSigma: visited.initNoiseSigma)
        var x = builder.firstSample
        var earlier: Combination?
        for (index, timestep) in visited.timesteps.enumerated() {
            let (sigma, next) = (visited.sigmas[index], visited.sigmas[index + 1])
            let (level, nextLevel) = (NoiseLevel(sigma: sigma), NoiseLevel(sigma: next))
            let output = builder.evaluate(x, at: timestep, level: level)
            let picture = prediction.picture(x, output, level)

            let isLast = index == visited.timesteps.count - 1
            let isFirstOrder =
                isLast
                && (configuration.eulerAtFinal || (configuration.lowerOrderFinal && steps < 15)
                    || configuration.finalSigmasType == .zero)
            // e^-h; a last σ of 0 makes h infinite.
            let decay = next / sigma
            let gain = nextLevel.signal * (1 - pow(decay, 1 + eta))
            var target = picture
            if let earlier, !isFirstOrder {
                let (h, h0) = (-log(decay), log(visited.sigmas[index - 1] / sigma))
                target = picture + h / (2 * h0) * (picture - earlier)
            }
            x = builder.keep(
                nextLevel.noise / level.noise * pow(decay, eta) * x + gain * target
                    + nextLevel.noise * (1 - pow(decay, 2 * eta)).squareRoot() * builder.noise()
            )
            builder.endStep()
            earlier = picture
        }
        return builder.program
    }
}
