// The denoising network (Rombach et al. 2022), after diffusers 0.42.1 models/unets/unet_2d_condition.py.

internal import Foundation
internal import TensorOps

/// What the UNet is told of a batch of prompts, the same at every step.
struct UNetContext {
    /// Keys and values of the cross-attentions.
    fileprivate let crossAttentions: CrossAttentionContext
    /// `[B, timeEmbeddingDim]`, added to the embedding of every timestep; nil where only the prompt's tokens count.
    fileprivate let addedEmbedding: Tensor?
}

/// Predicts the noise (or velocity) in latents, given the timestep and the encoded prompt.
struct UNet2DConditionModel {
    private let configuration: UNet2DConditionModelConfiguration
    private let device: TensorDevice
    private let crossAttentions = CrossAttentionList()
    private let timeCondProj: Linear?
    private let timeLinear1: Linear
    private let timeLinear2: Linear
    private let addLinear1: Linear?
    private let addLinear2: Linear?
    private let convIn: Conv2d
    private let downBlocks: [DownBlock2D]
    private let midBlock: UNetMidBlock2DCrossAttn?
    private let upBlocks: [UpBlock2D]
    private let convNormOut: GroupNorm
    private let convOut: Conv2d

    /// Reads the weights.
    init(_ loader: WeightLoader, _ configuration: UNet2DConditionModelConfiguration, on device: TensorDevice) throws {
        self.configuration = configuration
        self.device = device
        let channels = configuration.blockOutChannels
        let timeChannels = configuration.timeEmbeddingDim
        timeCondProj = try configuration.timeCondProjDim.map {
            try Linear(loader.at("time_embedding.cond_proj"), $0, channels[0], hasBias: false, on: device)
        }
        timeLinear1 = try Linear(loader.at("time_embedding.linear_1"), channels[0], timeChannels, on: device)
        timeLinear2 = try Linear(loader.at("time_embedding.linear_2"), timeChannels, timeChannels, on: device)
        addLinear1 = try configuration.textTime.map {
            try Linear(loader.at("add_embedding.linear_1"), $0.inputDim, timeChannels, on: device)
        }
        addLinear2 = try configuration.textTime.map { _ in
            try Linear(loader.at("add_embedding.linear_2"), timeChannels, timeChannels, on: device)
        }
        convIn = try Conv2d(loader.at("conv_in"), configuration.inChannels, channels[0], on: device)
        let loading = UNetBlockLoading(configuration: configuration, crossAttentions: crossAttentions, device: device)
        downBlocks = try (0..<configuration.levels).map {
            try DownBlock2D(loader.at("down_blocks.\($0)"), level: $0, loading)
        }
        midBlock =
            configuration.midBlockType == nil ? nil : try UNetMidBlock2DCrossAttn(loader.at("mid_block"), loading)
        upBlocks = try (0..<configuration.levels).map {
            try UpBlock2D(loader.at("up_blocks.\($0)"), index: $0, loading)
        }
        convNormOut = try GroupNorm(
            loader.at("conv_norm_out"),
            channels[0],
            groups: configuration.normNumGroups,
            epsilon: configuration.normEps,
            on: device
        )
        convOut = try Conv2d(loader.at("conv_out"), channels[0], configuration.outChannels, on: device)
    }

    /// What does not depend on latents and timestep, computed once for all steps.
    ///
    /// - Parameters:
    ///   - prompts: Hidden states `[B, T, crossAttentionDim]` and, where the model has `textTime`, pooled states.
    ///   - height: Of the picture in pixels; the model is told that it is the whole of an original of that size.
    ///   - width: Of the picture in pixels.
    func context(of prompts: EncodedPrompts, height: Int, width: Int) throws -> UNetContext {
        let crossAttentions = try crossAttentions.context(of: prompts.hiddenStates)
        guard let textTime = configuration.textTime, let addLinear1, let addLinear2, let pooled = prompts.pooled else {
            return UNetContext(crossAttentions: crossAttentions, addedEmbedding: nil)
        }
        let row = [height, width, 0, 0, height, width].flatMap {
            sinusoidalEmbedding(Double($0), width: textTime.timeEmbedDim)
        }
        let batch = pooled.shape[0]
        let sizes = try device.tensor((0..<batch).flatMap { _ in row }, shape: [batch, row.count])
        let added = try addLinear2(
            addLinear1(pooled.concatenated(with: sizes), function: .silu, isOperand: true)
        )
        return UNetContext(crossAttentions: crossAttentions, addedEmbedding: added)
    }

