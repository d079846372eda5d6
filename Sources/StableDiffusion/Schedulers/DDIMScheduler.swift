// Denoising diffusion implicit models (Song, Meng & Ermon 2021), with the numbers of diffusers 0.42.1
// (schedulers/scheduling_ddim.py).

extension SamplerSetup {
    /// The DDIM sampler: equation 12, with σ as `eta` times that of equation 16.
    func ddim() -> SamplerProgram {
        let alphas = alphasCumprod
        let trained = configuration.numTrainTimesteps
        let final = configuration.setAlphaToOne ?? true ? 1 : alphas[0]
        let prediction = configuration.predictionType
        var builder = SamplerProgramBuilder(initNoiseSigma: 1)
        var x = builder.firstSample
        let timesteps = spacing.timesteps(steps, of: trained, offset: configuration.stepsOffset, isRounded: true)
        for timestep in timesteps[firstStep...] {
            let previous = Int(timestep) - trained / steps
            let alpha = alphas[Int(timestep)]
            let previousAlpha = previous >= 0 ? alphas[previous] : final
            let (level, next) = (NoiseLevel(alphaCumprod: alpha), NoiseLevel(alphaCumprod: previousAlpha))

            let output = builder.evaluate(x, at: timestep, level: level)
            let picture = prediction.picture(x, output, level)
            let noise = prediction.noise(x, output, level)
            let variance =
                next.noise * next.noise / (level.noise * level.noise) * (1 - Double(alpha) / Double(previousAlpha))
            let deviation = eta * max(variance, 0).squareRoot()
            let direction = max(next.noise * next.noise - deviation * deviation, 0).squareRoot()
            x = builder.keep(next.signal * picture + direction * noise + deviation * builder.noise())
            builder.endStep()
        }
        return builder.program
    }
}
