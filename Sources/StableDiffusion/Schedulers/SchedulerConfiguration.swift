// The noise schedule a model was trained with, read from `scheduler/scheduler_config.json`. Whichever sampler is chosen
// takes its numbers from here, as `from_config` does in diffusers 0.42.1, whatever class the file was written for.

internal import JSON

/// What every scheduler shares.
struct SchedulerConfiguration: Sendable, Equatable {
    /// How the betas grow.
    enum BetaSchedule: String, CaseIterable, Sendable {
        case linear
        case scaledLinear = "scaled_linear"
        case squaredCosineCapV2 = "squaredcos_cap_v2"
    }

    /// What the model's output means.
    enum PredictionType: String, CaseIterable, Sendable {
        case epsilon
        case sample
        case vPrediction = "v_prediction"
    }

    /// What the last step of samplers that go by σ leaves.
    enum FinalSigmasType: String, CaseIterable, Sendable {
        case zero
        case sigmaMin = "sigma_min"
    }

    /// Class the file was written for; empty when it does not say.
    var className = ""
    /// Timesteps of training.
    var numTrainTimesteps = 1000
    /// First beta.
    var betaStart = 0.0001
    /// Last beta.
    var betaEnd = 0.02
    /// How betas grow from the first to the last.
    var betaSchedule = BetaSchedule.linear
    /// Betas listed one by one, which replace the three above.
    var trainedBetas: [Double]?
    /// What the model's output means.
    var predictionType = PredictionType.epsilon
    /// Spacing named by the file; nil leaves each scheduler its own default.
    var timestepSpacing: TimestepSpacing?
    /// Added to timesteps of leading spacing.
    var stepsOffset = 1
    /// Whether the step after the last one is free of noise instead of having the noise of timestep 0; nil leaves each scheduler its
    /// own default.
    var setAlphaToOne: Bool?
    /// Whether the betas are rescaled so that the last timestep is pure noise.
    var rescaleBetasZeroSNR = false
    /// What `use_karras_sigmas` and its like choose; `uniform` without them.
    var schedule = SigmaSchedule.uniform
    /// What the last step leaves.
    var finalSigmasType = FinalSigmasType.zero
    /// Whether multistep solvers end with lower orders in short runs.
    var lowerOrderFinal = true
    /// Whether DPM-Solver's last step is Euler's however many there are.
    var eulerAtFinal = false
    /// Steps of UniPC without a corrector.
    var disableCorrector: [Int] = []
    /// Whether PNDM begins without Runge-Kutta's steps.
    ///
    /// Stable Diffusion's files say so, and diffusers' inpainting pipeline corrects those that do not; only a file that says otherwise gets
    /// them.
    var skipPRKSteps = true
    /// Timesteps that LCM's and TCD's distillation used.
    var originalInferenceSteps = 50
    /// Factor of LCM's boundary condition.
    var timestepScaling = 10.0

    /// diffusers' defaults, with the steps offset of its Stable Diffusion pipeline.
    init() {}

    /// Reads the configuration of a checkpoint.
    ///
    /// `steps_offset` other than 1 and `clip_sample` true, which some older files have or leave to a default, are
    /// corrected to 1 and false: `StableDiffusionPipeline` does that to every scheduler it is given, because Stable
    /// Diffusion was trained so.
    init(file: ConfigurationFile) throws(ConfigurationFileError) {
        className = file.value("_class_name")?.stringValue ?? ""
        // Flow matching and EDM train on another noise process; their files would silently give default betas.
        for family in ["FlowMatch", "EDM", "CogVideoX"] where className.hasPrefix(family) {
            throw file.refusal("_class_name", allowed: "a scheduler of Stable Diffusion 1.x or 2.x")
        }
        try file.require("use_flow_sigmas", oneOf: .bool(false))
        try file.require("thresholding", oneOf: .bool(false))
        try file.require("use_lu_lambdas", oneOf: .bool(false))
        try file.require("interpolation_type", oneOf: .string("linear"))
        try file.require("timestep_type", oneOf: .string("discrete"))
        // The lowest number is the default and stands for no limit.
        if let limit = file.value("lambda_min_clipped")?.doubleValue, limit > -20 {
            throw file.refusal("lambda_min_clipped", allowed: "-Infinity or a number below -20")
        }

        numTrainTimesteps = try file.integer("num_train_timesteps", default: numTrainTimesteps, in: 1...100_000)
        betaStart = try file.number("beta_start", default: betaStart, in: 0...1)
        betaEnd = try file.number("beta_end", default: betaEnd, in: 0...1)
        betaSchedule = try file.choice("beta_schedule", default: betaSchedule)
        trainedBetas = try Self.trainedBetas(file, count: numTrainTimesteps)
        predictionType = try file.choice("prediction_type", default: predictionType)
        if file.value("timestep_spacing") != nil {
            timestepSpacing = try file.choice("timestep_spacing", default: .leading)
        }
        if file.value("set_alpha_to_one") != nil {
            setAlphaToOne = try file.bool("set_alpha_to_one", default: false)
        }
        rescaleBetasZeroSNR = try file.bool("rescale_betas_zero_snr", default: rescaleBetasZeroSNR)
        try readSolverOptions(file)
        try checkPrediction(file)
    }

