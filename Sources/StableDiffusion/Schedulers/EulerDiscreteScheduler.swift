// Euler's and Heun's methods (Karras et al. 2022, algorithm 1), and Euler's with ancestral noise, with the numbers of diffusers 0.42.1
// (schedulers/scheduling_euler_discrete.py, scheduling_euler_ancestral_discrete.py, scheduling_heun_discrete.py).

extension SamplerSetup {
    /// Euler's method.
    func euler() -> SamplerProgram {
        euler(sigmaSteps(readsFinalSigma: true)) { _, next in (next, 0) }
    }

    /// Euler's method with fresh noise at every step.
    func eulerAncestral() -> SamplerProgram {
        euler(sigmaSteps()) { sigma, next in ancestralStep(from: sigma, to: next) }
    }

    /// Steps by the slope at their start.
    ///
    /// - Parameter split: Where a step goes without noise, and the deviation of the noise after it.
    private func euler(
        _ visited: SigmaSteps,
        _ split: (_ sigma: Double, _ next: Double) -> (down: Double, up: Double)
    ) -> SamplerProgram {
        let prediction = configuration.predictionType
        var builder = SamplerProgramBuilder(initNoiseSigma: visited.initNoiseSigma)
        var x = builder.firstSample
        for (index, timestep) in visited.timesteps.enumerated() {
            let sigma = visited.sigmas[index]
            let (down, up) = split(sigma, visited.sigmas[index + 1])
            let output = builder.evaluate(x, at: timestep, sigma: sigma)
            let derivative = (x - prediction.picture(x, output, sigma: sigma)) / sigma
            x = builder.keep(x + (down - sigma) * derivative + up * builder.noise())
            builder.endStep()
        }
        return builder.program
    }

    /// Heun's method: Euler's, corrected by the slope at its end; the last step is Euler's alone.
    func heun() -> SamplerProgram {
        let visited = sigmaSteps()
        let prediction = configuration.predictionType
        var builder = SamplerProgramBuilder(initNoiseSigma: visited.initNoiseSigma)
        var x = builder.firstSample
        for (index, timestep) in visited.timesteps.enumerated() {
            let (sigma, next) = (visited.sigmas[index], visited.sigmas[index + 1])
            let output = builder.evaluate(x, at: timestep, sigma: sigma)
            let derivative = (x - prediction.picture(x, output, sigma: sigma)) / sigma
            let euler = builder.keep(x + (next - sigma) * derivative)
            if next > 0 {
                let endOutput = builder.evaluate(
                    euler,
                    at: visited.timesteps[index + 1],
                    sigma: next
                )
                let endDerivative = (euler - prediction.picture(euler, endOutput, sigma: next)) / next
                x = builder.keep(x + (next - sigma) / 2 * (derivative + endDerivative))
            } else {
                x = euler
            }
            builder.endStep()
        }
        return builder.program
    }
}
