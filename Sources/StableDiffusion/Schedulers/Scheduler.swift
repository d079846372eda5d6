// What a sampling algorithm gives the pipeline: for each evaluation of the model its timestep and the coefficients of
// the update that follows, all computed before the first step, so that the device does one fused operation a step.

/// One evaluation of the model and the update of the latents after it.
struct SchedulerStep: Sendable, Equatable {
    /// The timestep the model is told, within `0 ..< numTrainTimesteps`.
    var timestep: Double
    /// The latents are multiplied by this before the model sees them.
    var modelInputScale: Double
    /// Factor of the latents in the update `sample * latents + modelOutput * output + noise * fresh noise`.
    var sample: Double
    /// Factor of the model's output, after guidance, in the update.
    var modelOutput: Double
    /// Factor of fresh Gaussian noise in the update; 0 needs none.
    var noise: Double
}

/// A sampling algorithm set up for one model and one number of steps.
protocol Scheduler: Sendable {
    /// The first latents are Gaussian noise multiplied by this.
    var initNoiseSigma: Double { get }
    /// The evaluations of the model, in order.
    var steps: [SchedulerStep] { get }
}

extension Sampler {
    /// Sets the sampler up.
    ///
    /// - Throws: `GenerationError.invalid` for a number of steps this model has no room for.
    func scheduler(
        configuration: SchedulerConfiguration,
        steps: Int
    ) throws(GenerationError) -> any Scheduler {
        switch self {
        case .ddim: try DDIMScheduler(configuration: configuration, steps: steps)
        }
    }
}
