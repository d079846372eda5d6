// From a request's sampler, schedule, spacing, steps and eta to the program that draws its picture, for one checkpoint. What a
// sampler cannot do is refused here, by the name of the field and with what would be possible.

/// A sampler with everything it is set up for, checked.
struct SamplerSetup {
    /// The sampler.
    let sampler: Sampler
    /// The checkpoint's noise schedule.
    let configuration: SchedulerConfiguration
    /// Number of steps.
    let steps: Int
    /// The first step that is done; those before it are left out where a picture is begun with instead of noise.
    var firstStep = 0
    /// Which noise levels the steps visit.
    let schedule: SigmaSchedule
    /// How timesteps are spaced.
    let spacing: TimestepSpacing
    /// How much of the noise that is taken away is replaced by fresh noise, 0 to 1.
    let eta: Double

    /// Checks that a sampler can do what is asked for.
    ///
    /// What a request leaves open is decided as diffusers' `from_config` does: the checkpoint's own value where the sampler's
    /// class knows it, else the default of the class.
    /// - Throws: `GenerationError.invalid`.
    init(
        _ sampler: Sampler,
        configuration: SchedulerConfiguration,
        steps: Int,
        schedule: SigmaSchedule? = nil,
        spacing: TimestepSpacing? = nil,
        eta: Double? = nil
    ) throws(GenerationError) {
        self.sampler = sampler
        self.configuration = configuration
        self.steps = steps
        self.schedule = schedule ?? (sampler.readsScheduleFlags ? configuration.schedule : .uniform)
        self.spacing = spacing ?? configuration.timestepSpacing ?? sampler.defaultSpacing
        self.eta = eta ?? sampler.defaultEta

        guard sampler.predictions.contains(configuration.predictionType) else {
            let able = Sampler.allCases.filter { $0.predictions.contains(configuration.predictionType) }
            throw .invalid(
                field: "sampler",
                reason: "\(sampler.rawValue) cannot use a model of prediction_type "
                    + "\(configuration.predictionType.rawValue), as this one is; possible: \(list(able))"
            )
        }
        let trained = configuration.numTrainTimesteps
        let limit = sampler.isDistilled ? min(configuration.originalInferenceSteps, trained) : trained
        guard steps >= 1, steps <= limit else {
            throw .invalid(
                field: "steps",
                reason: "\(steps) steps; this model allows 1 to \(limit)"
                    + (limit < trained ? " with \(sampler.rawValue)" : "")
            )
        }
        try sampler.check(schedule: schedule, spacing: spacing, eta: eta)
    }

    /// The program.
    ///
    /// - Throws: `GenerationError.invalid` for so many steps that two of them coincide.
    func program() throws(GenerationError) -> SamplerProgram {
        let program =
            switch sampler {
            case .ddim: ddim()
            case .pndm: pndm()
            case .euler: euler()
            case .eulerAncestral: eulerAncestral()
            case .heun: heun()
            case .dpm2: dpm2()
            case .dpm2Ancestral: dpm2Ancestral()
            case .lms: lms()
            case .dpmpp2M, .dpmpp2MSDE: dpmSolverMultistep()
            case .dpmppSDE: dpmSolverSDE()
            case .dpmpp2SAncestral: dpmSolverSinglestepAncestral()
            case .unipc: uniPC()
            case .deis: deis()
            case .lcm: lcm()
            case .tcd: tcd()
            }
        guard program.isFinite else {
            throw .invalid(
                field: "steps",
                reason: "\(steps) steps of \(sampler.rawValue) with schedule \(schedule.rawValue) and spacing "
                    + "\(spacing.rawValue) fall on noise levels of this model that coincide; take fewer steps"
            )
        }
        return program
    }

    /// ᾱ by timestep, as the sampler's class computes it.
    var alphasCumprod: [Float] {
        var configuration = configuration
        if !sampler.knowsZeroSNR { configuration.rescaleBetasZeroSNR = false }
        var alphas = NoiseSchedule(configuration).alphasCumprod
        // Where σ would be infinite, diffusers takes the smallest number that half precision has.
        if configuration.rescaleBetasZeroSNR, sampler.isInSigmas, let last = alphas.indices.last {
            alphas[last] = 0x1p-24
        }
        return alphas
    }
}

/// Names one after the other.
private func list(_ values: [some RawRepresentable<String>]) -> String {
    values.map(\.rawValue).joined(separator: ", ")
}

