// DPM-Solver++ with noise and two evaluations a step: DPM++ SDE with the numbers of diffusers 0.42.1 (schedulers/scheduling_dpmsolver_sde.py),
// and DPM++ 2S ancestral as k-diffusion 0.1.1 has it (sampling.py, sample_dpmpp_2s_ancestral), which diffusers lacks.

extension SamplerSetup {
    /// DPM++ SDE: a noisy step to the geometric mean of both ends, and the whole step by the picture seen there.
    ///
    /// Both steps' noise is that of one Brownian path in σ. diffusers takes it from a tree with a seed of its own; here its two
    /// increments are drawn, in the order of the path, from the request's generator.
    func dpmSolverSDE() -> SamplerProgram {
        let visited = sigmaSteps()
        let prediction = configuration.predictionType
        var builder = SamplerProgramBuilder(initNoiseSigma: visited.initNoiseSigma)
        var x = builder.firstSample
        for (index, timestep) in visited.timesteps.enumerated() {
            let (sigma, next) = (visited.sigmas[index], visited.sigmas[index + 1])
            let output = builder.evaluate(x, at: timestep, sigma: sigma)
            let picture = prediction.picture(x, output, sigma: sigma)
            if next > 0 {
                let middle = (sigma * next).squareRoot()
                let (upper, lower) = (builder.noise(), builder.noise())
                let (halfDown, halfUp) = ancestralStep(from: sigma, to: middle)
                let half = builder.keep(
                    halfDown / sigma * x + (1 - halfDown / sigma) * picture + halfUp * upper
                )
                let middleOutput = builder.evaluate(
                    half,
                    at: visited.table.timestep(of: middle),
                    sigma: middle
                )
                let middlePicture = prediction.picture(half, middleOutput, sigma: middle)
                let (down, up) = ancestralStep(from: sigma, to: next)
                let whole =
                    ((sigma - middle) / (sigma - next)).squareRoot() * upper
                    + ((middle - next) / (sigma - next)).squareRoot() * lower
                x = builder.keep(down / sigma * x + (1 - down / sigma) * middlePicture + up * whole)
            } else {
                x = builder.keep(picture)
            }
            builder.endStep()
        }
        return builder.program
    }

    /// DPM++ 2S ancestral: down by the picture seen at the geometric mean, up by fresh noise.
    func dpmSolverSinglestepAncestral() -> SamplerProgram {
        let visited = sigmaSteps()
        let prediction = configuration.predictionType
        var builder = SamplerProgramBuilder(initNoiseSigma: visited.initNoiseSigma)
        var x = builder.firstSample
        for (index, timestep) in visited.timesteps.enumerated() {
            let sigma = visited.sigmas[index]
            let (down, up) = ancestralStep(from: sigma, to: visited.sigmas[index + 1])
            let output = builder.evaluate(x, at: timestep, sigma: sigma)
            let picture = prediction.picture(x, output, sigma: sigma)
            if down > 0 {
                let middle = (sigma * down).squareRoot()
                let half = builder.keep(middle / sigma * x + (1 - middle / sigma) * picture)
                let middleOutput = builder.evaluate(
                    half,
                    at: visited.table.timestep(of: middle),
                    sigma: middle
                )
                let middlePicture = prediction.picture(half, middleOutput, sigma: middle)
                x = builder.keep(down / sigma * x + (1 - down / sigma) * middlePicture + up * builder.noise())
            } else {
                x = builder.keep(picture)
            }
            builder.endStep()
        }
        return builder.program
    }
}