    /// What only some samplers' classes read.
    private mutating func readSolverOptions(_ file: ConfigurationFile) throws(ConfigurationFileError) {
        for (key, flagged) in [
            ("use_karras_sigmas", SigmaSchedule.karras), ("use_exponential_sigmas", .exponential),
            ("use_beta_sigmas", .beta),
        ] where try file.optionalBool(key) == true {
            guard schedule == .uniform else {
                throw file.refusal(key, allowed: "false beside the schedule \(schedule.rawValue), which is set as well")
            }
            schedule = flagged
        }
        finalSigmasType = try file.choice("final_sigmas_type", default: finalSigmasType)
        lowerOrderFinal = try file.optionalBool("lower_order_final") ?? lowerOrderFinal
        eulerAtFinal = try file.optionalBool("euler_at_final") ?? eulerAtFinal
        disableCorrector = file.value("disable_corrector")?.arrayValue?.compactMap(\.integerValue) ?? []
        skipPRKSteps = try file.optionalBool("skip_prk_steps") ?? skipPRKSteps
        originalInferenceSteps = try file.integer(
            "original_inference_steps",
            default: originalInferenceSteps,
            in: 1...numTrainTimesteps
        )
        timestepScaling = try file.number("timestep_scaling", default: timestepScaling, in: 0...1e6)
    }

    /// A model cannot predict noise where nothing but noise is left, nor the picture where there is no noise: both
    /// would divide by zero.
    private func checkPrediction(_ file: ConfigurationFile) throws(ConfigurationFileError) {
        let alphasCumprod = NoiseSchedule(self).alphasCumprod
        guard alphasCumprod.allSatisfy(\.isFinite) else {
            throw ConfigurationFileError(
                file: file.path,
                key: "rescale_betas_zero_snr",
                found: "true, but the betas add no noise that could be rescaled",
                allowed: "false with these betas"
            )
        }
        if predictionType == .epsilon, alphasCumprod.contains(where: { $0 <= 0 }) {
            throw ConfigurationFileError(
                file: file.path,
                key: "prediction_type",
                found: "\"epsilon\", but the betas leave no signal at the last timestep",
                allowed: "\"v_prediction\" or \"sample\" with these betas"
            )
        }
        if predictionType == .sample, alphasCumprod.contains(where: { $0 >= 1 }) {
            throw ConfigurationFileError(
                file: file.path,
                key: "prediction_type",
                found: "\"sample\", but the betas leave no noise at the first timestep",
                allowed: "\"v_prediction\" or \"epsilon\" with these betas"
            )
        }
    }

    private static func trainedBetas(
        _ file: ConfigurationFile,
        count: Int
    ) throws(ConfigurationFileError) -> [Double]? {
        guard let value = file.value("trained_betas") else { return nil }
        let betas = value.arrayValue?.compactMap(\.doubleValue) ?? []
        guard betas.count == count, value.arrayValue?.count == count, betas.allSatisfy({ 0...1 ~= $0 }) else {
            throw file.refusal("trained_betas", allowed: "a list of num_train_timesteps (\(count)) numbers from 0 to 1")
        }
        return betas
    }
}
