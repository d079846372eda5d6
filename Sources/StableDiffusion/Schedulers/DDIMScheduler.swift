// Denoising diffusion implicit models (Song, Meng & Ermon 2021) without added noise (η = 0), with the numbers of
// diffusers 0.42.1 (schedulers/scheduling_ddim.py).

/// The DDIM sampler.
struct DDIMScheduler: Scheduler {
    let initNoiseSigma = 1.0
    let steps: [SchedulerStep]

    /// Sets up the sampler for a number of steps, at most the number of timesteps the model was trained with.
    init(configuration: SchedulerConfiguration, steps count: Int) throws(GenerationError) {
        let trained = configuration.numTrainTimesteps
        guard count >= 1, count <= trained else {
            throw .invalid(field: "steps", reason: "\(count) steps; this model allows 1 to \(trained)")
        }
        let alphasCumprod = NoiseSchedule(configuration).alphasCumprod
        let final = configuration.setAlphaToOne ? 1 : alphasCumprod[0]
        steps = Self.timesteps(configuration, count: count).map { timestep in
            let previous = timestep - trained / count
            return Self.step(
                timestep: timestep,
                alpha: Double(alphasCumprod[timestep]),
                previousAlpha: Double(previous >= 0 ? alphasCumprod[previous] : final),
                prediction: configuration.predictionType
            )
        }
    }

    /// The update of equation 12 with σ = 0, written as a sum of the latents x_t and the model's output.
    private static func step(
        timestep: Int,
        alpha: Double,
        previousAlpha: Double,
        prediction: SchedulerConfiguration.PredictionType
    ) -> SchedulerStep {
        let signal = alpha.squareRoot()
        let noise = (1 - alpha).squareRoot()
        let previousSignal = previousAlpha.squareRoot()
        let previousNoise = (1 - previousAlpha).squareRoot()
        let sample: Double
        let modelOutput: Double
        switch prediction {
        case .epsilon:
            // x_0 = (x_t - noise * ε) / signal
            sample = previousSignal / signal
            modelOutput = previousNoise - previousSignal * noise / signal
        case .sample:
            // ε = (x_t - signal * x_0) / noise
            sample = previousNoise / noise
            modelOutput = previousSignal - previousNoise * signal / noise
        case .vPrediction:
            // x_0 = signal * x_t - noise * v,  ε = signal * v + noise * x_t
            sample = previousSignal * signal + previousNoise * noise
            modelOutput = previousNoise * signal - previousSignal * noise
        }
        return SchedulerStep(
            timestep: Double(timestep),
            modelInputScale: 1,
            sample: sample,
            modelOutput: modelOutput,
            noise: 0
        )
    }

    /// The timesteps, from noise to picture.
    private static func timesteps(_ configuration: SchedulerConfiguration, count: Int) -> [Int] {
        let trained = configuration.numTrainTimesteps
        switch configuration.timestepSpacing ?? .leading {
        case .leading:
            // As many steps as timesteps, plus the offset, would begin one beyond the last timestep there is.
            let ratio = trained / count
            return (0..<count).reversed().map { min($0 * ratio + configuration.stepsOffset, trained - 1) }
        case .trailing:
            // The difference of the first two elements, as numpy's arange takes it.
            let delta = (Double(trained) - Double(trained) / Double(count)) - Double(trained)
            return (0..<count).map { index in
                Int((Double(trained) + Double(index) * delta).rounded(.toNearestOrEven)) - 1
            }
        case .linspace:
            let step = count > 1 ? Double(trained - 1) / Double(count - 1) : 0
            return (0..<count).reversed().map { index in
                // numpy sets the last element instead of computing it.
                index == count - 1 && count > 1
                    ? trained - 1 : Int((Double(index) * step).rounded(.toNearestOrEven))
            }
        }
    }
}