extension Sampler {
    /// Checks what a request asks of the sampler, as far as that does not depend on the model; nil is what it does by itself.
    ///
    /// - Throws: `GenerationError.invalid`.
    public func check(schedule: SigmaSchedule?, spacing: TimestepSpacing?, eta: Double?) throws(GenerationError) {
        if let schedule, !schedules.contains(schedule) {
            let able = Sampler.allCases.filter { $0.schedules.contains(schedule) }
            throw .invalid(
                field: "schedule",
                reason: "\(rawValue) has no schedule \(schedule.rawValue); it has \(list(schedules)), and "
                    + "\(schedule.rawValue) is possible with \(list(able))"
            )
        }
        if let spacing, isDistilled {
            throw .invalid(
                field: "spacing",
                reason:
                    "\(rawValue) takes its timesteps from the model's distillation and has no spacing \(spacing.rawValue)"
            )
        }
        guard let eta else { return }
        guard 0...1 ~= eta else { throw .invalid(field: "eta", reason: "\(eta) is not within 0 to 1") }
        if eta > 0, !usesEta {
            throw .invalid(
                field: "eta",
                reason: "\(rawValue) has no share of noise to set, so that eta can only be 0; possible: "
                    + list(Sampler.allCases.filter(\.usesEta))
            )
        }
    }
}

extension Sampler {
    /// Predictions the sampler's class can use.
    fileprivate var predictions: [SchedulerConfiguration.PredictionType] {
        switch self {
        case .pndm, .eulerAncestral, .dpm2, .dpm2Ancestral, .dpmppSDE: [.epsilon, .vPrediction]
        default: SchedulerConfiguration.PredictionType.allCases
        }
    }

    /// Schedules the sampler can follow.
    public var schedules: [SigmaSchedule] {
        switch self {
        case .ddim, .pndm, .lcm, .tcd: [.uniform]
        default: SigmaSchedule.allCases
        }
    }

    /// Whether the sampler's class reads `use_karras_sigmas` and the like; diffusers' ancestral Euler does not.
    fileprivate var readsScheduleFlags: Bool { schedules.count > 1 && self != .eulerAncestral }

    /// Spacing where neither the request nor the checkpoint names one.
    fileprivate var defaultSpacing: TimestepSpacing {
        switch self {
        case .ddim, .pndm, .lcm, .tcd: .leading
        default: .linspace
        }
    }

    /// Whether the sampler can add noise.
    fileprivate var usesEta: Bool {
        switch self {
        case .ddim, .eulerAncestral, .dpm2Ancestral, .dpmpp2MSDE, .dpmppSDE, .dpmpp2SAncestral, .tcd: true
        default: false
        }
    }

    /// `eta` where the request names none: the default of diffusers' classes, and of the papers.
    ///
    /// diffusers' pipeline tells TCD 0 unless it is given another.
    fileprivate var defaultEta: Double {
        switch self {
        case .tcd: 0.3
        case .ddim: 0
        default: usesEta ? 1 : 0
        }
    }

    /// Whether the timesteps are those of a distillation, and cannot be spaced otherwise.
    public var isDistilled: Bool { self == .lcm || self == .tcd }

    /// Whether the sampler's class reads `rescale_betas_zero_snr`.
    fileprivate var knowsZeroSNR: Bool {
        switch self {
        case .pndm, .heun, .dpm2, .dpm2Ancestral, .lms, .dpmppSDE, .deis: false
        default: true
        }
    }

    /// Whether the sampler goes by σ rather than by ᾱ.
    fileprivate var isInSigmas: Bool {
        switch self {
        case .ddim, .pndm, .lcm, .tcd: false
        default: true
        }
    }
}

/// How much of a sample is picture and how much noise: x = signal * picture + noise * ε.
struct NoiseLevel: Sendable, Equatable {
    /// √ᾱ, or 1 where the picture is not scaled down.
    let signal: Double
    /// √(1 - ᾱ), or σ beside a picture that is not scaled down.
    let noise: Double

    /// From its parts.
    init(signal: Double, noise: Double) {
        (self.signal, self.noise) = (signal, noise)
    }

    /// From ᾱ.
    init(alphaCumprod: Float) {
        signal = Double(alphaCumprod).squareRoot()
        noise = (1 - Double(alphaCumprod)).squareRoot()
    }

    /// From σ, the deviation of the noise beside an unscaled picture.
    init(sigma: Double) {
        signal = 1 / (sigma * sigma + 1).squareRoot()
        noise = sigma * signal
    }
}

extension SchedulerConfiguration.PredictionType {
    /// x_0, the picture, from a sample of a noise level and the model's output.
    func picture(_ sample: Combination, _ output: Combination, _ level: NoiseLevel) -> Combination {
        switch self {
        case .epsilon: (sample - level.noise * output) / level.signal
        case .sample: output
        case .vPrediction: level.signal * sample - level.noise * output
        }
    }

    /// ε, the noise, from a sample of a noise level and the model's output.
    func noise(_ sample: Combination, _ output: Combination, _ level: NoiseLevel) -> Combination {
        switch self {
        case .epsilon: output
        case .sample: (sample - level.signal * output) / level.noise
        case .vPrediction: level.signal * output + level.noise * sample
        }
    }

    /// x_0 from a sample x = x_0 + σ ε, whose picture is not scaled down, and the model's output for it scaled down.
    func picture(_ sample: Combination, _ output: Combination, sigma: Double) -> Combination {
        switch self {
        case .epsilon: sample - sigma * output
        case .sample: output
        case .vPrediction:
            sample / (sigma * sigma + 1) - (sigma / (sigma * sigma + 1).squareRoot()) * output
        }
    }
}
