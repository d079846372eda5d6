// The timesteps and noise levels that samplers in the manner of Karras et al. 2022 visit, whose samples are x = x_0 + σ ε, with the
// numbers of diffusers 0.42.1 (schedulers/scheduling_euler_discrete.py and its kin).

/// Timesteps and noise levels, from noise to picture.
struct SigmaSteps {
    /// One for each step.
    var timesteps: [Double]
    /// One more than steps; the last is what the picture is left with.
    var sigmas: [Double]
    /// The deviation of the initial noise.
    var initNoiseSigma: Double
    /// The timestep that belongs to any σ.
    var table: SigmaTable
}

extension SamplerSetup {
    /// What a sampler of one or two evaluations a step visits.
    ///
    /// - Parameters:
    ///   - roundsKarras: whether timesteps of the karras schedule are rounded to whole ones.
    ///   - readsFinalSigma: whether the sampler's class reads `final_sigmas_type`; else the last σ is 0.
    func sigmaSteps(roundsKarras: Bool = false, readsFinalSigma: Bool = false) -> SigmaSteps {
        let table = SigmaTable(alphasCumprod: alphasCumprod)
        var timesteps = spacing.timesteps(
            steps,
            of: configuration.numTrainTimesteps,
            offset: configuration.stepsOffset,
            isRounded: false
        )
        let uniform = timesteps.map { table.sigma(at: $0) }
        let sigmas = schedule.sigmas(steps, from: uniform[0], to: uniform[steps - 1], uniform: uniform)
        if schedule != .uniform {
            timesteps = sigmas.map { table.timestep(of: $0) }
            if schedule == .karras && roundsKarras { timesteps = timesteps.map { $0.rounded(.toNearestOrEven) } }
        }
        let final = readsFinalSigma && configuration.finalSigmasType == .sigmaMin ? table.sigmas[0] : 0
        let rounded = (sigmas + [final]).map { Double(Float($0)) }
        let highest = rounded.max() ?? 0
        return SigmaSteps(
            timesteps: Array(timesteps[firstStep...]),
            sigmas: Array(rounded[firstStep...]),
            initNoiseSigma: spacing == .leading ? (highest * highest + 1).squareRoot() : highest,
            table: table
        )
    }

    /// What a multistep solver visits, which takes the model's whole range of noise for its schedules.
    ///
    /// - Parameter final: the last σ, of those of the steps and of the table.
    func multistepSigmaSteps(final: (_ sigmas: [Double], SigmaTable) -> Double) -> SigmaSteps {
        let table = SigmaTable(alphasCumprod: alphasCumprod)
        var timesteps = spacing.multistepTimesteps(
            steps,
            of: configuration.numTrainTimesteps,
            offset: configuration.stepsOffset
        )
        let uniform = timesteps.map { table.sigma(at: $0) }
        let (lowest, highest) = (table.sigmas[0], table.sigmas[table.sigmas.count - 1])
        let sigmas = schedule.sigmas(steps, from: highest, to: lowest, uniform: uniform)
        if schedule != .uniform {
            // These classes keep whole timesteps: rounded for karras, unless the model's betas follow a cosine, else cut.
            let isCosine =
                configuration.betaSchedule == .squaredCosineCapV2 && (sampler == .dpmpp2M || sampler == .dpmpp2MSDE)
            timesteps = sigmas.map {
                table.timestep(of: $0).rounded(schedule == .karras && !isCosine ? .toNearestOrEven : .towardZero)
            }
        }
        return SigmaSteps(
            timesteps: Array(timesteps[firstStep...]),
            sigmas: (sigmas + [final(sigmas, table)])[firstStep...].map { Double(Float($0)) },
            initNoiseSigma: 1,
            table: table
        )
    }

    /// A step from one σ to another in two parts: down to a lower σ without noise, and back up by fresh noise.
    ///
    /// - Returns: Where to go down to, and the deviation of the noise (Karras et al. 2022 and k-diffusion, `get_ancestral_step`).
    func ancestralStep(from sigma: Double, to next: Double) -> (down: Double, up: Double) {
        let variance = next * next * (sigma * sigma - next * next) / (sigma * sigma)
        let up = min(next, eta * max(variance, 0).squareRoot())
        return (max(next * next - up * up, 0).squareRoot(), up)
    }
}
