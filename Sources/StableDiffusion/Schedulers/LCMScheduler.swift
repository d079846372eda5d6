// Samplers of models distilled to few steps: latent consistency models (Luo et al. 2023) and trajectory consistency distillation (Zheng et
// al. 2024), with the numbers of diffusers 0.42.1 (schedulers/scheduling_lcm.py, scheduling_tcd.py).

extension SamplerSetup {
    /// The consistency sampler: the picture seen at a timestep, with fresh noise for the next.
    func lcm() -> SamplerProgram {
        let alphas = alphasCumprod
        let timesteps = distilledTimesteps
        var builder = SamplerProgramBuilder(initNoiseSigma: 1)
        var x = builder.firstSample
        for (index, timestep) in timesteps.enumerated() {
            let level = NoiseLevel(alphaCumprod: alphas[timestep])
            let output = builder.evaluate(x, at: Double(timestep), level: level)
            let picture = configuration.predictionType.picture(x, output, level)
            // The boundary condition, equation 6 of the paper with σ_data = 0.5: at timestep 0 the sample is the picture.
            let scaled = Double(timestep) * configuration.timestepScaling
            let denominator = scaled * scaled + 0.25
            let denoised = scaled / denominator.squareRoot() * picture + 0.25 / denominator * x
            if index < timesteps.count - 1 {
                let next = NoiseLevel(alphaCumprod: alphas[timesteps[index + 1]])
                x = builder.keep(next.signal * denoised + next.noise * builder.noise())
            } else {
                x = builder.keep(denoised)
            }
            builder.endStep()
        }
        return builder.program
    }

    /// The trajectory consistency sampler: to a timestep below the next, and back up to that by fresh noise; `eta` is the paper's γ.
    func tcd() -> SamplerProgram {
        let alphas = alphasCumprod
        let timesteps = distilledTimesteps
        let prediction = configuration.predictionType
        var builder = SamplerProgramBuilder(initNoiseSigma: 1)
        var x = builder.firstSample
        for (index, timestep) in timesteps.enumerated() {
            let next = index < timesteps.count - 1 ? timesteps[index + 1] : 0
            // In 32 bits as PyTorch multiplies.
            let below = Int((Float(1 - eta) * Float(next)).rounded(.down))
            let (level, target) = (NoiseLevel(alphaCumprod: alphas[timestep]), NoiseLevel(alphaCumprod: alphas[below]))
            let output = builder.evaluate(x, at: Double(timestep), level: level)
            let reached =
                target.signal * prediction.picture(x, output, level) + target.noise * prediction.noise(x, output, level)
            if eta > 0 && index < timesteps.count - 1 {
                let kept = Double(alphas[next]) / Double(alphas[below])
                x = builder.keep(kept.squareRoot() * reached + max(1 - kept, 0).squareRoot() * builder.noise())
            } else {
                x = builder.keep(reached)
            }
            builder.endStep()
        }
        return builder.program
    }

    /// Timesteps out of those the distillation used, from noise to picture.
    private var distilledTimesteps: [Int] {
        let original = min(configuration.originalInferenceSteps, configuration.numTrainTimesteps)
        let stride = configuration.numTrainTimesteps / original
        return (firstStep..<steps).map { index in
            let skipped = Int((Double(index) * (Double(original) / Double(steps))).rounded(.down))
            return (original - skipped) * stride - 1
        }
    }
}