    /// The prediction for a batch of latents, all at one timestep.
    ///
    /// - Parameters:
    ///   - sample: `[B, H, W, inChannels]`.
    ///   - timestep: 0 ..< 1000, not necessarily whole.
    ///   - context: Of B prompts.
    ///   - guidanceScale: What a model distilled with guidance is told (`timeCondProjDim`); others have no use for it.
    ///   - observe: Called with the name and output of every block, for tests.
    /// - Returns: `[B, H, W, outChannels]`.
    func callAsFunction(
        _ sample: Tensor,
        timestep: Double,
        _ context: UNetContext,
        guidanceScale: Double = 1,
        observe: ((String, Tensor) throws -> Void)? = nil
    ) throws -> Tensor {
        // 1. time; every resnet begins with the SiLU of the embedding, so it is applied here, once
        let timestepRow = sinusoidalEmbedding(timestep, width: configuration.blockOutChannels[0])
        func rows(_ row: [Float]) throws -> Tensor {
            try device.tensor((0..<sample.shape[0]).flatMap { _ in row }, shape: [sample.shape[0], row.count])
        }
        var timesteps = try rows(timestepRow)
        if let timeCondProj, let width = configuration.timeCondProjDim {
            timesteps = try timeCondProj(rows(guidanceScaleEmbedding(guidanceScale, width: width)), residual: timesteps)
        }
        let hidden = try timeLinear1(timesteps, function: .silu, isOperand: true)
        let timeEmbedding =
            if let added = context.addedEmbedding {
                try timeLinear2(hidden).sum(with: added, function: .silu)
            } else {
                try timeLinear2(hidden, function: .silu, isOperand: true)
            }
        let context = context.crossAttentions

        // 2. down, keeping what the way up will need
        var x = try convIn(sample)
        try observe?("conv_in", x)
        var skips = [x]
        for (index, block) in downBlocks.enumerated() {
            x = try block(x, timeEmbedding: timeEmbedding, context, skips: &skips)
            try observe?("down_blocks.\(index)", x)
        }

        // 3. middle
        if let midBlock {
            x = try midBlock(consume x, timeEmbedding: timeEmbedding, context)
            try observe?("mid_block", x)
        }

        // 4. up
        for (index, block) in upBlocks.enumerated() {
            x = try block(consume x, timeEmbedding: timeEmbedding, context, skips: &skips)
            try observe?("up_blocks.\(index)", x)
        }

        // 5. out
        return try convOut(convNormOut(consume x, function: .silu))
    }

    /// The sinusoidal embedding of a number, in float32 step by step as diffusers' `get_timestep_embedding` computes it.
    private func sinusoidalEmbedding(_ number: Double, width: Int) -> [Float] {
        let half = width / 2
        let logPeriod = Float(-log(10000.0))
        let arguments = (0..<half).map { index in
            let exponent = logPeriod * Float(index) / (Float(half) - Float(configuration.freqShift))
            return Float(number) * Float(exp(Double(exponent)))
        }
        let sines = arguments.map { Float(sin(Double($0))) }
        let cosines = arguments.map { Float(cos(Double($0))) }
        return (configuration.flipSinToCos ? cosines + sines : sines + cosines)
            + [Float](repeating: 0, count: width % 2)
    }
}

/// The sinusoidal embedding of a guidance scale, in float32 as diffusers' `get_guidance_scale_embedding` computes it of the scale less 1
/// (pipelines/stable_diffusion/pipeline_stable_diffusion.py).
func guidanceScaleEmbedding(_ scale: Double, width: Int) -> [Float] {
    let half = width / 2
    let step = Float(log(10000.0)) / Float(half - 1)
    let arguments = (0..<half).map { Float(scale - 1) * 1000 * Float(exp(Double(Float($0) * -step))) }
    return arguments.map { Float(sin(Double($0))) } + arguments.map { Float(cos(Double($0))) }
        + [Float](repeating: 0, count: width % 2)
}
